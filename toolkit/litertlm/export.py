"""Exports a bundle as one .litertlm (docs/formats/litertlm.md) that Google's LiteRT-LM engine loads."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from toolkit.base.activations import Activations, require_activations
from toolkit.base.errors import BundleError, UsageError, errors_about
from toolkit.base.files import Progress, hash_file, require_free_space, scratch_beside
from toolkit.base.layout import ceil_div
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.signatures import Signer
from toolkit.bundle.lock import LockedExport, lock_line, parse_lock
from toolkit.bundle.manifest import (
    AUDIO_ADAPTER,
    AUDIO_ENCODER,
    CHAT_TEMPLATE,
    DRAFTER,
    EMBEDDER,
    FLOAT32_FILES,
    LOCK,
    TEXT_DECODER,
    TOKENIZER,
    TOWER_FILES,
    VISION_ADAPTER,
    VISION_ENCODER,
    AudioRecord,
    Manifest,
    SamplingRecord,
    SizeRecord,
    TextRecord,
)
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.ple_shards import HEADER_BYTES, check_sequence, is_shard_name, read_header, shard_name
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.tokenizer_file import plain_tokenizer
from toolkit.litertlm import schema, tables
from toolkit.litertlm.chat_template import EnginePrompts, ExportedTemplate, engine_template
from toolkit.litertlm.container import FilePart, Section, write_container
from toolkit.litertlm.engine_tools import knows_tools, tools_fault
from toolkit.litertlm.exported_drafter import ExportedDrafter
from toolkit.litertlm.gemma4 import CALLS, text_model_type, thoughts_of
from toolkit.litertlm.header import read_header as read_litertlm_header
from toolkit.litertlm.media import always_true, media_metadata
from toolkit.litertlm.ple_graph import ROWS, layout_ple
from toolkit.litertlm.schema import LlmMetadata, ModelType
from toolkit.litertlm.tokenizer_section import HF_TOKENIZER, MAX_TOKENIZER_BYTES
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.records import SubgraphRecord
from toolkit.tflite.rewrite import select_signatures

_log = logging.getLogger(__name__)

_ZLIB_LEVEL = 9

Target = Literal["cpu", "gpu"]
TARGETS: tuple[Target, ...] = get_args(Target)

_FLOAT32_SECTIONS = {VISION_ENCODER: schema.VISION_ENCODER, AUDIO_ENCODER: schema.AUDIO_ENCODER}
"""The sections of `FLOAT32_FILES`."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Which parts of a bundle to export: by default its default size, with every group that it has.

    groups: with a list, `vision` and `audio` are exported only if it has them; the groups for text always are.
    model_type: how the engine prepares images and sounds; by default `generic_model`, which prepares them as
    transformers does, or the model's own type (`gemma3n`, `gemma4`) if only text is exported.
    activations: what a GPU computes every graph with; by default the engine's own choice, float16, for graphs that are
    right in it, and float32 for the encoders of images and sounds.
    target: `cpu` for graphs that are the bundle's, which run on a GPU too; `gpu` for norms that are one op each, with
    a kernel in the engine's GPU delegate (toolkit/tflite/rms_norms.py).
    signer: signs the file's hashes, if there is one.
    force: replace a file that gemma-edge did not write.
    sampling: how tokens are drawn for an app that sets no sampler; by default as the bundle says.
    drafter: a drafter for the size, in place of the bundle's own.
    """

    size: str | None = None
    groups: tuple[str, ...] | None = None
    model_type: ModelType | None = None
    activations: Activations | None = None
    target: Target = "cpu"
    signer: Signer | None = None
    force: bool = False
    sampling: SamplingRecord | None = None
    drafter: ExportedDrafter | None = None

    def __post_init__(self) -> None:
        if self.activations is not None:
            require_activations(self.activations)
        if self.target not in TARGETS:
            raise UsageError("target", found=self.target, wanted=" or ".join(TARGETS))


EVERYTHING = ExportOptions()


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The written file, the size that it holds, and its groups."""

    path: Path
    bytes: int
    size: str
    groups: tuple[str, ...]
    model_type: ModelType


def export_litertlm(
    bundle: Path | str,
    path: Path | str,
    options: ExportOptions = EVERYTHING,
    *,
    accept: Callable[[Path], None] = lambda _: None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write one size of a bundle and some of its groups as a .litertlm.

    `accept` gets the complete file before it gets its name, and raises to reject it.
    BundleError if the bundle has no such size or group, or if a file does not have the manifest's size or hash.
    """
    source = Path(bundle)
    output = Output(Path(path), LITERTLM, (source,), options.force)
    output.require()
    manifest = read_manifest(source)
    size = manifest.default_size if options.size is None else options.size
    groups = _groups(source, manifest, size, options)
    own_type = text_model_type(manifest.architecture)
    model_type: ModelType = options.model_type or ("generic_model" if {*groups} & {*TOWER_FILES} else own_type)
    if "audio" not in groups:
        _log.warning("the file has no sound: AI Edge Gallery refuses to import such a file (litert-torch issue 1039)")
    system = {
        "checkpoint": manifest.checkpoint.name,
        "checkpoint_sha256": manifest.checkpoint.sha256,
        tables.GENERATOR: manifest.generator,
        "groups": ",".join(groups),
        "size": size,
    }
    with scratch_beside(output.path) as scratch:
        parts = _Parts(source, manifest, scratch, composite_norms=options.target == "gpu")
        if LOCK in manifest.files:
            other = options.drafter
            made_with = LockedExport(
                size, groups, model_type, options.activations, options.target, options.sampling,
                drafter=None if other is None else other.settings, assistant=None if other is None else other.assistant,
            )  # fmt: skip
            lock = parse_lock(parts.read(LOCK), source / LOCK)
            system[tables.LOCK] = lock_line(replace(lock, export=made_with))
        sections = [*_text_sections(parts, manifest.size(size), drafts="drafter" in groups)]
        sections += _tower_sections(parts, groups, model_type)
        if "drafter" in groups:
            drafter = parts.whole(DRAFTER) if options.drafter is None else options.drafter.part
            sections.append(Section(tables.TFLITE_MODEL, (drafter,), schema.DRAFTER))
        sections = [_with_activations(section, options.activations) for section in sections]
        sections.insert(0, _metadata_section(parts, groups, model_type, options.sampling))
        total = write_container(output.path, sections, system, signer=options.signer, accept=accept, progress=progress)
    return ExportResult(output.path, total, size, groups, model_type)


def _stranger(path: Path) -> str | None:
    """What a file is, unless gemma-edge wrote it as a .litertlm; None if it did."""
    try:
        generator = read_litertlm_header(path).metadata.system.get(tables.GENERATOR)
    except BundleError:
        return "a file that is no .litertlm"
    return None if generator is not None and generator.startswith("gemma-edge ") else "another program's .litertlm"


LITERTLM = OutputKind("a .litertlm", _stranger)


def _with_activations(section: Section, wanted: Activations | None) -> Section:
    """The section with what a GPU computes its graph with, if the engine may not choose."""
    if section.type != tables.TFLITE_MODEL:
        return section
    float32 = {_FLOAT32_SECTIONS[name] for name in FLOAT32_FILES}
    return replace(section, activations=wanted or ("fp32" if section.model_type in float32 else None))


def _groups(bundle: Path, manifest: Manifest, size: str, options: ExportOptions) -> tuple[str, ...]:
    """The groups to export, text first, then the towers in the order of the format, and the drafter."""
    wanted = tuple(manifest.groups) if options.groups is None else options.groups
    for name in wanted:
        if name not in manifest.groups and not (name == "drafter" and options.drafter is not None):
            remedy = f"convert the checkpoint with --groups {','.join(wanted)}" if name in TOWER_FILES else None
            there = ", ".join(manifest.groups)
            raise BundleError(file=bundle, found=f"no group {name}", wanted=f"one of {there}", remedy=remedy)
    drafter = manifest.drafter if "drafter" in wanted else None
    if options.drafter is None and drafter is not None and drafter.size != size:
        found, remedy = f"fitted to size {drafter.size}, not {size}", "fit another with --drafter fit"
        if options.groups is not None:
            raise BundleError("group drafter", file=bundle, found=found, remedy=remedy)
        _log.warning("the file has no drafter: the bundle's is %s; %s", found, remedy)
        drafter = None
    drafters = ("drafter",) if drafter is not None or options.drafter is not None else ()
    return ("text", *(name for name in TOWER_FILES if name in wanted), *drafters)


class _Parts:
    """The files of a bundle as parts of sections, or copies in `scratch` with only some of their signatures."""

    def __init__(self, bundle: Path, manifest: Manifest, scratch: Path, *, composite_norms: bool) -> None:
        self.bundle, self.manifest = bundle, manifest
        self._scratch, self._composite_norms = scratch, composite_norms

    def whole(self, name: str) -> FilePart:
        files = self.manifest.files
        if name not in files or not (self.bundle / name).is_file():
            raise BundleError(file=self.bundle, found=f"no {name}", remedy="convert it again")
        return FilePart(self.bundle / name, files[name].bytes, files[name].sha256)

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        whole = self.whole(name)
        whole.require_hash()
        return whole.path.read_bytes()

    def selected(
        self,
        name: str,
        signatures: Mapping[str, str],
        change: Callable[[SubgraphRecord], SubgraphRecord] | None = None,
    ) -> FilePart:
        """A copy of a file with only these signatures (new name to old name) and the weights that they use.

        The file itself if that would be the same.
        """
        whole = self.whole(name)
        there = read_tflite(whole.path).model.signatures
        if change is None and not self._composite_norms and dict(signatures) == {name: name for name in there}:
            return whole
        whole.require_hash()
        require_free_space(self._scratch, whole.file_size)
        path = self._scratch / f"{next(iter(signatures))}.{name}"
        select_signatures(whole.path, path, signatures, change, composite_norms=self._composite_norms)
        found = hash_file(path)
        return FilePart(path, found.size, found.sha256)


# --- text ------------------------------------------------------------------------------------------------------------


def _metadata_section(
    parts: _Parts, groups: Sequence[str], model_type: ModelType, sampling: SamplingRecord | None
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
    """Whether an app may offer tools; a warning for a template that knows them where the engine does not."""
    if not knows_tools(source):
        return False
    fault = tools_fault(source, template.source, engine)
    if fault is not None:
        _log.warning("the file does not offer function calling, although its chat template knows tools: %s", fault)
    return fault is None


def _sampling(text: TextRecord, wanted: SamplingRecord | None) -> SamplingRecord:
    """What the engine can: it takes no 0 for as many candidates as there are, and has neither of the last two."""
    if wanted is None:
        return schema.MOST_LIKELY
    kept = SamplingRecord(wanted.temperature, wanted.top_k or text.text_ids, wanted.top_p)
    told = [f"min_p {wanted.min_p:g}"] if wanted.min_p else []
    told += [f"a repetition penalty of {wanted.repeat_penalty:g}"] if wanted.repeat_penalty != 1 else []
    if told:
        _log.warning("the file goes without %s, which LiteRT-LM's sampler does not have", " and ".join(told))
    return kept


def _chat_template(parts: _Parts) -> str | None:
    if CHAT_TEMPLATE not in parts.manifest.files:
        return None
    try:
        return parts.read(CHAT_TEMPLATE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(
            file=parts.bundle / CHAT_TEMPLATE, found=f"not UTF-8 text ({error.reason})", remedy="convert it again"
        ) from error


def _text_sections(parts: _Parts, size: SizeRecord, *, drafts: bool) -> tuple[Section, ...]:
    """The sections for text, the small ones first, so that a reader finds them in the first megabytes.

    drafts: with what a drafter needs of the decoder.
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


def _decoder(parts: _Parts, size: SizeRecord, *, drafts: bool) -> FilePart:
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


def _per_layer_embedder(parts: _Parts) -> tuple[bytes | FilePart, ...]:
    """The per-layer embedder: a graph, followed by the rows of all shards, unchanged."""
    names = sorted(filter(is_shard_name, parts.manifest.files))
    shards = [parts.whole(name) for name in names or [shard_name(0)]]
    headers = [read_header(shard.path) for shard in shards]
    check_sequence([shard.path for shard in shards], headers)
    layout = layout_ple(headers[0].layout)
    header = layout.header.ljust(layout.blobs[ROWS].offset_bytes, b"\0")
    return (header, *(replace(shard, skip=HEADER_BYTES) for shard in shards))


# --- towers ----------------------------------------------------------------------------------------------------------


def _tower_sections(parts: _Parts, groups: Sequence[str], model_type: ModelType) -> list[Section]:
    """The sections of the towers; the engine takes graphs of one signature each."""
    sections: list[tuple[str, FilePart]] = []
    if "vision" in groups:
        sections.append((schema.VISION_ENCODER, parts.selected(VISION_ENCODER, {"encode": "encode"})))
        sections.append((schema.VISION_ADAPTER, parts.selected(VISION_ADAPTER, {"adapt": "adapt"})))
    if "audio" in groups:
        assert parts.manifest.audio is not None
        frames = _whole_sound(parts.bundle, parts.manifest.audio)
        # Google's own files give a sound only the rows that it needs; transformers' prompts always have all of them.
        change = always_true("mask") if model_type == "generic_model" else None
        encoder = parts.selected(AUDIO_ENCODER, {"encode": f"encode_{frames}"}, change)
        sections.append((schema.AUDIO_ENCODER, encoder))
        sections.append((schema.AUDIO_ADAPTER, parts.selected(AUDIO_ADAPTER, {"adapt": f"adapt_{frames}"})))
        end = parts.selected(AUDIO_ADAPTER, {"end_of_audio": "end_of_audio"})
        sections.append((schema.END_OF_AUDIO, end))
    return [Section(tables.TFLITE_MODEL, (part,), label) for label, part in sections]


def _whole_sound(bundle: Path, audio: AudioRecord) -> int:
    """Mel frames of the encoder that fills all of a sound's soft tokens, the only one that the engine runs.

    BundleError if the bundle has no such encoder.
    """
    frames = audio.frame_lengths[-1]
    if ceil_div(frames, audio.frames_per_token) != audio.soft_tokens:
        wanted = f"{audio.soft_tokens * audio.frames_per_token}, the whole of a sound's places"
        remedy = "convert it again without --audio-lengths, or export it with --groups text,vision"
        raise BundleError(
            "longest audio length", file=bundle, found=f"{frames} mel frames", wanted=wanted, remedy=remedy
        )
    return frames
