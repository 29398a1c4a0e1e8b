"""Splits a program's output into lines, and removes prefixes that loggers add."""

from __future__ import annotations

import re

_LOGCAT = re.compile(
    r"(?:\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} +\d+ +\d+ [VDIWEFS] [^:]*: ?|[VDIWEFS]/[^(]*\( *\d+\): ?)", re.ASCII
)
"""logcat's formats threadtime and brief."""
_ABSL = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ [\w.-]+:\d+\] ?", re.ASCII)
_LITERT = re.compile(r"(?:VERBOSE|INFO|WARNING|ERROR): \[[\w.-]+:\d+\] ?", re.ASCII)


def clean_lines(text: str) -> list[str]:
    r"""Split into complete lines, stripped, without CR and the prefixes of logcat, absl and LiteRT. A last line without
    a newline is dropped: it may be truncated, even within a number.

    >>> clean_lines("I/native (12): Init: 3 ms\r\nI0000 00:00:17.4   56 a.cc:1] Total\nInit: 1")
    ['Init: 3 ms', 'Total']
    """
    lines = []
    for line in text.split("\n")[:-1]:
        for prefix in (_LOGCAT, _ABSL, _LITERT):
            match = prefix.match(line)
            line = line[match.end() :] if match is not None else line
        lines.append(line.strip())
    return lines
