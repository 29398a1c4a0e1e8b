"""`gemma_edge.inspect`: what is in a checkpoint or a bundle, and what of it each size loads and needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from converters.families import FAMILIES, open_checkpoint
from converters.family import Checkpoint, Family
from toolkit.bundle.footprint import footprints
from toolkit.bundle.manifest import GROUP_NAMES, MANIFEST_NAME
from toolkit.bundle.manifest_json import read_manifest

EFFECTIVE = "text"
"""The group whose parameters the names of sizes count."""
TEXT_GROUPS = (EFFECTIVE, "token_embedding", "per_layer_embedding")
"""What every set of groups holds; the others, vision and audio, can be left out."""
CHECKPOINT_BITS = 8
"""Bits a weight that a checkpoint's memory is told for: it is not quantised yet."""


@dataclass(frozen=True, slots=True)
class InspectedGroup:
    """A parameter group as it is stored."""

    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GroupSet:
    """One size with some of the groups."""

    groups: tuple[str, ...]
    parameters_loaded: int
    parameters_effective: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class InspectedSize:
    """One of the sizes."""

    layers: int
    parameters: Mapping[str, int]
    """Of this size, by group."""
    memory: Mapping[str, int]
    """Bytes by group: what a generated token reads of the text groups, and all of the towers."""

    def sets(self) -> Iterator[GroupSet]:
        """Every set of groups, the text groups alone first and all groups last."""
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
    """What a checkpoint or a bundle holds."""

    kind: Literal["checkpoint", "bundle"]
    architecture: str
    groups: Mapping[str, InspectedGroup]
    sizes: Mapping[str, InspectedSize]


def inspect(path: Path | str, *, families: Sequence[Family] = FAMILIES) -> Inspection:
    """Parameters and bytes by group, and the sizes with their layers, parameters and memory.

    path: a bundle's directory, a checkpoint's, or a Hugging Face id. families: those that a checkpoint may be of.
    BundleError or CheckpointError for what is neither.

    >>> import gemma_edge
    >>> found = gemma_edge.inspect(bundle)
    >>> found.kind, list(found.sizes), found.sizes["small"].layers
    ('bundle', ['full', 'small'], 7)
    """
    if (Path(path) / MANIFEST_NAME).exists():
        return _inspect_bundle(Path(path))
    with open_checkpoint(path, families) as checkpoint:
        return _inspect_checkpoint(checkpoint)


def _inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    groups: dict[str, InspectedGroup] = {
        item.name: InspectedGroup(item.parameters, item.stored_bytes) for item in checkpoint.groups if item.tensors
    }
    towers = {name: group.parameters for name, group in groups.items() if name not in TEXT_GROUPS}
    sizes = {}
    for name, part in checkpoint.slices.items():
        facts = checkpoint.facts(part, bits_per_weight=CHECKPOINT_BITS)
        memory = {EFFECTIVE: facts.memory_bytes}
        memory |= {tower: count * CHECKPOINT_BITS // 8 for tower, count in towers.items()}
        sizes[name] = InspectedSize(facts.layers, {**facts.parameters, **towers}, memory)
    return Inspection("checkpoint", checkpoint.architecture, groups, sizes)


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
        )
        for name, found in footprints(path, manifest).items()
    }
    return Inspection("bundle", manifest.architecture, groups, sizes)
