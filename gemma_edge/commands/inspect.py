"""`gemma-edge inspect`: shows the groups and sizes of a checkpoint or a bundle, with parameters and memory."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gemma_edge.api.inspect import (
    CHECKPOINT_BITS,
    EFFECTIVE,
    TEXT_GROUPS,
    GroupSet,
    InspectedGroup,
    InspectedSize,
    Inspection,
    inspect,
    inspect_file,
)
from gemma_edge.options.checkpoints import add_checkpoint_arguments
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.unused import refuse_unused
from gemma_edge.terminal import Terminal, one_line, table
from gemma_edge.words.files import file_json, file_text
from gemma_edge.words.quality import kept_lines
from toolkit.base.errors import UsageError
from toolkit.litertlm.recognise import is_litertlm
from toolkit.report.plots import Bar, StackedBars, plot_output, write_plot
from toolkit.results.quantities import bytes_text, count_text

EXAMPLES = (
    "gemma-edge inspect google/gemma-3n-E4B-it",
    "gemma-edge inspect path/to/checkpoint --json",
    "gemma-edge inspect BUNDLE --plot sizes.svg",
    "gemma-edge inspect model.litertlm",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="a checkpoint (directory or Hugging Face id), a bundle, or a .litertlm"
    )
    add_checkpoint_arguments(parser, "check whether this LoRA adapter can be merged into the checkpoint")
    parser.add_argument(
        "--plot", metavar="FILE", help="also draw each size's loaded and effective parameters, as FILE.svg or FILE.png"
    )
    add_force_option(parser, "a file that is not a gemma-edge plot")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0."""
    refuse_unused("--force", arguments.force and arguments.plot is None, "without --plot")
    if is_litertlm(Path(arguments.path)):
        return _file(arguments, terminal)
    output = None
    if arguments.plot is not None:
        inputs = [Path(source) for source in (arguments.path, *(choice.source for choice in arguments.adapters))]
        output = plot_output(arguments.plot, inputs, force=arguments.force)
        output.require()
    findings = inspect(arguments.path, revision=arguments.revision, adapters=arguments.adapters)
    if output is not None:
        write_plot(_plot(findings), output)
    terminal.result(_as_json(findings), _as_text(findings))
    return 0


def _file(arguments: argparse.Namespace, terminal: Terminal) -> int:
    for option, given, wanted in (
        ("--plot", arguments.plot, "a checkpoint or a bundle"),
        ("--adapter", arguments.adapters, "a checkpoint"),
        ("--revision", arguments.revision, "a Hugging Face id"),
    ):
        if given:
            raise UsageError(option, found="it cannot be used with a file", wanted=wanted)
    findings = inspect_file(arguments.path)
    terminal.result(file_json(findings), file_text(findings))
    return 0


def _as_json(findings: Inspection) -> dict[str, object]:
    return {
        "kind": findings.kind,
        "architecture": findings.architecture,
        "groups": {
            name: {"parameters": group.parameters, "bytes": group.bytes} for name, group in findings.groups.items()
        },
        "sizes": {name: _size_json(size) for name, size in findings.sizes.items()},
        "quality": None if findings.quality is None else dataclasses.asdict(findings.quality),
        "faults": {group: str(fault) for group, fault in findings.faults.items()},
        "adapters": [{"name": item.name, "scale": item.scale, "sha256": item.sha256} for item in findings.adapters],
    }


def _size_json(size: InspectedSize) -> dict[str, object]:
    """The JSON of a size, with all groups and in `sets` with each set of groups; `memory_bytes` is for text only."""
    sets = list(size.sets())
    return {
        "layers": size.layers,
        "parameters_loaded": sets[-1].parameters_loaded,
        "parameters_effective": sets[-1].parameters_effective,
        "memory_bytes": sets[0].memory_bytes,
        **({"bytes_per_token": dict(size.bytes_per_token)} if size.bytes_per_token else {}),
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


def _as_text(findings: Inspection) -> str:
    return "\n\n".join(
        [
            "\n".join([*map(one_line, [f"{findings.kind} of {findings.architecture}", *_adapters(findings)])]),
            _groups_table(findings.groups),
            _sizes_table(findings),
            *_reads_table(findings),
            "\n".join(map(one_line, [*_notes(findings), *kept_lines(findings.quality)])),
        ]
    )


def _reads_table(findings: Inspection) -> Iterator[str]:
    """A table of the weights that a token reads in each size of a bundle, by component; none for a checkpoint."""
    sizes = {name: size.bytes_per_token for name, size in findings.sizes.items() if size.bytes_per_token}
    if sizes:
        components = dict.fromkeys(component for reads in sizes.values() for component in reads)
        rows = [
            [component, *(bytes_text(reads.get(component, 0)) for reads in sizes.values())] for component in components
        ]
        rows.append(["all", *(bytes_text(sum(reads.values())) for reads in sizes.values())])
        yield table(["weights read for a token", *sizes], rows)


def _adapters(findings: Inspection) -> Iterator[str]:
    for item in findings.adapters:
        yield f"merged adapter: {item.name}, scale {item.scale:g}, sha256 {item.sha256[:16]}..."


def _groups_table(groups: Mapping[str, InspectedGroup]) -> str:
    total = InspectedGroup(
        sum(group.parameters for group in groups.values()), sum(group.bytes for group in groups.values())
    )
    rows = [[name, count_text(g.parameters), bytes_text(g.bytes)] for name, g in [*groups.items(), ("all", total)]]
    return table(["group", "parameters", "bytes"], rows)


def _sizes_table(findings: Inspection) -> str:
    """A table with a row for each size, and a column for the parameters that each set of groups loads."""
    rows = []
    titles: Sequence[str] = []
    for name, size in findings.sizes.items():
        sets = list(size.sets())
        titles = [_title(item) for item in sets]
        loaded = [count_text(item.parameters_loaded) for item in sets]
        effective, memory = count_text(sets[0].parameters_effective), bytes_text(sets[0].memory_bytes)
        rows.append([name, str(size.layers), *loaded, effective, memory])
    bits = findings.memory_bits
    memory = "memory" if bits is None else "memory in int8" if bits == CHECKPOINT_BITS else "memory as stored"
    return table(["size", "layers", *titles, "effective", memory], rows)


def _title(groups: GroupSet) -> str:
    """The heading of a set of groups: `loaded: text` for the first, else the added towers, as in `+vision`."""
    return "".join(f"+{name}" for name in groups.groups if name not in TEXT_GROUPS) or f"loaded: {EFFECTIVE}"


def _notes(findings: Inspection) -> Iterator[str]:
    """Lines that explain which groups each figure counts."""
    towers = [name for name in findings.groups if name not in TEXT_GROUPS]
    yield f"loaded: {', '.join(TEXT_GROUPS)}" + (f", and the towers named: {', '.join(towers)}" if towers else "")
    without = ", ".join([*TEXT_GROUPS[1:], *towers])
    yield f"effective: {EFFECTIVE} alone, which the names of sizes count (E2B: 2 B); without {without}"
    cache = ", without KV cache" if findings.kind == "checkpoint" else ", and the KV cache"
    yield f"memory: the weights that each generated token reads{cache}; embedding tables stay on flash"
    if towers:
        yield f"        each tower that is loaded adds: {', '.join(_tower_memory(findings, towers))}"


def _tower_memory(findings: Inspection, towers: Sequence[str]) -> Iterator[str]:
    size = next(iter(findings.sizes.values()))
    return (f"{name} {bytes_text(size.memory[name])}" for name in towers)


def _plot(findings: Inspection) -> StackedBars:
    """A plot with two bars for each size: all its groups, stacked, and its effective parameters."""
    bars: list[Bar] = []
    most = max(sum(size.parameters.values()) for size in findings.sizes.values())
    unit, factor = ("billion", 1e9) if most >= 10**9 else ("million", 1e6)
    for name, size in findings.sizes.items():
        counts = {group: count / factor for group, count in size.parameters.items()}
        bars.append(Bar(f"{name}  loaded", counts, gap_before=bool(bars)))
        bars.append(Bar("effective", {EFFECTIVE: counts[EFFECTIVE]}))
    return StackedBars("Parameters: loaded by group, and effective", f"{unit} parameters", bars)
