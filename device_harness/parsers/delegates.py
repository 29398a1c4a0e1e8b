"""What TFLite's log says of delegates: how many nodes of a graph each has taken."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from device_harness.parsers.lines import clean_lines
from toolkit.results.record import Backend, Delegation

_DELEGATE = re.compile(
    r"(?:\w+: )?Replacing (\d+) out of (\d+) node\(s\) with delegate \(([^)]*)\) node, yielding (\d+) partitions.*",
    re.ASCII,
)
_CPU_DELEGATE = "XNNPack"
_LOG = "the log"


@dataclass(frozen=True, slots=True)
class DelegateLine:
    """A delegate took `replaced` of a subgraph's nodes."""

    delegate: str
    replaced: int
    nodes: int


def parse_delegates(text: str) -> tuple[DelegateLine, ...]:
    """What TFLite's log says when delegates take nodes."""
    matches = (_DELEGATE.fullmatch(line) for line in clean_lines(text))
    return tuple(DelegateLine(match[3], int(match[1]), int(match[2])) for match in matches if match is not None)


def delegation(lines: Iterable[DelegateLine], backend: Backend) -> Delegation | None:
    """How many nodes of all subgraphs went to the backend's delegate; None if the log says nothing.

    The CPU's delegate counts as none for the GPU: what it took is what the GPU would not.
    """
    found = [line for line in lines if line.replaced <= line.nodes]
    if not found:
        return None
    ours = [line for line in found if (_CPU_DELEGATE.lower() in line.delegate.lower()) == (backend == "cpu")]
    if not ours:
        return Delegation(0, sum(line.nodes for line in found), _LOG)
    return Delegation(sum(line.replaced for line in ours), sum(line.nodes for line in ours), _LOG)
