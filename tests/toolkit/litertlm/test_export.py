"""Exports: the layout to the byte, the same bytes twice, one size out of several, and nothing half written."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from bundles import AUDIO, TOWERS_DRAFT, Ramp, fill, fill_with_towers, with_lock

from toolkit import __version__
from toolkit.base import files
from toolkit.base.activations import Activations
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError
from toolkit.bundle.lock import MAX_LOCK_BYTES, LockedExport, lock_line
from toolkit.bundle.lock import read_lock as read_bundle_lock
from toolkit.bundle.manifest import EMBEDDER, TEXT_DECODER, TOKENIZER, TOWER_FILES
from toolkit.bundle.ple_shards import HEADER_BYTES
from toolkit.bundle.write import BundleDraft, write_bundle
from toolkit.check import check
from toolkit.litertlm import schema, tables
from toolkit.litertlm.container import Section, write_container
from toolkit.litertlm.export import TARGETS, ExportOptions, export_litertlm
from toolkit.litertlm.header import Header, read_header
from toolkit.litertlm.lock_section import read_lock
from toolkit.litertlm.schema import ImageMetadata, LlmMetadata, MelMetadata, SoundMetadata
from toolkit.litertlm.tables import ContainerMetadata, SectionRecord
from toolkit.litertlm.tokenizer_section import HF_TOKENIZER
from toolkit.tflite.reader import read_tflite


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "bundle"
    write_bundle(path, fill)
    return path


def metadata_of(data: bytes) -> ContainerMetadata:
    (header_end,) = struct.unpack_from("<Q", data, 24)
    return tables.unpack_container_metadata(data[32:header_end], "test")


def sections_of(data: bytes) -> dict[str, bytes]:
    return {section.label: data[section.begin : section.end] for section in metadata_of(data).sections}


@pytest.fixture(scope="module")
def exported(bundle: Path) -> bytes:
    path = bundle.parent / "default.litertlm"
    result = export_litertlm(bundle, path)
    assert (result.size, result.bytes) == ("large", path.stat().st_size)
    assert (result.groups, result.model_type) == (("text",), "gemma3n")
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
    rows = (bundle / "ple_00000.bin").read_bytes()[HEADER_BYTES:]
    # Page borders: the graph's own page, then the rows, without the shard's header.
    assert sections["tf_lite_per_layer_embedder"][HEADER_BYTES:] == rows
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
    system = dict(metadata_of(exported).system)
    assert len(system.pop("header_sha256")) == 64
    assert system == {
        "checkpoint": "handmade",
        "checkpoint_sha256": "0123456789abcdef" * 4,
        "generator": f"gemma-edge {__version__}",
        "groups": "text",
        "size": "large",
    }


def test_two_exports_have_the_same_bytes(bundle: Path, exported: bytes, tmp_path: Path) -> None:
    export_litertlm(bundle, tmp_path / "again.litertlm")
    assert (tmp_path / "again.litertlm").read_bytes() == exported


def test_an_export_has_no_fault(bundle: Path, tmp_path: Path) -> None:
    for size in (None, "small"):
        export_litertlm(bundle, tmp_path / "model.litertlm", ExportOptions(size))
        assert check(tmp_path / "model.litertlm") == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.litertlm"]


@pytest.mark.parametrize(("size", "head"), [("large", "lm_head.weight"), ("small", "small_head.weight")])
def test_the_chosen_size_has_the_plain_names_and_its_own_weights(
    bundle: Path, tmp_path: Path, size: str, head: str
) -> None:
    path = tmp_path / "model.litertlm"
    export_litertlm(bundle, path, ExportOptions(size))
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
        export_litertlm(bundle, tmp_path / "model.litertlm", ExportOptions("huge"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [EMBEDDER, TEXT_DECODER, TOKENIZER, "chat_template.jinja"])
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

    monkeypatch.setattr("toolkit.litertlm.export_parts.hash_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_litertlm(bundle, tmp_path / "model.litertlm")
    assert list(tmp_path.iterdir()) == []


def test_a_container_that_reads_back_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rot(partial: Path) -> Header:
        with open(partial, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"y")
        return read_header(partial)

    monkeypatch.setattr("toolkit.litertlm.container.read_header", rot)
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

    monkeypatch.setattr("toolkit.litertlm.container.require_room", full)
    with pytest.raises(EnvironmentFault):
        export_litertlm(bundle, tmp_path / "model.litertlm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385])
def test_a_section_ends_exactly_where_its_bytes_end(tmp_path: Path, size: int) -> None:
    content = bytes(range(1, 252)) * (size // 251 + 1)
    first, second = content[:size], b"end"
    total = write_container(
        tmp_path / "a", [Section(schema.LLM_METADATA, (first,)), Section(HF_TOKENIZER, (second,))], {}
    )
    data = (tmp_path / "a").read_bytes()
    a, b = metadata_of(data).sections
    assert (a.begin, a.end) == (16384, 16384 + size)
    assert [s.items["sha256"] for s in (a, b)] == [hashlib.sha256(content).hexdigest() for content in (first, second)]
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
    assert tables.unpack_container_metadata(schema.pack_container_metadata(metadata), "test") == metadata


def test_a_header_that_the_engine_would_not_read_is_refused(tmp_path: Path) -> None:
    section = Section(schema.LLM_METADATA, (b"x",))
    write_container(tmp_path / "a", [section], {"long": "x" * 15000})
    assert read_header(tmp_path / "a").metadata.sections[0].begin == 16384
    with pytest.raises(BundleError, match=r"header: found 16,\d+ bytes, wanted at most 16,384, which LiteRT-LM reads"):
        write_container(tmp_path / "b", [section], {"long": "x" * 16384})
    assert not (tmp_path / "b").exists()


def test_an_entry_of_zeros_alone_stays_when_the_header_gets_its_hash(tmp_path: Path) -> None:
    entries = {"checkpoint": "0" * 64, "note": "0" * 128}
    write_container(tmp_path / "a", [Section(schema.LLM_METADATA, (b"x",))], entries, signer=lambda _: b"s" * 64)
    system = dict(read_header(tmp_path / "a").metadata.system)
    assert {key: system[key] for key in entries} == entries
    assert (system["signature"], system["header_sha256"] != "0" * 64) == ((b"s" * 64).hex(), True)


def test_a_file_that_another_program_writes_meanwhile_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"

    def write(_: Path) -> None:
        path.write_text("notes")

    with pytest.raises(UsageError, match=r"model\.litertlm: found a file that is not a \.litertlm"):
        export_litertlm(bundle, path, accept=write)
    assert (path.read_text(), os.listdir(tmp_path)) == ("notes", ["model.litertlm"])


# --- the lock --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose lock is longer than any header may be, as that of a mix of types is."""
    path = tmp_path_factory.mktemp("locked") / "bundle"
    write_bundle(path, lambda directory: with_lock(fill(directory), rules=300))
    assert (path / "lock.json").stat().st_size > tables.MAX_HEADER_BYTES
    return path


def test_the_lock_of_a_mix_has_a_section_of_its_own(locked: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    export_litertlm(locked, path)
    assert check(path) == []
    wanted = replace(
        read_bundle_lock(locked), export=LockedExport("large", ("text",), "gemma3n", None, "cpu", sampling=None)
    )
    assert read_lock(path, read_header(path).metadata) == wanted
    data = path.read_bytes()
    section = metadata_of(data).sections[1]
    assert (section.type, section.items["name"], section.label) == ("GenericBinaryData", "lock", "lock")
    assert data[section.begin : section.end] == lock_line(wanted).encode()


def test_a_lock_in_the_header_is_read_as_versions_before_0_2_0_wrote_it(locked: Path, tmp_path: Path) -> None:
    lock = replace(read_bundle_lock(locked), recipes={})
    section = Section(schema.LLM_METADATA, (b"x",))
    write_container(tmp_path / "a", [section], {"lock": lock_line(lock)})
    assert read_lock(tmp_path / "a", read_header(tmp_path / "a").metadata) == lock
    write_container(tmp_path / "b", [section], {})
    assert read_lock(tmp_path / "b", read_header(tmp_path / "b").metadata) is None


@pytest.mark.parametrize(
    ("content", "fault"), [(b"{}", "format"), (b"x" * (MAX_LOCK_BYTES + 1), "section lock")], ids=["empty", "long"]
)
def test_a_section_that_is_no_lock_is_a_fault(tmp_path: Path, content: bytes, fault: str) -> None:
    lock = Section(tables.BINARY_DATA, (content,), items={"name": "lock"})
    write_container(tmp_path / "a.litertlm", [Section(schema.LLM_METADATA, (b"x",)), lock], {})
    assert fault in {item.fault for item in check(tmp_path / "a.litertlm")}


# --- towers ----------------------------------------------------------------------------------------------------------

VISION_SECTIONS = ["tf_lite_vision_encoder", "tf_lite_vision_adapter"]
AUDIO_SECTIONS = ["tf_lite_audio_encoder_hw", "tf_lite_audio_adapter", "tf_lite_end_of_audio"]
TEMPLATE = "{{ bos_token }}"


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("towers") / "bundle"
    write_bundle(path, fill_with_towers)
    return path


def exported_with(towers: Path, path: Path, **options: Any) -> bytes:
    result = export_litertlm(towers, path, ExportOptions(**options))
    assert check(path) == []
    data = path.read_bytes()
    assert metadata_of(data).system["groups"] == ",".join(result.groups)
    return data


def model_of(data: bytes) -> LlmMetadata:
    return schema.unpack_llm_metadata(sections_of(data)["LlmMetadataProto"], "test")


def test_every_group_of_a_bundle_is_exported_behind_the_text(towers: Path, tmp_path: Path, exported: bytes) -> None:
    data = exported_with(towers, tmp_path / "a")
    labels = [section.label for section in metadata_of(data).sections]
    text = [section.label for section in metadata_of(exported).sections]
    assert labels == [*text, *VISION_SECTIONS, *AUDIO_SECTIONS]
    assert all(section.begin % 16384 == 0 for section in metadata_of(data).sections)
    assert exported_with(towers, tmp_path / "again") == data


@pytest.mark.parametrize(
    ("groups", "sections"),
    [
        (("text",), []),
        (("text", "vision"), VISION_SECTIONS),
        (("audio", "per_layer_embedding", "text"), AUDIO_SECTIONS),
    ],
)
def test_groups_that_are_not_wanted_are_left_out(
    towers: Path, tmp_path: Path, groups: tuple[str, ...], sections: list[str]
) -> None:
    data = exported_with(towers, tmp_path / "a", groups=groups)
    assert [section.label for section in metadata_of(data).sections][5:] == sections
    model = model_of(data)
    assert (model.image is not None, model.sound is not None) == ("vision" in groups, "audio" in groups)
    assert model.model_type == ("generic_model" if sections else "gemma3n")


def activations(data: bytes) -> dict[str, str | None]:
    """What each section asks a GPU to compute with."""
    return {section.label: section.items.get(schema.ACTIVATION_TYPE) for section in metadata_of(data).sections}


def test_only_the_encoders_of_towers_ask_for_float32_on_a_gpu(towers: Path, tmp_path: Path) -> None:
    asked = activations(exported_with(towers, tmp_path / "a"))
    assert {label for label, kind in asked.items() if kind == "fp32"} == {schema.VISION_ENCODER, schema.AUDIO_ENCODER}
    assert set(asked.values()) == {"fp32", None}


@pytest.mark.parametrize("kind", ["fp16", "fp32"])
def test_every_graph_asks_for_the_activations_that_are_wanted(towers: Path, tmp_path: Path, kind: Activations) -> None:
    asked = activations(exported_with(towers, tmp_path / "a", activations=kind))
    graphs = {schema.EMBEDDER, schema.PREFILL_DECODE, schema.PER_LAYER_EMBEDDER, *TOWERS}
    assert {label for label, found in asked.items() if found == kind} == graphs
    assert {found for label, found in asked.items() if label not in graphs} == {None}


@pytest.mark.full
def test_norms_are_composites_for_a_gpu_alone(multimodal_bundle: Path, tmp_path: Path) -> None:
    found: dict[str, dict[str, set[str]]] = {}
    for target in TARGETS:
        data = exported_with(multimodal_bundle, tmp_path / target, target=target)
        found[target] = {
            section.label: {
                op.builtin
                for graph in read_tflite(tmp_path / target, (section.begin, section.end)).model.subgraphs
                for op in graph.operators
            }
            for section in metadata_of(data).sections
            if section.type == tables.TFLITE_MODEL
        }
    composite = {label for label, builtins in found["gpu"].items() if "STABLEHLO_COMPOSITE" in builtins}
    encoders_and_adapters = set(TOWERS) - {schema.END_OF_AUDIO}
    assert composite == {schema.PREFILL_DECODE, *encoders_and_adapters}
    assert not any("STABLEHLO_COMPOSITE" in builtins for builtins in found["cpu"].values())


def test_other_targets_are_wrong_use() -> None:
    with pytest.raises(UsageError, match="target: found npu, wanted cpu or gpu"):
        ExportOptions(target="npu")  # type: ignore[arg-type]


def test_other_activations_are_wrong_use() -> None:
    with pytest.raises(UsageError, match="found bf16, wanted fp16 or fp32"):
        ExportOptions(activations="bf16")  # type: ignore[arg-type]


def test_other_model_types_are_wrong_use() -> None:
    with pytest.raises(UsageError, match="model type: found gemma, wanted gemma3n or gemma4 or generic_model"):
        ExportOptions(model_type="gemma")  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [True, False])
def test_a_model_type_without_images_and_sounds_is_wrong_use_for_a_file_with_them(
    tmp_path: Path, *, template: bool
) -> None:
    def fill_it(directory: Path) -> BundleDraft:
        draft = fill_with_towers(directory)
        if not template:
            (directory / "chat_template.jinja").unlink()
        return draft

    write_bundle(tmp_path / "bundle", fill_it)
    with pytest.raises(UsageError, match=r"model type: found gemma4 for vision and audio, .* --groups text"):
        export_litertlm(tmp_path / "bundle", tmp_path / "a", ExportOptions(model_type="gemma4"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_group_that_the_bundle_lacks_is_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"found no group vision, wanted one of .* --groups text,vision"):
        export_litertlm(bundle, tmp_path / "a", ExportOptions(groups=("text", "vision")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_type", ["generic_model", "gemma3n"])
def test_each_graph_of_a_tower_has_the_one_signature_that_the_engine_runs(
    towers: Path, tmp_path: Path, model_type: str
) -> None:
    path = tmp_path / "a"
    places = {s.label: s for s in metadata_of(exported_with(towers, path, model_type=model_type)).sections}
    graphs = {label: read_tflite(path, (places[label].begin, places[label].end)) for label in places if label in TOWERS}
    assert {label: content.model.signatures for label, content in graphs.items()} == TOWERS
    for name, output in (("encode", (1, 2)), ("adapt", (1, 2, 8))):
        label = "tf_lite_audio_encoder_hw" if name == "encode" else "tf_lite_audio_adapter"
        graph = graphs[label].graph(name)
        (found,) = (graph.tensors[i].shape for key, i in graph.outputs.items() if key in ("mask", "embeddings"))
        assert found == output, "that of the longest sounds"


TOWERS = {
    "tf_lite_vision_encoder": ("encode",),
    "tf_lite_vision_adapter": ("adapt",),
    "tf_lite_audio_encoder_hw": ("encode",),
    "tf_lite_audio_adapter": ("adapt",),
    "tf_lite_end_of_audio": ("end_of_audio",),
}


def test_a_generic_model_is_told_all_that_transformers_does_to_images_and_sounds(towers: Path, tmp_path: Path) -> None:
    model = model_of(exported_with(towers, tmp_path / "a"))
    assert model.image == ImageMetadata("<3>", "<36>", "<37>", "\n\n", "", 6, 6)
    assert model.sound is not None and model.sound.mel is not None
    assert replace(model.sound, mel=None) == SoundMetadata("<4>", "<38>", "<39>", "\n\n", "", None)
    found, wanted = asdict(model.sound.mel), asdict(MelMetadata(AUDIO.mel_bins))
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found["mel_floor"] == pytest.approx(-11.5129, abs=1e-4)
    assert (found["mel_high_hz"], found["input_scale"], found["normalize_mel"]) == (7600, 1, False)


def test_gemma3n_is_told_its_tokens_and_the_size_of_images(towers: Path, tmp_path: Path) -> None:
    model = model_of(exported_with(towers, tmp_path / "a", model_type="gemma3n"))
    assert model.image == ImageMetadata("<3>", "<36>", "", "", "", 6, 6)
    assert model.sound == SoundMetadata("<4>", "<38>", "", "", "", None)
    assert model.jinja_prompt_template == TEMPLATE


def test_newlines_behind_media_come_from_the_template_and_without_one_from_the_engine(tmp_path: Path) -> None:
    write_bundle(tmp_path / "with", fill_with_towers)
    model = model_of(exported_with(tmp_path / "with", tmp_path / "a"))
    text = jinja2.Template(model.jinja_prompt_template or "").render(bos_token="a<37>b<39><37>")
    assert text == "a<37>\n\nb<39>\n\n<37>\n\n"

    def without(directory: Path) -> BundleDraft:
        draft = fill_with_towers(directory)
        (directory / "chat_template.jinja").unlink()
        return draft

    write_bundle(tmp_path / "without", without)
    model = model_of(exported_with(tmp_path / "without", tmp_path / "b"))
    assert model.jinja_prompt_template is None
    assert model.image is not None and model.sound is not None
    assert (model.image.suffix, model.sound.suffix) == ("\n\n", "\n\n")


def test_sounds_that_cannot_fill_their_places_are_not_exported(tmp_path: Path) -> None:
    def short(directory: Path) -> BundleDraft:
        fill_with_towers(directory)
        audio = replace(TOWERS_DRAFT.groups["audio"], runtime=replace(AUDIO, frame_lengths=(4,)))
        return replace(TOWERS_DRAFT, groups={**TOWERS_DRAFT.groups, "audio": audio})

    write_bundle(tmp_path / "bundle", short)
    with pytest.raises(BundleError, match="longest audio length: found 4 mel frames, wanted 8"):
        export_litertlm(tmp_path / "bundle", tmp_path / "a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", [name for files in TOWER_FILES.values() for name in files])
def test_a_damaged_tower_is_not_exported(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path / "bundle", fill_with_towers)
    with open(tmp_path / "bundle" / name, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(BundleError, match=f"{name}: found sha256"):
        export_litertlm(tmp_path / "bundle", tmp_path / "a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("model_type", ["generic_model", "gemma3n"])
def test_metadata_of_towers_survive_a_round_trip(model_type: str) -> None:
    generic = model_type == "generic_model"
    mel = MelMetadata(16, pre_emphasis_factor=0.5, mel_low_hz=20.0, mel_high_hz=8000.0, mel_floor=-8.0)
    around = ("<a.b|c>", "\n\n", "\n") if generic else ("", "", "")
    metadata = LlmMetadata(
        *((2,), ((1,),), (0,), 32, None, model_type),
        image=ImageMetadata("<b>", "<e>", *around, 64, 64),
        sound=SoundMetadata((7,), (8,), *around, mel if generic else None),
    )
    assert schema.unpack_llm_metadata(schema.pack_llm_metadata(metadata), "test") == metadata
