"""Makes the sections of an export from a bundle: the metadata, and the graphs of text, towers and drafter."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.base.errors import BundleError, errors_about
from toolkit.base.layout import ceil_div
from toolkit.bundle.manifest import (
    AUDIO_ADAPTER,
    AUDIO_ENCODER,
    CHAT_TEMPLATE,
    EMBEDDER,
    TEXT_DECODER,
    TOKENIZER,
    VISION_ADAPTER,
    VISION_ENCODER,
    AudioRecord,
    SamplingRecord,
    SizeRecord,
    TextRecord,
)
from toolkit.bundle.ple_shards import HEADER_BYTES, check_sequence, is_shard_name, read_header, shard_name
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.tokenizer_file import plain_tokenizer
from toolkit.litertlm import schema, tables
from toolkit.litertlm.chat_template import EnginePrompts, ExportedTemplate, engine_template
from toolkit.litertlm.container import FilePart, Section
from toolkit.litertlm.engine_tools import knows_tools, tools_fault
from toolkit.litertlm.export_parts import ExportParts
from toolkit.litertlm.gemma4 import CALLS, thoughts_of
from toolkit.litertlm.media import always_true, media_metadata
from toolkit.litertlm.ple_graph import ROWS, layout_ple
from toolkit.litertlm.schema import LlmMetadata, ModelType
from toolkit.litertlm.tokenizer_section import HF_TOKENIZER, MAX_TOKENIZER_BYTES
from toolkit.tflite.records import SubgraphRecord

_log = logging.getLogger(__name__)

_ZLIB_LEVEL = 9


# --- text ------------------------------------------------------------------------------------------------------------


def metadata_section(
    parts: ExportParts, groups: Sequence[str], model_type: ModelType, sampling: SamplingRecord | None
) -> Section:
    manifest = parts.manifest
    text, source = manifest.text, _chat_template(parts)
    template, tools = None, False
    if source is not None:
        data = parts.read(TOKENIZER)
        prompting = Prompting.of(Tokenizer(parts.bundle / TOKENIZER, plain_tokenizer(data)), manifest, groups)
        with errors_about(file=parts.bundle / CHAT_TEMPLATE):
            template = engine_template(source, prompting, model_type)
        tools = _calls_tools(source, template, EnginePrompts(prompting, model_type, template.start_token))
    image, sound = media_metadata(parts.read(TOKENIZER), manifest, groups, model_type, joined=template is not None)
    thoughts = None if template is None else thoughts_of(template.source, model_type)
    metadata = LlmMetadata(
        start_token=(text.bos_token_id,) if template is None or template.start_token else None,
        stop_tokens=tuple((token,) for token in text.stop_token_ids),
        pad_token=(text.pad_token_id,),
        max_num_tokens=text.context,
        jinja_prompt_template=None if template is None else template.source,
        model_type=model_type,
        image=image,
        sound=sound,
        sampling=_sampling(text, sampling or text.sampling),
        supports_function_calling=tools,
        calls=CALLS if model_type == "gemma4" else None,
        supports_thinking=thoughts is not None,
        thoughts=thoughts,
        min_runtime_version=schema.GENERIC_SINCE if model_type == "generic_model" else "",
    )
    return Section(schema.LLM_METADATA, (schema.pack_llm_metadata(metadata),))


def _calls_tools(source: str, template: ExportedTemplate, engine: EnginePrompts) -> bool:
    """Whether an app may offer tools; logs a warning if the template supports them but the engine would not."""
    if not knows_tools(source):
        return False
    fault = tools_fault(source, template.source, engine)
    if fault is not None:
        _log.warning("the file does not offer function calling, although its chat template knows tools: %s", fault)
    return fault is None


def _sampling(text: TextRecord, wanted: SamplingRecord | None) -> SamplingRecord:
    """The sampling for the metadata, as far as the engine supports it: for a top_k of 0 it needs the number of ids of
    text, and it has neither min_p nor a repetition penalty."""
    if wanted is None:
        return schema.MOST_LIKELY
    kept = SamplingRecord(wanted.temperature, wanted.top_k or text.text_ids, wanted.top_p)
    told = [f"min_p {wanted.min_p:g}"] if wanted.min_p else []
    told += [f"a repetition penalty of {wanted.repeat_penalty:g}"] if wanted.repeat_penalty != 1 else []
    if told:
        _log.warning("the file goes without %s, which LiteRT-LM's sampler does not have", " and ".join(told))
    return kept


def _chat_template(parts: ExportParts) -> str | None:
    if CHAT_TEMPLATE not in parts.manifest.files:
        return None
    try:
        return parts.read(CHAT_TEMPLATE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(
            file=parts.bundle / CHAT_TEMPLATE, found=f"not UTF-8 text ({error.reason})", remedy="convert it again"
        ) from error


def text_sections(parts: ExportParts, size: SizeRecord, *, drafts: bool) -> tuple[Section, ...]:
    """The sections for text, the small ones first, so that a reader finds them in the first megabytes.

    `drafts`: include the decoder's signature that checks drafts, and the output that a drafter reads.
    """
    tokenizer = plain_tokenizer(parts.read(TOKENIZER))
    if len(tokenizer) > MAX_TOKENIZER_BYTES:
        found, wanted = f"{len(tokenizer):,} bytes", f"at most {MAX_TOKENIZER_BYTES:,} in a .litertlm"
        raise BundleError(file=parts.bundle / TOKENIZER, found=found, wanted=wanted)
    packed = struct.pack("<Q", len(tokenizer)) + zlib.compress(tokenizer, _ZLIB_LEVEL)
    return (
        Section(HF_TOKENIZER, (packed,)),
        Section(tables.TFLITE_MODEL, (parts.whole(EMBEDDER),), schema.EMBEDDER),
        Section(tables.TFLITE_MODEL, (_decoder(parts, size, drafts=drafts),), schema.PREFILL_DECODE),
        Section(tables.TFLITE_MODEL, _per_layer_embedder(parts), schema.PER_LAYER_EMBEDDER),
    )


def _decoder(parts: ExportParts, size: SizeRecord, *, drafts: bool) -> FilePart:
    """The decoder with one size, no signature prefix and no context buckets."""
    plain = SizeRecord(size.layers, size.ffn_sizes, "")
    text = parts.manifest.text
    names = {plain.signature(n): size.signature(n) for n in text.prefill_sizes}
    if text.draft_tokens is not None and drafts:
        checked = text.draft_tokens + 1
        names[plain.signature(checked, verify=True)] = size.signature(checked, verify=True)
    change = None if text.draft_tokens is None or drafts else _without_activations
    return parts.selected(TEXT_DECODER, {**names, plain.decode: size.decode}, change)


def _without_activations(graph: SubgraphRecord) -> SubgraphRecord:
    """The graph without the output that only a drafter reads."""
    return replace(graph, outputs={name: i for name, i in graph.outputs.items() if name != "activations"})


def _per_layer_embedder(parts: ExportParts) -> tuple[bytes | FilePart, ...]:
    """The per-layer embedder: a graph, followed by the rows of all shards, unchanged."""
    names = sorted(filter(is_shard_name, parts.manifest.files))
    shards = [parts.whole(name) for name in names or [shard_name(0)]]
    headers = [read_header(shard.path) for shard in shards]
    check_sequence([shard.path for shard in shards], headers)
    layout = layout_ple(headers[0].layout)
    header = layout.header.ljust(layout.blobs[ROWS].offset_bytes, b"\0")
    return (header, *(replace(shard, skip=HEADER_BYTES) for shard in shards))


# --- towers ----------------------------------------------------------------------------------------------------------


def tower_sections(parts: ExportParts, groups: Sequence[str], model_type: ModelType) -> list[Section]:
    """The sections of the towers; the engine takes graphs of one signature each."""
    sections: list[tuple[str, FilePart]] = []
    if "vision" in groups:
        sections.append((schema.VISION_ENCODER, parts.selected(VISION_ENCODER, {"encode": "encode"})))
        sections.append((schema.VISION_ADAPTER, parts.selected(VISION_ADAPTER, {"adapt": "adapt"})))
    if "audio" in groups:
        assert parts.manifest.audio is not None
        frames = whole_sound(parts.bundle, parts.manifest.audio)
        # In Google's own files a sound gets only the soft tokens that it fills; in transformers it always gets all.
        change = always_true("mask") if model_type == "generic_model" else None
        encoder = parts.selected(AUDIO_ENCODER, {"encode": f"encode_{frames}"}, change)
        sections.append((schema.AUDIO_ENCODER, encoder))
        sections.append((schema.AUDIO_ADAPTER, parts.selected(AUDIO_ADAPTER, {"adapt": f"adapt_{frames}"})))
        end = parts.selected(AUDIO_ADAPTER, {"end_of_audio": "end_of_audio"})
        sections.append((schema.END_OF_AUDIO, end))
    return [Section(tables.TFLITE_MODEL, (part,), label) for label, part in sections]


def whole_sound(bundle: Path, audio: AudioRecord) -> int:
    """The mel frames of the encoder that fills all of a sound's soft tokens, the only one that the engine runs.

    BundleError if the bundle has no such encoder.
    """
    frames = audio.frame_lengths[-1]
    if ceil_div(frames, audio.frames_per_token) != audio.soft_tokens:
        wanted = f"{audio.soft_tokens * audio.frames_per_token}, for all soft tokens of a sound"
        remedy = "convert it again without --audio-lengths, or export it with --groups text,vision"
        raise BundleError(
            "longest audio length", file=bundle, found=f"{frames} mel frames", wanted=wanted, remedy=remedy
        )
    return frames
