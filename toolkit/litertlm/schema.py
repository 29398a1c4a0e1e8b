"""What a .litertlm says of its model as records, and its header as bytes; the only user of litert-lm-builder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import flatbuffers  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from litert_lm_builder import litertlm_header_schema_py_generated as fb  # type: ignore[import-untyped]
from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2  # type: ignore[import-untyped]

from toolkit.base.errors import BundleError
from toolkit.bundle.manifest import SamplingRecord
from toolkit.bundle.thoughts import Channel
from toolkit.litertlm.gemma4 import CallSyntax
from toolkit.litertlm.tables import ContainerMetadata, SectionRecord
from toolkit.litertlm.tokenizer_section import HF_TOKENIZER
from toolkit.media import mel
from toolkit.media.mel import SAMPLE_RATE_HZ

LLM_METADATA = "LlmMetadataProto"
TOKENIZERS = (HF_TOKENIZER, "SP_Tokenizer")
ACTIVATION_TYPE = "prefer_activation_type"
PREFILL_DECODE, EMBEDDER, PER_LAYER_EMBEDDER = (
    "tf_lite_prefill_decode",
    "tf_lite_embedder",
    "tf_lite_per_layer_embedder",
)
VISION_ENCODER, VISION_ADAPTER = "tf_lite_vision_encoder", "tf_lite_vision_adapter"
AUDIO_ENCODER, AUDIO_ADAPTER, END_OF_AUDIO = (
    "tf_lite_audio_encoder_hw",
    "tf_lite_audio_adapter",
    "tf_lite_end_of_audio",
)
DRAFTER = "tf_lite_mtp_drafter"

MAX_LLM_METADATA_BYTES = 16 * 1024 * 1024
"""Far above any real file's; a limit, so that a wrong length does not fill the memory."""

Token = tuple[int, ...] | str
"""A sequence of token ids, or a text that the tokenizer converts to one."""

ModelType = Literal["gemma3n", "gemma4", "generic_model"]
"""The engine's model types that export writes; they differ in how images and sounds are prepared, and in how calls of
tools are written."""
MODEL_TYPES: tuple[ModelType, ...] = get_args(ModelType)

GENERIC_SINCE = "0.14.0"
"""The first version of the engine that supports the fields of generic_model."""


@dataclass(frozen=True, slots=True)
class MelMetadata:
    """How the engine converts a sound to mel frames; the defaults are as in transformers. The engine's field names."""

    num_mel_bins: int
    sample_rate_hz: int = SAMPLE_RATE_HZ
    num_channels: int = 1
    frame_length: int = mel.FRAME_SAMPLES
    hop_length: int = mel.HOP_SAMPLES
    fft_length: int = mel.FFT_SIZE
    input_scale: float = 1.0
    pre_emphasis_factor: float = mel.PRE_EMPHASIS
    mel_low_hz: float = mel.MIN_HZ
    mel_high_hz: float = mel.MAX_HZ
    mel_floor: float = math.log(mel.FLOOR)
    """The engine applies the floor after the logarithm."""
    normalize_mel: bool = False
    add_floor_to_mel_before_log: bool = False
    semicausal_padding: bool = False
    non_zero_hanning: bool = False
    periodic_hanning: bool = True


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """How an image is spelled in a prompt, and the height and width in pixels that its encoder takes.

    `placeholder`: what the chat template writes for the image. `prefix`, `suffix`: what the engine writes before
    `begin` and after the image. These three are empty for model type gemma3n, for which they are built into the engine.
    """

    begin: Token | None
    end: Token | None
    placeholder: str
    prefix: str
    suffix: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class SoundMetadata:
    """How a sound is spelled in a prompt (see `ImageMetadata`); `mel`: None for gemma3n, for which it is built in."""

    begin: Token | None
    end: Token | None
    placeholder: str
    prefix: str
    suffix: str
    mel: MelMetadata | None


MOST_LIKELY = SamplingRecord(temperature=1.0, top_k=1, top_p=1.0)
TOP_P = "TOP_P"
"""The one type of sampler that the engine has."""
SAMPLERS = (TOP_P, "TYPE_UNSPECIFIED")
"""The types for which it takes that one."""


@dataclass(frozen=True, slots=True)
class LlmMetadata:
    """What the engine must know about the language model."""

    start_token: Token | None
    stop_tokens: tuple[Token, ...]
    pad_token: Token | None
    max_num_tokens: int
    jinja_prompt_template: str | None
    model_type: str = "gemma3n"
    image: ImageMetadata | None = None
    sound: SoundMetadata | None = None
    sampling: SamplingRecord = MOST_LIKELY
    """The sampling for apps that set no sampler."""
    sampler: str | None = TOP_P
    """The type of the engine's sampler that does so, by its name; None if the file leaves everything to the engine."""
    supports_function_calling: bool = False
    supports_thinking: bool = False
    calls: CallSyntax | None = None
    thoughts: Channel | None = None
    min_runtime_version: str = ""
    """The first version of the engine that runs the file as intended; empty for any version."""


def pack_container_metadata(metadata: ContainerMetadata) -> bytes:
    """Encode the metadata as a flatbuffer, whose length does not depend on the offsets while none is 0."""
    assert all(0 < section.begin <= section.end for section in metadata.sections)
    root = fb.LiteRTLMMetaDataT()
    root.systemMetadata = fb.SystemMetadataT()
    root.systemMetadata.entries = _pairs(metadata.system)
    root.sectionMetadata = fb.SectionMetadataT()
    root.sectionMetadata.objects = [_section(record) for record in metadata.sections]
    builder = flatbuffers.Builder(4096)
    builder.Finish(root.Pack(builder))
    return bytes(builder.Output())


def pack_llm_metadata(metadata: LlmMetadata) -> bytes:
    """Encode the metadata as the protobuf of the LlmMetadataProto section: equal metadata give equal bytes."""
    proto = llm_metadata_pb2.LlmMetadata()
    for target, token in ((proto.start_token, metadata.start_token), (proto.pad_token, metadata.pad_token)):
        if token is not None:
            _set_token(target, token)
    for token in metadata.stop_tokens:
        _set_token(proto.stop_tokens.add(), token)
    if metadata.sampler is not None:
        _set_sampler(proto.sampler_params, metadata.sampler, metadata.sampling)
    proto.max_num_tokens = metadata.max_num_tokens
    model_type = getattr(proto.llm_model_type, metadata.model_type)
    model_type.SetInParent()
    for media in (metadata.image, metadata.sound):
        if media is not None:
            _set_media(model_type, media)
    if metadata.model_type == "generic_model":
        _set_generic(model_type, metadata)
    for item in fields(CallSyntax) if metadata.calls is not None else ():
        setattr(model_type, item.name, getattr(metadata.calls, item.name))
    if metadata.thoughts is not None:
        thoughts = metadata.thoughts
        proto.channels.add(
            channel_name=thoughts.name, start=thoughts.start, end=thoughts.end, is_reasoning_channel=True
        )
    if metadata.jinja_prompt_template is not None:
        proto.jinja_prompt_template = metadata.jinja_prompt_template
    proto.supports_thinking = metadata.supports_thinking
    proto.supports_function_calling = metadata.supports_function_calling
    if metadata.min_runtime_version:
        proto.min_runtime_version = metadata.min_runtime_version
    return bytes(proto.SerializeToString(deterministic=True))


def unpack_llm_metadata(data: bytes, file: Path | str | None = None) -> LlmMetadata:
    """Read a protobuf from an untrusted file; BundleError if it is not one."""
    proto = llm_metadata_pb2.LlmMetadata()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise BundleError(LLM_METADATA, file=file, found=f"not a protobuf LlmMetadata ({error})") from error
    return LlmMetadata(
        start_token=_token(proto.start_token),
        stop_tokens=tuple(token for token in map(_token, proto.stop_tokens) if token is not None),
        pad_token=_token(proto.pad_token),
        max_num_tokens=proto.max_num_tokens,
        jinja_prompt_template=proto.jinja_prompt_template if proto.HasField("jinja_prompt_template") else None,
        sampling=_sampling(proto.sampler_params),
        sampler=_sampler(proto.sampler_params) if proto.HasField("sampler_params") else None,
        supports_function_calling=proto.supports_function_calling,
        supports_thinking=proto.supports_thinking,
        thoughts=_thoughts(proto),
        min_runtime_version=proto.min_runtime_version,
        **_model_type(proto.llm_model_type),
    )


def _set_sampler(target: Any, sampler: str, sampling: SamplingRecord) -> None:
    target.type = sampler_params_pb2.SamplerParameters.Type.Value(sampler)
    target.k = sampling.top_k
    target.p = sampling.top_p
    target.temperature = sampling.temperature
    target.seed = 0


def _sampler(proto: Any) -> str:
    """The name of a sampler's type, or its number if this version does not know it."""
    types = sampler_params_pb2.SamplerParameters.Type
    return str(types.Name(proto.type)) if proto.type in types.values() else f"type {proto.type}"


def _sampling(proto: Any) -> SamplingRecord:
    """The sampling in a file, with its float32 numbers as the decimal numbers that they were written from."""
    return SamplingRecord(round(proto.temperature, 6), proto.k, round(proto.p, 6))


def _thoughts(proto: Any) -> Channel | None:
    channels = [
        Channel(item.channel_name, item.start, item.end) for item in proto.channels if item.is_reasoning_channel
    ]
    return channels[0] if channels else None


def _model_type(union: Any) -> dict[str, Any]:
    """The fields of LlmMetadata that depend on the model type; images and sounds only for types that export writes."""
    name = union.WhichOneof("model_type") or "generic_model"
    found: dict[str, Any] = {"model_type": name}
    if name not in MODEL_TYPES:
        return found
    model = getattr(union, name)
    if name == "gemma4":
        calls = CallSyntax(*(getattr(model, item.name) for item in fields(CallSyntax)))
        return {**found, "calls": calls if calls.code_fence_start else None}
    generic = name == "generic_model"
    if model.image_enabled if generic else model.image_tensor_height:
        found["image"] = ImageMetadata(
            *_spelling(model, "image", generic=generic), model.image_tensor_height, model.image_tensor_width
        )
    if model.audio_enabled if generic else model.HasField("start_of_audio_token"):
        values = {item.name: getattr(model, f"audio_{item.name}") for item in fields(MelMetadata)} if generic else {}
        mel_metadata = MelMetadata(**values) if generic else None
        found["sound"] = SoundMetadata(*_spelling(model, "audio", generic=generic), mel_metadata)
    return found


def _spelling(model: Any, kind: str, *, generic: bool) -> tuple[Token | None, Token | None, str, str, str]:
    """The first five fields of `ImageMetadata` or `SoundMetadata`."""
    names = ("token_regex", "prefix", "suffix")
    placeholder, prefix, suffix = (getattr(model, f"{kind}_{name}") if generic else "" for name in names)
    begin, end = (_token(getattr(model, f"{edge}_of_{kind}_token")) for edge in ("start", "end"))
    return begin, end, re.sub(r"\\(.)", r"\1", placeholder), prefix, suffix


def _set_media(target: Any, media: ImageMetadata | SoundMetadata) -> None:
    """Set the fields that both model types with images and sounds have."""
    kind = _KINDS[type(media)]
    for edge, token in (("start", media.begin), ("end", media.end)):
        if token is not None:
            _set_token(getattr(target, f"{edge}_of_{kind}_token"), token)
    if isinstance(media, ImageMetadata):
        target.image_tensor_height, target.image_tensor_width = media.height, media.width


def _set_generic(target: Any, metadata: LlmMetadata) -> None:
    present = [media for media in (metadata.image, metadata.sound) if media is not None]
    for media in present:
        kind = _KINDS[type(media)]
        setattr(target, f"{kind}_enabled", True)
        setattr(target, f"{kind}_token_regex", re.escape(media.placeholder))
        setattr(target, f"{kind}_prefix", media.prefix)
        setattr(target, f"{kind}_suffix", media.suffix)
    if present:
        target.delimiter_regex = f"({'|'.join(re.escape(media.placeholder) for media in present)})"
    if metadata.sound is not None and metadata.sound.mel is not None:
        target.add_audio_end = True  # for an image, the adapter gives the embedding of the end marker itself
        for item in fields(MelMetadata):
            setattr(target, f"audio_{item.name}", getattr(metadata.sound.mel, item.name))


_KINDS = {ImageMetadata: "image", SoundMetadata: "audio"}


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
