"""``gemma-edge inspect``: what is in a checkpoint or a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.gemma3n.matformer import effective_parameters, loaded_parameters, slice_config
from converters.gemma3n.sizes import memory_bytes
from toolkit.bundle.footprint import footprints
from toolkit.bundle.manifest import MANIFEST_NAME
from toolkit.bundle.manifest_json import read_manifest
from toolkit.commands.terminal import Terminal, bytes_text, count_text, table

NAME = "inspect"
SUMMARY = "show a checkpoint's or a bundle's groups, sizes and memory"
EXAMPLES = (
    "gemma-edge inspect google/gemma-3n-E4B-it",
    "gemma-edge inspect path/to/checkpoint --json",
    "gemma-edge inspect BUNDLE",
)


@dataclass(frozen=True, slots=True)
class _Size:
    layers: int
    parameters_loaded: int
    parameters_effective: int
    memory_bytes: int
    """A bundle's: weights and caches. A checkpoint's: weights, in int8."""


@dataclass(frozen=True, slots=True)
class _Findings:
    kind: str
    architecture: str
    groups: Mapping[str, tuple[int, int]]
    """Name to parameters and bytes."""
    sizes: Mapping[str, _Size]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a checkpoint (directory or Hugging Face id) or a bundle")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0."""
    if (Path(arguments.path) / MANIFEST_NAME).exists():
        findings = _inspect_bundle(Path(arguments.path))
    else:
        with open_checkpoint(arguments.path) as checkpoint:
            findings = _inspect_checkpoint(checkpoint)
    terminal.result(_as_json(findings), _as_text(findings))
    return 0


def _inspect_checkpoint(checkpoint: Checkpoint) -> _Findings:
    sizes = {}
    for name, part in checkpoint.slices.items():
        config = slice_config(checkpoint.config, part)
        sizes[name] = _Size(
            config.num_layers, loaded_parameters(config), effective_parameters(config), memory_bytes(config, 8)
        )
    groups: dict[str, tuple[int, int]] = {
        group.name: (group.parameters, group.stored_bytes) for group in checkpoint.groups if group.tensors
    }
    return _Findings("checkpoint", checkpoint.architecture, groups, sizes)


def _inspect_bundle(path: Path) -> _Findings:
    manifest = read_manifest(path)
    sizes = {
        name: _Size(found.layers, found.parameters_loaded, found.parameters_effective, found.memory_bytes)
        for name, found in footprints(path, manifest).items()
    }
    groups = {name: (group.parameters, group.bytes) for name, group in manifest.groups.items()}
    return _Findings("bundle", manifest.architecture, groups, sizes)


def _as_json(findings: _Findings) -> dict[str, object]:
    return {
        "kind": findings.kind,
        "architecture": findings.architecture,
        "groups": {name: {"parameters": count, "bytes": size} for name, (count, size) in findings.groups.items()},
        "sizes": {
            name: {
                "layers": size.layers,
                "parameters_loaded": size.parameters_loaded,
                "parameters_effective": size.parameters_effective,
                "memory_bytes": size.memory_bytes,
            }
            for name, size in findings.sizes.items()
        },
    }


def _as_text(findings: _Findings) -> str:
    totals = [sum(values) for values in zip(*findings.groups.values(), strict=True)]
    groups = [[name, count_text(count), bytes_text(size)] for name, (count, size) in findings.groups.items()]
    sizes = [
        [
            name,
            str(size.layers),
            count_text(size.parameters_loaded),
            count_text(size.parameters_effective),
            bytes_text(size.memory_bytes),
        ]
        for name, size in findings.sizes.items()
    ]
    memory = "memory in int8" if findings.kind == "checkpoint" else "memory"
    note = (
        "memory: the weights that each generated token reads, without KV cache; embedding tables stay on flash"
        if findings.kind == "checkpoint"
        else "memory: the weights that each generated token reads, and the KV cache; embedding tables stay on flash"
    )
    return "\n".join(
        [
            f"{findings.kind} of {findings.architecture}",
            "",
            table(["group", "parameters", "bytes"], [*groups, ["all", count_text(totals[0]), bytes_text(totals[1])]]),
            "",
            table(["size", "layers", "loaded", "effective", memory], sizes),
            "",
            note,
        ]
    )
