"""`gemma_edge.inspect`: lists the groups and sizes of a checkpoint or a bundle, with parameters and memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

from converters.convert import conversion_faults
from converters.families import FAMILIES, open_headers
from converters.family import Checkpoint, Family
from converters.huggingface.adapters.choice import AdapterLike, adapter_choices
from converters.huggingface.hub.locate import with_revision
from converters.quality_record import QualityRecord, read_quality
from toolkit.base.directory_swap import restore_missing
from toolkit.base.errors import ToolkitError, UsageError
from toolkit.bundle.footprint import footprints
from toolkit.bundle.manifest import GROUP_NAMES, MANIFEST_NAME, AdapterRecord
from toolkit.bundle.manifest_json import read_manifest
from toolkit.litertlm.header import read_header
from toolkit.litertlm.reader import read_llm_metadata
from toolkit.litertlm.schema import AUDIO_ENCODER, VISION_ENCODER, LlmMetadata

_log = logging.getLogger(__name__)

EFFECTIVE = "text"
"""The group of the effective parameters, after whose number sizes are named."""
TEXT_GROUPS = (EFFECTIVE, "token_embedding", "per_layer_embedding")
"""The groups that are always loaded; vision and audio may be left out."""
CHECKPOINT_BITS = 8
"""Bits per weight assumed for the memory of a checkpoint in floats, which `convert` quantises to int8 by default."""


@dataclass(frozen=True, slots=True)
class InspectedGroup:
    """The stored parameters and bytes of one parameter group."""

    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GroupSet:
    """A set of groups that may be loaded together, with the parameters and memory of one size."""

    groups: tuple[str, ...]
    parameters_loaded: int
    parameters_effective: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class InspectedSize:
    """The layers, parameters and memory of one size."""

    layers: int
    parameters: Mapping[str, int]
    """Parameters by group."""
    memory: Mapping[str, int]
    """Bytes by group: for text, the weights that each generated token reads; for a tower, all its weights."""
    bytes_per_token: Mapping[str, int] = field(default_factory=dict)
    """For a bundle, the weights that each generated token reads, by component of the decoder, the largest first."""

    def sets(self) -> Iterator[GroupSet]:
        """All sets of groups; the first has only the text groups, the last has all."""
        towers = [name for name in self.parameters if name not in TEXT_GROUPS]
        for count in range(len(towers) + 1):
            for chosen in combinations(towers, count):
                groups = (*TEXT_GROUPS, *chosen)
                yield GroupSet(
                    groups,
                    sum(self.parameters[name] for name in groups),
                    self.parameters[EFFECTIVE],
                    sum(self.memory.get(name, 0) for name in groups),
                )


@dataclass(frozen=True, slots=True)
class Inspection:
    """The groups and sizes of a checkpoint or a bundle."""

    kind: Literal["checkpoint", "bundle"]
    architecture: str
    groups: Mapping[str, InspectedGroup]
    sizes: Mapping[str, InspectedSize]
    adapters: tuple[AdapterRecord, ...] = ()
    """The adapters merged into it, in order."""
    faults: Mapping[str, ToolkitError] = field(default_factory=dict)
    """By group, why `convert` refuses a checkpoint: `text` for the whole, or a tower, which can be left out."""
    quality: QualityRecord | None = None
    """What the gates of `convert` found, if the file that records it is beside the bundle."""
    memory_bits: float | None = None
    """Bits per weight of a checkpoint's memory: `CHECKPOINT_BITS`, or what a checkpoint of codes has on average."""


def inspect(
    path: Path | str,
    *,
    revision: str | None = None,
    adapters: Sequence[AdapterLike] = (),
    families: Sequence[Family] = FAMILIES,
) -> Inspection:
    """List the groups of a checkpoint or bundle with their parameters and bytes, and the sizes that it has.

    path: the directory of a bundle or a checkpoint, or a Hugging Face id, of which only the headers of the weights are
        downloaded.
    revision: a branch, tag or commit of the id.
    adapters: LoRA adapters, as for `convert`, to check whether they can be merged into the checkpoint.
    families: the model families that a checkpoint may belong to.

    BundleError or CheckpointError if `path` is neither.

    >>> import gemma_edge
    >>> found = gemma_edge.inspect(bundle)
    >>> found.kind, list(found.sizes), found.sizes["small"].layers
    ('bundle', ['full', 'small'], 7)
    """
    source = with_revision(path, revision)
    restore_missing(Path(path))
    if (Path(path) / MANIFEST_NAME).exists():
        if adapters:
            raise UsageError("adapters", found="a bundle", wanted="a checkpoint")
        return _inspect_bundle(Path(path))
    with open_headers(source, families, adapter_choices(adapters)) as checkpoint:
        return _inspect_checkpoint(checkpoint)


def _inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    groups: dict[str, InspectedGroup] = {
        item.name: InspectedGroup(item.parameters, item.stored_bytes) for item in checkpoint.groups if item.tensors
    }
    towers = {name: group.parameters for name, group in groups.items() if name not in TEXT_GROUPS}
    faults = conversion_faults(checkpoint)
    for group, fault in faults.items():
        if group == "text":
            _log.warning("this checkpoint cannot be converted: %s", fault)
            continue
        rest = ",".join(name for name in ("text", *towers) if name not in faults)
        _log.warning("%s cannot be converted (%s); --groups %s leaves it out", group, fault, rest)
    read = [groups[name] for name in TEXT_GROUPS[:2]]  # the token embedding is the output matrix too
    stored = 8 * sum(group.bytes for group in read) / sum(group.parameters for group in read)
    bits = min(float(CHECKPOINT_BITS), stored)
    sizes = {}
    for name, part in checkpoint.slices.items():
        facts = checkpoint.facts(part, bits_per_weight=bits)
        memory = {EFFECTIVE: facts.memory_bytes}
        memory |= {tower: count * CHECKPOINT_BITS // 8 for tower, count in towers.items()}
        sizes[name] = InspectedSize(facts.layers, {**facts.parameters, **towers}, memory)
    merged = tuple(adapter.record for adapter in checkpoint.adapters)
    return Inspection("checkpoint", checkpoint.architecture, groups, sizes, merged, faults, memory_bits=bits)


def _inspect_bundle(path: Path) -> Inspection:
    manifest = read_manifest(path)
    order = sorted(manifest.groups, key=[*GROUP_NAMES, *sorted(manifest.groups)].index)
    groups = {name: InspectedGroup(manifest.groups[name].parameters, manifest.groups[name].bytes) for name in order}
    towers = {name: group for name, group in groups.items() if name not in TEXT_GROUPS}
    sizes = {
        name: InspectedSize(
            found.layers,
            {**found.parameters, **{tower: group.parameters for tower, group in towers.items()}},
            {EFFECTIVE: found.memory_bytes, **{tower: group.bytes for tower, group in towers.items()}},
            found.bytes_per_token,
        )
        for name, found in footprints(path, manifest).items()
    }
    merged, quality = manifest.checkpoint.adapters, read_quality(path)
    return Inspection("bundle", manifest.architecture, groups, sizes, merged, quality=quality)


@dataclass(frozen=True, slots=True)
class InspectedSection:
    """One section of a .litertlm: its name, its place, and the other items of its entry."""

    label: str
    begin: int
    bytes: int
    items: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FileInspection:
    """The sections of a .litertlm, and what it tells LiteRT-LM about the model; `metadata` is None if it has none."""

    system: Mapping[str, str]
    sections: tuple[InspectedSection, ...]
    metadata: LlmMetadata | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """`text`, and `vision` and `audio` if there are encoders for them."""
        labels = {section.label for section in self.sections}
        towers = (("vision", VISION_ENCODER), ("audio", AUDIO_ENCODER))
        return ("text", *(name for name, label in towers if label in labels))


def inspect_file(path: Path | str) -> FileInspection:
    """List the sections of a .litertlm, whoever wrote it, and what it tells the engine.

    Reads the header and the metadata only. BundleError if it is not a .litertlm.

    >>> import gemma_edge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = gemma_edge.export(bundle, folder + "/model.litertlm", size="small", temperature=0.5)
    ...     found = gemma_edge.inspect_file(folder + "/model.litertlm")
    >>> found.sections[0].label, found.inputs, found.metadata.sampling.temperature
    ('LlmMetadataProto', ('text',), 0.5)
    """
    header = read_header(Path(path))
    sections = [InspectedSection(s.label, s.begin, s.end - s.begin, s.items) for s in header.metadata.sections]
    return FileInspection(header.metadata.system, tuple(sections), read_llm_metadata(Path(path), header))
