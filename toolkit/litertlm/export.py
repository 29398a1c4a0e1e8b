"""Exports a bundle as one .litertlm (docs/formats/litertlm.md) that Google's LiteRT-LM engine loads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from toolkit.base.activations import Activations, require_activations
from toolkit.base.errors import BundleError, UsageError
from toolkit.base.files import Progress, scratch_beside
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.signatures import Signer
from toolkit.bundle.lock import LockedExport, parse_lock
from toolkit.bundle.manifest import (
    AUDIO_ENCODER,
    FLOAT32_FILES,
    LOCK,
    TOWER_FILES,
    VISION_ENCODER,
    Manifest,
    SamplingRecord,
)
from toolkit.bundle.manifest_json import read_manifest
from toolkit.litertlm import schema, tables
from toolkit.litertlm.container import Section, write_container
from toolkit.litertlm.export_parts import ExportParts
from toolkit.litertlm.export_sections import metadata_section, text_sections, tower_sections, whole_sound
from toolkit.litertlm.exported_drafter import DrafterMaker
from toolkit.litertlm.gemma4 import text_model_type
from toolkit.litertlm.header import read_header as read_litertlm_header
from toolkit.litertlm.lock_section import lock_section
from toolkit.litertlm.schema import MODEL_TYPES, ModelType

_log = logging.getLogger(__name__)


Target = Literal["cpu", "gpu"]
TARGETS: tuple[Target, ...] = get_args(Target)

_FLOAT32_SECTIONS = {VISION_ENCODER: schema.VISION_ENCODER, AUDIO_ENCODER: schema.AUDIO_ENCODER}
"""The sections of `FLOAT32_FILES`."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to export, and how: by default, the bundle's default size with all of its groups.

    `groups`: if given, `vision`, `audio` and `drafter` are exported only if they are in it; those for text always are.
    `model_type`: how the engine prepares images and sounds; by default `generic_model`, which prepares them as
    transformers does, or the model's own type (`gemma3n`, `gemma4`) if only text is exported.
    `activations`: the precision in which a GPU computes every graph; by default the engine's own choice, float16, for
    graphs that are right in it, and float32 for the encoders of images and sounds.
    `target`: `cpu` for the bundle's own graphs, which run on a GPU too; `gpu` for graphs in which each norm is one
    operator, with a kernel in the engine's GPU delegate (toolkit/tflite/rms_norms.py).
    `signer`: signs the file's hashes.
    `force`: replace a file that gemma-edge did not write.
    `sampling`: how tokens are sampled for an app that sets no sampler; by default, as the bundle says.
    `drafter`: makes a drafter for the size, in place of the bundle's own, once all else is known to be right.
    """

    size: str | None = None
    groups: tuple[str, ...] | None = None
    model_type: ModelType | None = None
    activations: Activations | None = None
    target: Target = "cpu"
    signer: Signer | None = None
    force: bool = False
    sampling: SamplingRecord | None = None
    drafter: DrafterMaker | None = None

    def __post_init__(self) -> None:
        if self.activations is not None:
            require_activations(self.activations)
        if self.target not in TARGETS:
            raise UsageError("target", found=self.target, wanted=" or ".join(TARGETS))
        if self.model_type is not None and self.model_type not in MODEL_TYPES:
            raise UsageError("model type", found=self.model_type, wanted=" or ".join(MODEL_TYPES))


EVERYTHING = ExportOptions()


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The written file, its size in bytes, and the size (of the model), groups and model type in it."""

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

    `accept` gets the complete file before it is renamed to `path`, and raises to reject it.
    BundleError if the bundle has no such size or group, or if a file does not have the size or hash in the manifest.
    """
    source = Path(bundle)
    output = Output(Path(path), LITERTLM, (source,), options.force)
    output.require()
    manifest = read_manifest(source)
    size = manifest.default_size if options.size is None else options.size
    groups = _exported_groups(source, manifest, size, options.groups, drafter=options.drafter is not None)
    model_type = _model_type(manifest, groups, options.model_type)
    if "audio" not in groups:
        _log.warning("the file has no sound: AI Edge Gallery refuses to import such a file (litert-torch issue 1039)")
    with scratch_beside(output.path) as scratch:
        parts = ExportParts(source, manifest, scratch, composite_norms=options.target == "gpu")
        lock = parse_lock(parts.read(LOCK), source / LOCK) if LOCK in manifest.files else None
        first, rest = _bundle_sections(parts, size, groups, model_type, options.sampling)
        other = None if options.drafter is None else options.drafter(scratch)
        if options.drafter is not None and other is None:
            groups = tuple(name for name in groups if name != "drafter")
            first, rest = _bundle_sections(parts, size, groups, model_type, options.sampling)
        system = {
            "checkpoint": manifest.checkpoint.name,
            "checkpoint_sha256": manifest.checkpoint.sha256,
            tables.GENERATOR: manifest.generator,
            "groups": ",".join(groups),
            "size": size,
        }
        sections = [first]
        if lock is not None:
            made_with = LockedExport(
                size, groups, model_type, options.activations, options.target, options.sampling,
                drafter=None if other is None else other.settings, assistant=None if other is None else other.assistant,
            )  # fmt: skip
            sections.append(lock_section(replace(lock, export=made_with)))
        sections += rest
        if "drafter" in groups:
            drafter = parts.drafter(None if other is None else other.part)
            sections.append(Section(tables.TFLITE_MODEL, (drafter,), schema.DRAFTER))
        sections = [_with_activations(section, options.activations) for section in sections]

        def accept_at(partial: Path) -> None:
            accept(partial)
            output.require()  # what is at the path may have changed since

        total = write_container(
            output.path, sections, system, signer=options.signer, accept=accept_at, progress=progress
        )
    return ExportResult(output.path, total, size, groups, model_type)


def _bundle_sections(
    parts: ExportParts, size: str, groups: Sequence[str], model_type: ModelType, sampling: SamplingRecord | None
) -> tuple[Section, list[Section]]:
    """The sections that come from the bundle's own files: the engine's metadata, and the others."""
    text = text_sections(parts, parts.manifest.size(size), drafts="drafter" in groups)
    return metadata_section(parts, groups, model_type, sampling), [*text, *tower_sections(parts, groups, model_type)]


def _model_type(manifest: Manifest, groups: Sequence[str], wanted: ModelType | None) -> ModelType:
    """The engine's model type for a file with these groups; UsageError for one that does not have them all."""
    towers = [name for name in TOWER_FILES if name in groups]
    if wanted == "gemma4" and towers:
        found, remedy = f"gemma4 for {' and '.join(towers)}", "leave --model-type out, or export with --groups text"
        raise UsageError("model type", found=found, wanted="one that has them", remedy=remedy)
    return wanted or ("generic_model" if towers else text_model_type(manifest.architecture))


def _exported_groups(
    bundle: Path, manifest: Manifest, size: str, groups: Sequence[str] | None, *, drafter: bool
) -> tuple[str, ...]:
    """The groups that an export has, text first, then the towers in the order of the format, and the drafter.

    `groups`: those that are wanted; None for all. `drafter`: one is made, in place of the bundle's own. BundleError if
    the bundle lacks the size or a group, or has one that cannot be exported.
    """
    manifest.size(size)
    wanted = tuple(manifest.groups) if groups is None else tuple(groups)
    for name in wanted:
        if name not in manifest.groups and not (name == "drafter" and drafter):
            again = (
                f"convert the checkpoint with --groups {','.join(wanted)}; gemma-edge inspect says whether it can be"
            )
            remedy = again if name in TOWER_FILES else None
            there = ", ".join(manifest.groups)
            raise BundleError(file=bundle, found=f"no group {name}", wanted=f"one of {there}", remedy=remedy)
    if "audio" in wanted:
        assert manifest.audio is not None
        whole_sound(bundle, manifest.audio)
    own = manifest.drafter if "drafter" in wanted and not drafter else None
    if own is not None and own.size != size:
        found, remedy = f"fitted to size {own.size}, not {size}", "fit another with --drafter fit"
        if groups is not None:
            raise BundleError("group drafter", file=bundle, found=found, remedy=remedy)
        _log.warning("the file has no drafter: the bundle's is %s; %s", found, remedy)
        own = None
    drafters = ("drafter",) if drafter or own is not None else ()
    return ("text", *(name for name in TOWER_FILES if name in wanted), *drafters)


def _stranger(path: Path) -> str | None:
    """Says what a file is if it is not a .litertlm that gemma-edge wrote; otherwise None."""
    try:
        generator = read_litertlm_header(path).metadata.system.get(tables.GENERATOR)
    except BundleError:
        return "a file that is not a .litertlm"
    return None if generator is not None and generator.startswith("gemma-edge ") else "another program's .litertlm"


LITERTLM = OutputKind("a .litertlm", _stranger)


def _with_activations(section: Section, wanted: Activations | None) -> Section:
    """The section, with the precision in which a GPU must compute its graph unless the engine may choose."""
    if section.type != tables.TFLITE_MODEL:
        return section
    float32 = {_FLOAT32_SECTIONS[name] for name in FLOAT32_FILES}
    return replace(section, activations=wanted or ("fp32" if section.model_type in float32 else None))
