"""The checker of .litertlm files: one broken file per fault, each found and named."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from bundles import decoder, decoder_signatures, embedder, fill, fill_with_towers, stand_in, write_graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.bundle.manifest import SamplingRecord
from toolkit.bundle.write import write_bundle
from toolkit.check import check, unknown_graphs
from toolkit.litertlm import schema, tables
from toolkit.litertlm.container import Section, write_container
from toolkit.litertlm.export import export_litertlm
from toolkit.litertlm.schema import ImageMetadata, LlmMetadata, MelMetadata, SoundMetadata
from toolkit.litertlm.tables import ContainerMetadata, SectionRecord

DECODER, EMBEDDER, PER_LAYER = schema.PREFILL_DECODE, schema.EMBEDDER, schema.PER_LAYER_EMBEDDER


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("whole")
    write_bundle(directory / "bundle", fill)
    export_litertlm(directory / "bundle", directory / "model.litertlm")
    return (directory / "model.litertlm").read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.litertlm"


def found(path: Path, data: bytes | None = None) -> list[str]:
    if data is not None:
        path.write_bytes(data)
    faults = check(path)
    assert all(fault.file == path.name for fault in faults)
    return [fault.fault for fault in faults]


def with_sections(data: bytes, edit: Callable[[list[SectionRecord]], object]) -> bytes:
    """The same file with other entries for its sections; the header keeps its room of 16 KiB."""
    (end,) = struct.unpack_from("<Q", data, 24)
    metadata = tables.unpack_container_metadata(data[32:end], "test")
    sections = list(metadata.sections)
    edit(sections)
    packed = schema.pack_container_metadata(ContainerMetadata(metadata.system, tuple(sections)))
    header = data[:24] + struct.pack("<Q", 32 + len(packed)) + packed
    return header.ljust(16384, b"\0") + data[16384:]


def put(index: int, **fields: Any) -> Callable[[list[SectionRecord]], object]:
    def edit(sections: list[SectionRecord]) -> None:
        sections[index] = replace(sections[index], **fields)

    return edit


def rebuilt(path: Path, data: bytes, **contents: bytes | None) -> list[str]:
    """The faults of a file with other section contents by label; None leaves the section out."""
    (end,) = struct.unpack_from("<Q", data, 24)
    sections = [
        Section(s.type, (data[s.begin : s.end],), s.items.get(tables.MODEL_TYPE))
        for s in tables.unpack_container_metadata(data[32:end], "test").sections
    ]
    changed = {label: None if content is None else (content,) for label, content in contents.items()}
    kept = [(s, changed.get(s.model_type or s.type, s.content)) for s in sections]
    write_container(path, [replace(s, content=content) for s, content in kept if content is not None], {})
    return found(path)


def graphs(tmp_path: Path, signatures: list[object]) -> bytes:
    write_graphs(tmp_path / "graph", signatures)  # type: ignore[arg-type]
    return (tmp_path / "graph").read_bytes()


def test_a_whole_file_has_no_fault(path: Path, whole: bytes) -> None:
    assert found(path, whole) == []


@pytest.mark.parametrize("size", [0, 7, 31])
def test_a_file_shorter_than_its_header_is_found(path: Path, whole: bytes, size: int) -> None:
    assert found(path, whole[:size]) == ["size"]


def test_another_magic_is_found(path: Path, whole: bytes) -> None:
    assert found(path, b"GGUF" + whole[4:]) == ["magic"]


def test_a_later_major_version_is_found(path: Path, whole: bytes) -> None:
    assert found(path, whole[:8] + b"\2" + whole[9:]) == ["version"]


@pytest.mark.parametrize("end", [0, 32, 2**63])
def test_a_header_that_ends_nowhere_is_found(path: Path, whole: bytes, end: int) -> None:
    assert found(path, whole[:24] + struct.pack("<Q", end) + whole[32:]) == ["header_end"]


def test_a_header_that_the_engine_would_not_read_is_found(path: Path, whole: bytes) -> None:
    """LiteRT-LM refuses a header of more than 16 KiB."""
    (end,) = struct.unpack_from("<Q", whole, 24)
    padding = bytes(16384 + 1 - end)
    longer = whole[:24] + struct.pack("<Q", 16384 + 1) + whole[32:end] + padding + whole[end:]
    path.write_bytes(longer)
    [fault] = check(path)
    assert (fault.fault, fault.found, fault.wanted) == ("header_end", "16385", "33 to 16384")


def test_a_header_whose_sections_share_their_entries_is_refused_soon(path: Path) -> None:
    """A small file would otherwise take minutes and gigabytes."""
    builder = flatbuffers.Builder(1 << 14)
    text = builder.CreateString("v")
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    value = builder.EndObject()
    pairs = []
    for number in range(100):
        key = builder.CreateString(f"k{number}")
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUint8Slot(1, 9, 0)
        builder.PrependUOffsetTRelativeSlot(2, value, 0)
        pairs.append(builder.EndObject())
    items = vector(builder, pairs)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, items, 0)
    section = builder.EndObject()
    sections = vector(builder, [section] * 1000)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, sections, 0)
    of_all = builder.EndObject()
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(1, of_all, 0)
    builder.Finish(builder.EndObject())
    data = bytes(builder.Output())
    header = b"LITERTLM" + struct.pack("<3I4xQ", 1, 7, 0, 32 + len(data)) + data
    path.write_bytes(header)
    [fault] = check(path)
    assert (fault.fault, "referenced too often" in fault.found) == ("header", True)


def vector(builder: flatbuffers.Builder, tables_: list[int]) -> int:
    builder.StartVector(4, len(tables_), 4)
    for table in reversed(tables_):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def test_a_header_that_is_no_flatbuffer_is_found(path: Path, whole: bytes) -> None:
    assert found(path, whole[:32] + b"\xff" * 64 + whole[96:]) == ["header"]


def test_a_file_cut_short_is_found_by_the_section_beyond_its_end(path: Path, whole: bytes) -> None:
    assert found(path, whole[:-1]) == [f"section {PER_LAYER}"]


def test_bytes_after_the_last_section_are_found(path: Path, whole: bytes) -> None:
    assert found(path, whole + b"\0") == ["size"]


def test_a_section_off_its_border_is_found(path: Path, whole: bytes) -> None:
    faults = found(path, with_sections(whole, put(0, begin=16385)))
    assert faults[0] == "section LlmMetadataProto"


def test_an_empty_section_is_found(path: Path, whole: bytes) -> None:
    faults = found(path, with_sections(whole, put(0, end=16384)))
    assert "section LlmMetadataProto" in faults


def test_a_section_that_overlaps_another_is_found(path: Path, whole: bytes) -> None:
    assert "section HF_Tokenizer_Zlib overlaps section LlmMetadataProto" in found(
        path, with_sections(whole, put(0, end=32769))
    )


def test_a_section_inside_the_header_is_found(path: Path, whole: bytes) -> None:
    def into_header(sections: list[SectionRecord]) -> None:
        sections.append(SectionRecord("GenericBinaryData", 1, 16))

    assert "section GenericBinaryData overlaps the header" in found(path, with_sections(whole, into_header))


def test_two_sections_over_the_same_bytes_are_found(path: Path, whole: bytes) -> None:
    def twice(sections: list[SectionRecord]) -> None:
        sections.append(replace(sections[0], type="GenericBinaryData"))

    faults = found(path, with_sections(whole, twice))
    assert len(faults) == 1
    assert faults[0].startswith("bytes 16384 to ")


def test_a_section_that_occurs_twice_is_found(path: Path, whole: bytes) -> None:
    def twice(sections: list[SectionRecord]) -> None:
        sections.append(sections[2])

    assert f"section {EMBEDDER}" in found(path, with_sections(whole, twice))


@pytest.mark.parametrize("label", [schema.LLM_METADATA, EMBEDDER, DECODER, PER_LAYER])
def test_a_missing_section_is_named(path: Path, whole: bytes, label: str) -> None:
    assert rebuilt(path, whole, **{label: None}) == [f"section {label}"]


def test_a_missing_tokenizer_is_named(path: Path, whole: bytes) -> None:
    assert rebuilt(path, whole, HF_Tokenizer_Zlib=None) == ["tokenizer"]


def llm_metadata(**fields: object) -> bytes:
    values = dict(start_token=(2,), stop_tokens=((1,),), pad_token=(0,), max_num_tokens=32, jinja_prompt_template=None)
    return schema.pack_llm_metadata(LlmMetadata(**{**values, **fields}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xff\xff", ""),
        (llm_metadata(stop_tokens=()), "stop_tokens"),
        (llm_metadata(start_token=None), "start_token"),
        (llm_metadata(max_num_tokens=33), "max_num_tokens"),
        (llm_metadata(max_num_tokens=0), "max_num_tokens"),
        (llm_metadata(stop_tokens=((40,),)), "token id"),
        (llm_metadata(start_token=(-1,)), "token id"),
        (llm_metadata(sampler="GREEDY"), "sampler_params type"),
        (llm_metadata(sampler="TOP_K"), "sampler_params type"),
        (llm_metadata(sampling=SamplingRecord(1.0, 0, 1.0)), "sampler_params k"),
        (llm_metadata(sampling=SamplingRecord(1.0, 1, 1.5)), "sampler_params p"),
        (llm_metadata(sampling=SamplingRecord(1.0, 1, -0.5)), "sampler_params p"),
        (llm_metadata(sampling=SamplingRecord(-1.0, 1, 1.0)), "sampler_params temperature"),
    ],
    ids=[
        "no protobuf", "no stop", "no start", "a long context", "no context", "a stop beyond", "a negative start",
        "greedy", "top-k", "no candidate", "p above 1", "p below 0", "a temperature below 0",
    ],
)  # fmt: skip
def test_metadata_that_do_not_fit_the_graphs_are_found(path: Path, whole: bytes, content: bytes, fault: str) -> None:
    assert rebuilt(path, whole, LlmMetadataProto=content) == [f"section LlmMetadataProto {fault}".strip()]


def test_tokens_by_their_text_are_no_fault(path: Path, whole: bytes) -> None:
    assert rebuilt(path, whole, LlmMetadataProto=llm_metadata(start_token="<bos>", stop_tokens=("<eos>",))) == []


def test_a_sampler_that_the_engine_chooses_is_no_fault(path: Path, whole: bytes) -> None:
    for content in (llm_metadata(sampler=None), llm_metadata(sampler="TYPE_UNSPECIFIED")):
        assert rebuilt(path, whole, LlmMetadataProto=content) == []


def tokenizer(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + zlib.compress(text)


GOOD_TOKENIZER = json.dumps({"model": {"vocab": {"a": 0}}}).encode()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"short", "length"),
        (tokenizer(GOOD_TOKENIZER, 2**60), "length"),
        (tokenizer(b"", 64 * 2**20 + 1), "length"),
        (tokenizer(GOOD_TOKENIZER, len(GOOD_TOKENIZER) - 1), "length"),
        (tokenizer(GOOD_TOKENIZER, len(GOOD_TOKENIZER) + 1), "length"),
        (tokenizer(GOOD_TOKENIZER)[:-5], "length"),
        (tokenizer(GOOD_TOKENIZER) + b"x", "length"),
        (struct.pack("<Q", 100) + b"not zlib", ""),
        (tokenizer(bytes(10**6), 100), "length"),
        (tokenizer(b"{}"), "model vocab"),
        (tokenizer(b'{"model": {"vocab": {"a": 40}}}'), "token ids"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_found(path: Path, whole: bytes, content: bytes, fault: str) -> None:
    assert rebuilt(path, whole, HF_Tokenizer_Zlib=content) == [f"section HF_Tokenizer_Zlib {fault}".strip()]


def test_a_graph_that_is_no_flatbuffer_is_found(path: Path, whole: bytes) -> None:
    assert len(rebuilt(path, whole, **{EMBEDDER: b"GIF89a" * 10})) == 1


def test_a_graph_that_the_format_does_not_describe_is_a_whole_file(path: Path, whole: bytes) -> None:
    (end,) = struct.unpack_from("<Q", whole, 24)
    sections = [
        Section(s.type, (whole[s.begin : s.end],), s.items.get(tables.MODEL_TYPE))
        for s in tables.unpack_container_metadata(whole[32:end], "test").sections
    ]
    assert unknown_graphs(path) == ()
    write_container(path, [*sections, Section(tables.TFLITE_MODEL, (b"GIF89a" * 10,), "tf_lite_aux")], {})
    assert found(path) == ["section tf_lite_aux header"]
    assert unknown_graphs(path) == ("tf_lite_aux",)


def test_a_decoder_without_decode_is_found(path: Path, whole: bytes, tmp_path: Path) -> None:
    content = graphs(tmp_path, [s for s in decoder_signatures() if s.name.startswith("prefill")])
    assert rebuilt(path, whole, **{DECODER: content}) == [f"section {DECODER} signature decode"]


def test_a_decoder_without_a_short_prefill_is_found(path: Path, whole: bytes, tmp_path: Path) -> None:
    content = graphs(tmp_path, [decoder("prefill_17", 17, None), decoder("decode", 1, "lm_head.weight")])
    assert rebuilt(path, whole, **{DECODER: content}) == [f"section {DECODER} signatures"]


def test_a_name_that_the_engine_would_take_for_a_prefill_is_found(path: Path, whole: bytes, tmp_path: Path) -> None:
    plain = [s for s in decoder_signatures() if not s.name.startswith("small")]
    content = graphs(tmp_path, [*plain, decoder("prefill_small_4", 4, None)])
    assert rebuilt(path, whole, **{DECODER: content}) == [f"section {DECODER} signature prefill_small_4"]


def test_an_embedder_that_starts_with_another_signature_is_found(path: Path, whole: bytes, tmp_path: Path) -> None:
    content = graphs(tmp_path, [embedder(n, "embed", "embeddings", (1, n, 8)) for n in (4, 1)])
    assert rebuilt(path, whole, **{EMBEDDER: content}) == [f"section {EMBEDDER} first signature"]


def test_an_embedder_of_another_width_is_found(path: Path, whole: bytes, tmp_path: Path) -> None:
    content = graphs(tmp_path, [embedder(1, "ple", "per_layer_embeddings", (1, 1, 4, 3))])
    assert rebuilt(path, whole, **{PER_LAYER: content}) == [
        f"section {PER_LAYER} signature embed_1 output per_layer_embeddings"
    ]


# --- towers ----------------------------------------------------------------------------------------------------------

VISION_ENCODER, VISION_ADAPTER = schema.VISION_ENCODER, schema.VISION_ADAPTER
AUDIO_ENCODER, AUDIO_ADAPTER, END_OF_AUDIO = schema.AUDIO_ENCODER, schema.AUDIO_ADAPTER, schema.END_OF_AUDIO


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("towers")
    write_bundle(directory / "bundle", fill_with_towers)
    export_litertlm(directory / "bundle", directory / "model.litertlm")
    return (directory / "model.litertlm").read_bytes()


IMAGE = ImageMetadata("<3>", "<36>", "<37>", "", "", 6, 6)
SOUND = SoundMetadata("<4>", "<38>", "<39>", "", "", MelMetadata(3))


def media_metadata(image: ImageMetadata | None, sound: SoundMetadata | None, **fields: object) -> bytes:
    return llm_metadata(**{"model_type": "generic_model", **fields}, image=image, sound=sound)


def test_a_file_with_all_groups_has_no_fault(path: Path, towers: bytes) -> None:
    assert found(path, towers) == []
    assert rebuilt(path, towers, LlmMetadataProto=media_metadata(IMAGE, SOUND)) == []


@pytest.mark.parametrize("label", [VISION_ADAPTER, AUDIO_ADAPTER, END_OF_AUDIO])
def test_a_tower_without_one_of_its_sections_is_found(path: Path, towers: bytes, label: str) -> None:
    assert rebuilt(path, towers, **{label: None}) == [f"section {label}"]


@pytest.mark.parametrize(("label", "kind"), [(VISION_ENCODER, "images"), (AUDIO_ENCODER, "sounds")])
def test_a_tower_without_its_encoder_is_found(path: Path, towers: bytes, label: str, kind: str) -> None:
    faults = rebuilt(path, towers, **{label: None})
    assert faults[0] == f"section {label}"
    assert f"section LlmMetadataProto {kind}" in faults


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (media_metadata(None, SOUND), "section LlmMetadataProto images"),
        (media_metadata(IMAGE, None), "section LlmMetadataProto sounds"),
        (media_metadata(replace(IMAGE, placeholder=""), SOUND), "section LlmMetadataProto image placeholder"),
        (media_metadata(IMAGE, replace(SOUND, placeholder="")), "section LlmMetadataProto sound placeholder"),
        (media_metadata(replace(IMAGE, height=5), SOUND), f"section {VISION_ENCODER} signature encode input images"),
        (
            media_metadata(IMAGE, replace(SOUND, mel=MelMetadata(4))),
            f"section {AUDIO_ENCODER} signature encode input src_inputs",
        ),
        (
            media_metadata(replace(IMAGE, width=7), SOUND, model_type="gemma3n"),
            f"section {VISION_ENCODER} signature encode input images",
        ),
    ],
)
def test_metadata_that_do_not_fit_the_towers_are_found(path: Path, towers: bytes, content: bytes, fault: str) -> None:
    assert rebuilt(path, towers, LlmMetadataProto=content) == [fault]


def test_metadata_of_towers_that_are_not_there_are_found(path: Path, whole: bytes) -> None:
    assert rebuilt(path, whole, LlmMetadataProto=media_metadata(IMAGE, SOUND)) == [
        "section LlmMetadataProto images",
        "section LlmMetadataProto sounds",
    ]


FEATURES, HEARD = {"features": (1, 4, 5)}, {"features": (1, 2, 6), "mask": (1, 2)}
MEL = {"src_inputs": (1, 7, 3), "mask": (1, 7)}


@pytest.mark.parametrize(
    ("label", "signatures", "fault"),
    [
        (
            VISION_ENCODER,
            [stand_in(name, {"images": (1, 6, 6, 3)}, FEATURES) for name in ("encode", "encode_2")],
            "encode_2",
        ),
        (VISION_ENCODER, [stand_in("encode", {"pixels": (1, 6, 6, 3)}, FEATURES)], "encode input images"),
        (VISION_ADAPTER, [stand_in("adapt", FEATURES, {"embeddings": (1, 5, 9)})], "adapt output embeddings"),
        (VISION_ADAPTER, [stand_in("adapt", FEATURES, {"embeddings": (1, 4, 8)})], "adapt output embeddings"),
        (
            VISION_ADAPTER,
            [stand_in("adapt", {"features": (1, 4, 6)}, {"embeddings": (1, 5, 8)})],
            "adapt input features",
        ),
        (AUDIO_ENCODER, [stand_in("encode", {"src_inputs": (1, 7, 3)}, HEARD)], "encode input mask"),
        (AUDIO_ENCODER, [stand_in("encode", MEL, {"features": (1, 2, 6)})], "encode output mask"),
        (AUDIO_ADAPTER, [stand_in("adapt", HEARD, {"embeddings": (1, 3, 8)})], "adapt output embeddings"),
        (
            AUDIO_ADAPTER,
            [stand_in("adapt", {"features": (1, 2, 6)}, {"embeddings": (1, 2, 8)})],
            "adapt input mask",
        ),
        (END_OF_AUDIO, [stand_in("end_of_audio", {}, {"embeddings": (1, 2, 8)})], "end_of_audio output embeddings"),
        (
            END_OF_AUDIO,
            [stand_in("end_of_audio", {"ids": (1, 1)}, {"embeddings": (1, 1, 8)})],
            "end_of_audio input ids",
        ),
    ],
)
def test_graphs_of_a_tower_that_do_not_fit_are_found(
    path: Path, towers: bytes, tmp_path: Path, label: str, signatures: list[object], fault: str
) -> None:
    assert f"section {label} signature {fault}" in rebuilt(path, towers, **{label: graphs(tmp_path, signatures)})


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_edit_of_the_header_is_worse_than_a_fault(path: Path, whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    (end,) = struct.unpack_from("<Q", whole, 24)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    check(path)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_edit_of_a_section_is_worse_than_a_fault(path: Path, whole: bytes, data: st.DataObject) -> None:
    (end,) = struct.unpack_from("<Q", whole, 24)
    section = data.draw(st.sampled_from(tables.unpack_container_metadata(whole[32:end], "test").sections))
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(section.begin, section.end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    check(path)
