"""Slices of a checkpoint, and budgets for choosing one; all families share these.

A *slice* says which layers of a checkpoint are kept and how wide; a *size* is a slice that a bundle offers by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolkit.base.errors import UsageError
from toolkit.base.strict_json import shorten

_BUDGET = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(B|M|GB|MB|GiB|MiB)", re.ASCII | re.IGNORECASE)
_UNITS = {"b": 10**9, "m": 10**6, "gb": 10**9, "mb": 10**6, "gib": 2**30, "mib": 2**20}


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a checkpoint. `layers`: the indices of the kept layers; `ffn_sizes`: the feed-forward width of each."""

    name: str
    layers: tuple[int, ...]
    ffn_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """A slice's layers, parameters by group, and memory: the bytes read for each generated token, without caches."""

    layers: int
    parameters: Mapping[str, int]
    """Parameters of the text groups; those of `text` are the effective ones, which the names of sizes count."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Budget:
    """A maximum number of effective parameters, or of bytes of memory."""

    amount: float
    unit: Literal["parameters", "bytes"]


def parse_budget(text: str) -> Budget:
    """Parse a budget: `3.0B` and `900M` are effective parameters; GB, MB, GiB and MiB are bytes of memory.

    >>> parse_budget("3GB"), parse_budget("2.5B")
    (Budget(amount=3000000000.0, unit='bytes'), Budget(amount=2500000000.0, unit='parameters'))
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise UsageError("budget", found=shorten(text), wanted="such as 3GB (of memory) or 3.0B (effective parameters)")
    unit = match[2].lower()
    return Budget(float(match[1]) * _UNITS[unit], "parameters" if unit in ("b", "m") else "bytes")
