"""`gemma-edge inspect`: what is in a checkpoint or a bundle, and what of it each size loads and needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from converters.families import open_checkpoint
from converters.family import Checkpoint
from gemma_edge.terminal import Terminal, bytes_text, count_text, table
from toolkit.bundle.footprint import footprints
from toolkit.bundle.manifest import GROUP_NAMES, MANIFEST_NAME
from toolkit.bundle.manifest_json import read_manifest
from toolkit.report.plots import Bar, StackedBars, require_plot_name, write_plot

EXAMPLES = (
    "gemma-edge inspect google/gemma-3n-E4B-it",
    "gemma-edge inspect path/to/checkpoint --json",
    "gemma-edge inspect BUNDLE --plot sizes.svg",
)

_EFFECTIVE = "text"
_TEXT_GROUPS = (_EFFECTIVE, "token_embedding", "per_layer_embedding")
"""What every set of groups holds; the others, vision and audio, can be left out."""
_CHECKPOINT_BITS = 8


@dataclass(frozen=True, slots=True)
class _Group:
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Size:
    layers: int
    parameters: Mapping[str, int]
    """Of this size, by group."""
    memory: Mapping[str, int]
    """Bytes by group: what a generated token reads of the text groups, and all of the towers."""


@dataclass(frozen=True, slots=True)
class _Findings:
    kind: str
    architecture: str
    groups: Mapping[str, _Group]
    sizes: Mapping[str, _Size]


@dataclass(frozen=True, slots=True)
class _Set:
    """One size with some of the groups."""

    groups: tuple[str, ...]
    parameters_loaded: int
    parameters_effective: int
    memory_bytes: int

    @property
    def title(self) -> str:
        """`loaded: text`, and beside it what towers add to it: `+vision`."""
        return "".join(f"+{name}" for name in self.groups if name not in _TEXT_GROUPS) or f"loaded: {_EFFECTIVE}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a checkpoint (directory or Hugging Face id) or a bundle")
    parser.add_argument(
        "--plot", metavar="FILE", help="also draw what each size loads and what is effective, as FILE.svg or FILE.png"
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0."""
    if arguments.plot is not None:
        require_plot_name(arguments.plot)
    if (Path(arguments.path) / MANIFEST_NAME).exists():
        findings = _inspect_bundle(Path(arguments.path))
    else:
        with open_checkpoint(arguments.path) as checkpoint:
            findings = _inspect_checkpoint(checkpoint)
    if arguments.plot is not None:
        write_plot(_plot(findings), arguments.plot)
    terminal.result(_as_json(findings), _as_text(findings))
    return 0


def _inspect_checkpoint(checkpoint: Checkpoint) -> _Findings:
    groups: dict[str, _Group] = {
        item.name: _Group(item.parameters, item.stored_bytes) for item in checkpoint.groups if item.tensors
    }
    towers = {name: group.parameters for name, group in groups.items() if name not in _TEXT_GROUPS}
    sizes = {}
    for name, part in checkpoint.slices.items():
        facts = checkpoint.facts(part, bits_per_weight=_CHECKPOINT_BITS)
        memory = {_EFFECTIVE: facts.memory_bytes}
        memory |= {tower: count * _CHECKPOINT_BITS // 8 for tower, count in towers.items()}
        sizes[name] = _Size(facts.layers, {**facts.parameters, **towers}, memory)
    return _Findings("checkpoint", checkpoint.architecture, groups, sizes)


def _inspect_bundle(path: Path) -> _Findings:
    manifest = read_manifest(path)
    order = sorted(manifest.groups, key=[*GROUP_NAMES, *sorted(manifest.groups)].index)
    groups = {name: _Group(manifest.groups[name].parameters, manifest.groups[name].bytes) for name in order}
    towers = {name: group for name, group in groups.items() if name not in _TEXT_GROUPS}
    sizes = {
        name: _Size(
            found.layers,
            {**found.parameters, **{tower: group.parameters for tower, group in towers.items()}},
            {_EFFECTIVE: found.memory_bytes, **{tower: group.bytes for tower, group in towers.items()}},
        )
        for name, found in footprints(path, manifest).items()
    }
    return _Findings("bundle", manifest.architecture, groups, sizes)


def _sets(size: _Size) -> Iterator[_Set]:
    """Every set of groups, the text groups alone first and all groups last."""
    towers = [name for name in size.parameters if name not in _TEXT_GROUPS]
    for count in range(len(towers) + 1):
        for chosen in combinations(towers, count):
            groups = (*_TEXT_GROUPS, *chosen)
            yield _Set(
                groups,
                sum(size.parameters[name] for name in groups),
                size.parameters[_EFFECTIVE],
                sum(size.memory.get(name, 0) for name in groups),
            )


def _as_json(findings: _Findings) -> dict[str, object]:
    return {
        "kind": findings.kind,
        "architecture": findings.architecture,
        "groups": {
            name: {"parameters": group.parameters, "bytes": group.bytes} for name, group in findings.groups.items()
        },
        "sizes": {name: _size_json(size) for name, size in findings.sizes.items()},
    }


def _size_json(size: _Size) -> dict[str, object]:
    """The size with all groups, and in `sets` with each set of them; `memory_bytes` of the size is that of text."""
    sets = list(_sets(size))
    return {
        "layers": size.layers,
        "parameters_loaded": sets[-1].parameters_loaded,
        "parameters_effective": sets[-1].parameters_effective,
        "memory_bytes": sets[0].memory_bytes,
        "parameters": dict(size.parameters),
        "sets": [
            {
                "groups": list(item.groups),
                "parameters_loaded": item.parameters_loaded,
                "parameters_effective": item.parameters_effective,
                "memory_bytes": item.memory_bytes,
            }
            for item in sets
        ],
    }


def _as_text(findings: _Findings) -> str:
    return "\n\n".join(
        [
            f"{findings.kind} of {findings.architecture}",
            _groups_table(findings.groups),
            _sizes_table(findings),
            "\n".join(_notes(findings)),
        ]
    )


def _groups_table(groups: Mapping[str, _Group]) -> str:
    total = _Group(sum(group.parameters for group in groups.values()), sum(group.bytes for group in groups.values()))
    rows = [[name, count_text(g.parameters), bytes_text(g.bytes)] for name, g in [*groups.items(), ("all", total)]]
    return table(["group", "parameters", "bytes"], rows)


def _sizes_table(findings: _Findings) -> str:
    """One row a size, one column for what each set of groups loads."""
    rows = []
    titles: Sequence[str] = []
    for name, size in findings.sizes.items():
        sets = list(_sets(size))
        titles = [item.title for item in sets]
        loaded = [count_text(item.parameters_loaded) for item in sets]
        effective, memory = count_text(sets[0].parameters_effective), bytes_text(sets[0].memory_bytes)
        rows.append([name, str(size.layers), *loaded, effective, memory])
    memory = f"memory in int{_CHECKPOINT_BITS}" if findings.kind == "checkpoint" else "memory"
    return table(["size", "layers", *titles, "effective", memory], rows)


def _notes(findings: _Findings) -> Iterator[str]:
    """Which groups make up each figure."""
    towers = [name for name in findings.groups if name not in _TEXT_GROUPS]
    yield f"loaded: {', '.join(_TEXT_GROUPS)}" + (f", and the towers named: {', '.join(towers)}" if towers else "")
    without = ", ".join([*_TEXT_GROUPS[1:], *(towers or ["vision", "audio"])])
    yield f"effective: {_EFFECTIVE} alone, as the names of sizes count (E2B: 2 B); without {without}"
    cache = ", without KV cache" if findings.kind == "checkpoint" else ", and the KV cache"
    yield f"memory: the weights that each generated token reads{cache}; embedding tables stay on flash"
    if towers:
        yield f"        a tower that is loaded adds its own: {', '.join(_tower_memory(findings, towers))}"


def _tower_memory(findings: _Findings, towers: Sequence[str]) -> Iterator[str]:
    size = next(iter(findings.sizes.values()))
    return (f"{name} {bytes_text(size.memory[name])}" for name in towers)


def _plot(findings: _Findings) -> StackedBars:
    """Two bars a size: its groups, one upon the other, and the one that is effective."""
    bars: list[Bar] = []
    most = max(sum(size.parameters.values()) for size in findings.sizes.values())
    unit, factor = ("billion", 1e9) if most >= 10**9 else ("million", 1e6)
    for name, size in findings.sizes.items():
        counts = {group: count / factor for group, count in size.parameters.items()}
        bars.append(Bar(f"{name}  loaded", counts, gap_before=bool(bars)))
        bars.append(Bar("effective", {_EFFECTIVE: counts[_EFFECTIVE]}))
    return StackedBars("Parameters: loaded by group, and effective", f"{unit} parameters", bars)
