"""Exports: the layout to the byte, the same bytes twice, one size out of several, and nothing half written."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from bundles import Ramp, fill

from toolkit import files
from toolkit.bundle import litertlm_schema as schema
from toolkit.bundle.check import check
from toolkit.bundle.litertlm import Section, export_litertlm, write_container
from toolkit.bundle.litertlm_schema import ContainerMetadata, LlmMetadata, SectionRecord
from toolkit.bundle.manifest import EMBEDDER, TEXT_DECODER, TOKENIZER
from toolkit.bundle.ple_shards import HEADER_BYTES
from toolkit.bundle.write import write_bundle
from toolkit.errors import BundleError, EnvironmentFault
from toolkit.tflite.reader import read_tflite


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "bundle"
    write_bundle(path, fill)
    return path


def metadata_of(data: bytes) -> ContainerMetadata:
    (header_end,) = struct.unpack_from("<Q", data, 24)
    return schema.unpack_container_metadata(data[32:header_end], "test")


def sections_of(data: bytes) -> dict[str, bytes]:
    return {section.label: data[section.begin : section.end] for section in metadata_of(data).sections}


@pytest.fixture(scope="module")
def exported(bundle: Path) -> bytes:
    path = bundle.parent / "default.litertlm"
    result = export_litertlm(bundle, path)
    assert (result.size, result.bytes) == ("large", path.stat().st_size)
    return path.read_bytes()


def test_the_fixed_header_is_as_specified(exported: bytes) -> None:
    assert exported[:24] == b"LITERTLM" + struct.pack("<3I", 1, 7, 0) + b"\0\0\0\0"
    (header_end,) = struct.unpack_from("<Q", exported, 24)
    assert 32 < header_end < 16384
    assert set(exported[header_end:16384]) == {0}


def test_sections_begin_at_multiples_of_16_kib_and_the_file_ends_with_the_last(exported: bytes) -> None:
    sections = metadata_of(exported).sections
    assert [section.label for section in sections] == [
        "LlmMetadataProto",
        "HF_Tokenizer_Zlib",
        "tf_lite_embedder",
        "tf_lite_prefill_decode",
        "tf_lite_per_layer_embedder",
    ]
    assert sections[0].begin == 16384
    for a, b in zip(sections, [*sections[1:], None], strict=True):
        assert a.begin % 16384 == 0
        if b is not None:
            assert b.begin - 16384 < a.end <= b.begin
            assert set(exported[a.end : b.begin]) <= {0}
    assert sections[-1].end == len(exported)


def test_the_embedders_and_the_tokenizer_are_those_of_the_bundle(bundle: Path, exported: bytes) -> None:
    sections = sections_of(exported)
    assert sections["tf_lite_embedder"] == (bundle / EMBEDDER).read_bytes()
    assert sections["tf_lite_per_layer_embedder"].endswith((bundle / "ple_00000.bin").read_bytes()[HEADER_BYTES:])
    packed = sections["HF_Tokenizer_Zlib"]
    assert zlib.decompress(packed[8:]) == (bundle / TOKENIZER).read_bytes()
    assert int.from_bytes(packed[:8], "little") == (bundle / TOKENIZER).stat().st_size


def test_the_engine_is_told_what_the_manifest_says(exported: bytes) -> None:
    found = schema.unpack_llm_metadata(sections_of(exported)["LlmMetadataProto"], "test")
    assert found == LlmMetadata(
        start_token=(2,),
        stop_tokens=((1,), (5,)),
        pad_token=(0,),
        max_num_tokens=32,
        jinja_prompt_template="{{ bos_token }}",
        model_type="gemma3n",
    )


def test_the_header_holds_no_id_and_no_time(exported: bytes) -> None:
    assert metadata_of(exported).system == {
        "checkpoint": "handmade",
        "checkpoint_sha256": "0123456789abcdef" * 4,
        "generator": "gemma-edge 0.1.0",
        "size": "large",
    }


def test_two_exports_have_the_same_bytes(bundle: Path, exported: bytes, tmp_path: Path) -> None:
    export_litertlm(bundle, tmp_path / "again.litertlm")
    assert (tmp_path / "again.litertlm").read_bytes() == exported


def test_an_export_has_no_fault(bundle: Path, tmp_path: Path) -> None:
    for size in (None, "small"):
        export_litertlm(bundle, tmp_path / "model.litertlm", size)
        assert check(tmp_path / "model.litertlm") == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.litertlm"]


@pytest.mark.parametrize(("size", "head"), [("large", "lm_head.weight"), ("small", "small_head.weight")])
def test_the_chosen_size_has_the_plain_names_and_its_own_weights(
    bundle: Path, tmp_path: Path, size: str, head: str
) -> None:
    path = tmp_path / "model.litertlm"
    export_litertlm(bundle, path, size)
    place = next(s for s in metadata_of(path.read_bytes()).sections if s.label == "tf_lite_prefill_decode")
    content = read_tflite(path, (place.begin, place.end))
    assert content.model.signatures == ("prefill_4", "prefill_8", "decode")
    behind = [buffer for buffer in content.model.buffers if buffer.offset_bytes]
    assert len(behind) == 1
    with open(path, "rb") as file:
        file.seek(place.begin + behind[0].offset_bytes)
        weight = np.frombuffer(file.read(behind[0].size_bytes), np.float32)
    np.testing.assert_array_equal(weight, Ramp().read(head).ravel())


def test_an_unknown_size_is_named_with_those_there_are(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found huge, wanted large or small"):
        export_litertlm(bundle, tmp_path / "model.litertlm", "huge")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [EMBEDDER, TEXT_DECODER])
def test_a_damaged_bundle_is_not_exported(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path / "bundle", fill)
    with open(tmp_path / "bundle" / name, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(BundleError, match=f"{name}: found sha256"):
        export_litertlm(tmp_path / "bundle", tmp_path / "model.litertlm")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_an_interrupt_leaves_nothing_behind(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, **_: object) -> files.FileHash:
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.bundle.litertlm.hash_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_litertlm(bundle, tmp_path / "model.litertlm")
    assert list(tmp_path.iterdir()) == []


def test_a_container_that_reads_back_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rot = files.FileHash(1, "0" * 64, ())
    monkeypatch.setattr("toolkit.bundle.litertlm.hash_file", lambda path, **_: rot)
    with pytest.raises(EnvironmentFault, match="read back"):
        write_container(tmp_path / "a", [Section(schema.LLM_METADATA, (b"x",))], {})
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_what_is_written_and_read_back(bundle: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = export_litertlm(
        bundle, tmp_path / "model.litertlm", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (2 * result.bytes, 2 * result.bytes)


def test_the_space_is_asked_for_before_the_first_byte(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path, needed: int) -> None:
        raise EnvironmentFault("disk", found=0, wanted=needed)

    monkeypatch.setattr("toolkit.bundle.litertlm.require_free_space", full)
    with pytest.raises(EnvironmentFault):
        export_litertlm(bundle, tmp_path / "model.litertlm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385])
def test_a_section_ends_exactly_where_its_bytes_end(tmp_path: Path, size: int) -> None:
    content = bytes(range(1, 252)) * (size // 251 + 1)
    first, second = content[:size], b"end"
    total = write_container(
        tmp_path / "a", [Section(schema.LLM_METADATA, (first,)), Section(schema.HF_TOKENIZER, (second,))], {}
    )
    data = (tmp_path / "a").read_bytes()
    a, b = metadata_of(data).sections
    assert (a.begin, a.end) == (16384, 16384 + size)
    assert b.begin == 16384 * (2 if size <= 16384 else 3)
    assert data[a.begin : a.end] == first
    assert data[b.begin :] == second
    assert total == len(data)


def test_container_metadata_survive_a_round_trip() -> None:
    sections = (
        SectionRecord("TFLiteModel", 16384, 2**40, {"model_type": "tf_lite_embedder", "a": ""}),
        SectionRecord("GenericBinaryData", 2**41, 2**41 + 1),
    )
    metadata = ContainerMetadata({"generator": "x"}, sections)
    assert schema.unpack_container_metadata(schema.pack_container_metadata(metadata), "test") == metadata


def test_a_header_too_long_for_the_first_16_kib_moves_the_sections(tmp_path: Path) -> None:
    write_container(tmp_path / "a", [Section(schema.LLM_METADATA, (b"x",))], {"long": "x" * 20000})
    assert metadata_of((tmp_path / "a").read_bytes()).sections[0].begin == 32768
