"""Parses TFLite's log and LiteRT's profile for delegates: how many nodes of a graph each of them took."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from device_harness.parsers.lines import clean_lines
from toolkit.base.errors import EnvironmentFault
from toolkit.results.record import Backend, Delegation

_DELEGATE = re.compile(
    r"(?:\w+: )?Replacing (\d{1,9}) out of (\d{1,9}) node\(s\) with delegate \(([^)]*)\) node, "
    r"yielding (\d{1,9}) partitions.*",
    re.ASCII,
)
_PROFILE_ROW = re.compile(r" *(\S.*?)(?: +[\d.]+){3}(?: +[\d.]+%){2} +[\d.]+ +(\d{1,9}) +\[\w+\]:\d+", re.ASCII)
_PROFILE_ROWS = re.compile(r"Number of nodes executed: (\d{1,9})\b", re.ASCII)
_CPU_DELEGATE = "XNNPack"
_LOG = "the log"


@dataclass(frozen=True, slots=True)
class DelegateLine:
    """A line of the log: a delegate took `replaced` of a subgraph's `nodes`."""

    delegate: str
    replaced: int
    nodes: int


def parse_delegates(text: str) -> tuple[DelegateLine, ...]:
    """Parse the lines that TFLite logs when delegates take nodes."""
    matches = (_DELEGATE.fullmatch(line) for line in clean_lines(text))
    return tuple(DelegateLine(match[3], int(match[1]), int(match[2])) for match in matches if match is not None)


def delegation(lines: Iterable[DelegateLine], backend: Backend) -> Delegation | None:
    """Sum up how many nodes of all subgraphs the backend's delegate took; None if the log has no such line.

    For the GPU, nodes of the CPU's delegate do not count: they are those that the GPU did not take.
    """
    found = [line for line in lines if line.replaced <= line.nodes]
    if not found:
        return None
    ours = [line for line in found if (_CPU_DELEGATE.lower() in line.delegate.lower()) == (backend == "cpu")]
    if not ours:
        return Delegation(0, sum(line.nodes for line in found), _LOG)
    return Delegation(sum(line.replaced for line in ours), sum(line.nodes for line in ours), _LOG)


def undelegated_nodes(summary: str) -> int:
    """The number of nodes in a summary of LiteRT's profiler that no delegate took; EnvironmentFault if it is cut."""
    lines, _, rest = summary.partition("Run Order")[2].partition("Top by Computation Time")
    rows = list(filter(None, map(_PROFILE_ROW.fullmatch, lines.splitlines())))
    told = _PROFILE_ROWS.search(rest)
    if told is None or len(rows) != int(told[1]):
        wanted = "every one, and their number" if told is None else told[1]
        raise EnvironmentFault("LiteRT's profile", found=f"{len(rows)} rows", wanted=wanted)
    return sum(int(row[2]) for row in rows if "delegate" not in row[1].lower())
