"""Parses the output of LiteRT's profiler."""

from __future__ import annotations

import re

from toolkit.base.errors import EnvironmentFault

_ROW = re.compile(r" *(\S.*?)(?: +[\d.]+){3}(?: +[\d.]+%){2} +[\d.]+ +(\d{1,9}) +\[\w+\]:\d+", re.ASCII)
_ROWS = re.compile(r"Number of nodes executed: (\d{1,9})\b", re.ASCII)


def undelegated_nodes(summary: str) -> int:
    """The number of nodes in a profiler's summary that no delegate took; EnvironmentFault if it is truncated."""
    lines, _, rest = summary.partition("Run Order")[2].partition("Top by Computation Time")
    rows = list(filter(None, map(_ROW.fullmatch, lines.splitlines())))
    told = _ROWS.search(rest)
    if told is None or len(rows) != int(told[1]):
        wanted = "every one, and their number" if told is None else told[1]
        raise EnvironmentFault("LiteRT's profile", found=f"{len(rows)} rows", wanted=wanted)
    return sum(int(row[2]) for row in rows if "delegate" not in row[1].lower())
