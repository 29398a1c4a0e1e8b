"""The tables of a .litertlm file (docs/formats/litertlm.md) as records; the only user of litert-lm-builder."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from litert_lm_builder import litertlm_core as core  # type: ignore[import-untyped]
from litert_lm_builder import litertlm_header_schema_py_generated as fb
from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2  # type: ignore[import-untyped]

from toolkit.errors import BundleError

MAGIC: bytes = core.HEADER_MAGIC_BYTES
VERSION: tuple[int, int, int] = (
    core.LITERTLM_MAJOR_VERSION,
    core.LITERTLM_MINOR_VERSION,
    core.LITERTLM_PATCH_VERSION,
)
HEADER_END_OFFSET: int = core.HEADER_END_LOCATION_BYTE_OFFSET
METADATA_OFFSET: int = core.HEADER_BEGIN_BYTE_OFFSET

LLM_METADATA, TFLITE_MODEL, HF_TOKENIZER = "LlmMetadataProto", "TFLiteModel", "HF_Tokenizer_Zlib"
TOKENIZERS = (HF_TOKENIZER, "SP_Tokenizer")
MODEL_TYPE = "model_type"
PREFILL_DECODE, EMBEDDER, PER_LAYER_EMBEDDER = (
    "tf_lite_prefill_decode",
    "tf_lite_embedder",
    "tf_lite_per_layer_embedder",
)

MAX_ITEMS = 4096
"""More sections, or more entries of one, than any container has: stops a lying length."""

Token = tuple[int, ...] | str
"""One token or a sequence by ids, or a text that the tokenizer turns into one."""


@dataclass(frozen=True, slots=True)
class SectionRecord:
    """Bytes [begin, end) of the file, what they are (a name of AnySectionDataType), and further entries."""

    type: str
    begin: int
    end: int
    items: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How errors call it: the model type where there is one."""
        return self.items.get(MODEL_TYPE, self.type)


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """The flatbuffer at the head of the file: entries for the whole, and its sections."""

    system: Mapping[str, str]
    sections: tuple[SectionRecord, ...]


@dataclass(frozen=True, slots=True)
class LlmMetadata:
    """What the engine must know of the language model."""

    start_token: Token | None
    stop_tokens: tuple[Token, ...]
    pad_token: Token | None
    max_num_tokens: int
    jinja_prompt_template: str | None
    model_type: str = "gemma3n"


def pack_container_metadata(metadata: ContainerMetadata) -> bytes:
    """The flatbuffer; its length does not depend on the offsets, as long as none is 0."""
    assert all(0 < section.begin <= section.end for section in metadata.sections)
    root = fb.LiteRTLMMetaDataT()
    root.systemMetadata = fb.SystemMetadataT()
    root.systemMetadata.entries = _pairs(metadata.system)
    root.sectionMetadata = fb.SectionMetadataT()
    root.sectionMetadata.objects = [_section(record) for record in metadata.sections]
    builder = flatbuffers.Builder(4096)
    builder.Finish(root.Pack(builder))
    return bytes(builder.Output())


def unpack_container_metadata(data: bytes, what: str) -> ContainerMetadata:
    """Read the flatbuffer of a stranger; BundleError when it is none."""
    try:
        root = fb.LiteRTLMMetaData.GetRootAs(data)
        system, sections = root.SystemMetadata(), root.SectionMetadata()
        return ContainerMetadata(
            system={} if system is None else _entries(system.EntriesLength(), system.Entries),
            sections=() if sections is None else tuple(_section_records(sections)),
        )
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise BundleError(f"{what} header", found=f"{type(error).__name__}: {error}", wanted="a flatbuffer") from error


def pack_llm_metadata(metadata: LlmMetadata) -> bytes:
    """The protobuf of the LlmMetadataProto section, the same bytes every time."""
    proto = llm_metadata_pb2.LlmMetadata()
    for target, token in ((proto.start_token, metadata.start_token), (proto.pad_token, metadata.pad_token)):
        if token is not None:
            _set_token(target, token)
    for token in metadata.stop_tokens:
        _set_token(proto.stop_tokens.add(), token)
    # The engine's GREEDY sampler fails at run time; the best of one candidate is the same.
    proto.sampler_params.type = sampler_params_pb2.SamplerParameters.TOP_P
    proto.sampler_params.k = 1
    proto.sampler_params.p = 1.0
    proto.sampler_params.temperature = 1.0
    proto.sampler_params.seed = 0
    proto.max_num_tokens = metadata.max_num_tokens
    getattr(proto.llm_model_type, metadata.model_type).SetInParent()
    if metadata.jinja_prompt_template is not None:
        proto.jinja_prompt_template = metadata.jinja_prompt_template
    proto.supports_thinking = False
    proto.supports_function_calling = False
    return bytes(proto.SerializeToString(deterministic=True))


def unpack_llm_metadata(data: bytes, what: str) -> LlmMetadata:
    """Read the protobuf of a stranger; BundleError when it is none."""
    proto = llm_metadata_pb2.LlmMetadata()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise BundleError(f"{what} {LLM_METADATA}", found=str(error), wanted="a protobuf LlmMetadata") from error
    return LlmMetadata(
        start_token=_token(proto.start_token),
        stop_tokens=tuple(token for token in map(_token, proto.stop_tokens) if token is not None),
        pad_token=_token(proto.pad_token),
        max_num_tokens=proto.max_num_tokens,
        jinja_prompt_template=proto.jinja_prompt_template if proto.HasField("jinja_prompt_template") else None,
        model_type=proto.llm_model_type.WhichOneof("model_type") or "generic_model",
    )


def _section(record: SectionRecord) -> Any:
    section = fb.SectionObjectT()
    section.items = _pairs(record.items)
    section.beginOffset = record.begin
    section.endOffset = record.end
    section.dataType = getattr(fb.AnySectionDataType, record.type)
    return section


def _pairs(items: Mapping[str, str]) -> list[Any]:
    pairs = []
    for key, text in sorted(items.items()):
        pair = fb.KeyValuePairT()
        pair.key = key
        pair.valueType = fb.VData.StringValue
        pair.value = fb.StringValueT()
        pair.value.value = text
        pairs.append(pair)
    return pairs


def _section_records(sections: Any) -> Sequence[SectionRecord]:
    names = {value: name for name, value in vars(fb.AnySectionDataType).items() if isinstance(value, int)}
    records = []
    for i in range(_bounded(sections.ObjectsLength())):
        section = sections.Objects(i)
        kind = names.get(section.DataType(), f"unknown type {section.DataType()}")
        items = _entries(section.ItemsLength(), section.Items)
        records.append(SectionRecord(kind, section.BeginOffset(), section.EndOffset(), items))
    return records


def _entries(length: int, entry: Any) -> dict[str, str]:
    """String entries by key; entries of other types are nothing that we use."""
    entries: dict[str, str] = {}
    for i in range(_bounded(length)):
        pair = entry(i)
        if pair.ValueType() == fb.VData.StringValue and pair.Key() is not None:
            value = fb.StringValue()
            value.Init(pair.Value().Bytes, pair.Value().Pos)
            key = pair.Key().decode()
            if key in entries:
                raise ValueError(f"entry {key!r} twice")
            entries[key] = (value.Value() or b"").decode()
    return entries


def _bounded(length: int) -> int:
    if length > MAX_ITEMS:
        raise ValueError(f"{length} entries")
    return length


def _set_token(target: Any, token: Token) -> None:
    if isinstance(token, str):
        target.token_str = token
    else:
        target.token_ids.ids.extend(token)


def _token(union: Any) -> Token | None:
    kind = union.WhichOneof("token_union")
    if kind is None:
        return None
    return str(union.token_str) if kind == "token_str" else tuple(union.token_ids.ids)
