"""The choice of an adapter and its scale: `DIR`, `DIR=0.5`, or a Hugging Face id instead of a directory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import UsageError

_LARGEST_SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """An adapter and its scale: 1 merges what was trained, 0.5 half of the change to each weight."""

    source: str | Path
    """A directory, or a Hugging Face id with or without `@REVISION`."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0 or abs(self.scale) > _LARGEST_SCALE:
            wanted = f"a number from -{_LARGEST_SCALE:g} to {_LARGEST_SCALE:g}, not 0"
            raise UsageError(f"scale of adapter {self.source}", found=self.scale, wanted=wanted)


AdapterLike = str | Path | AdapterChoice
"""An adapter in the form that `parse_adapter` reads, or as a choice."""


def adapter_choices(adapters: Sequence[AdapterLike]) -> tuple[AdapterChoice, ...]:
    """The choices, in the same order."""
    return tuple(item if isinstance(item, AdapterChoice) else parse_adapter(item) for item in adapters)


def parse_adapter(text: str | Path) -> AdapterChoice:
    """Parse `DIR`, `DIR=SCALE`, `ID` or `ID=SCALE`; a directory with exactly this name takes precedence.

    >>> parse_adapter("user/pirate@main=0.5"), parse_adapter("pirate").scale
    (AdapterChoice(source='user/pirate@main', scale=0.5), 1.0)
    """
    if not isinstance(text, str) or os.path.exists(text):  # also False for what cannot be a path
        return AdapterChoice(text)
    source, equals, scale = text.rpartition("=")
    if not equals:
        return AdapterChoice(text)
    try:
        number = float(scale)
    except ValueError as error:
        wanted = "DIR or DIR=SCALE, as in pirate=0.5"
        raise UsageError("adapter", found=text, wanted=wanted, remedy="no such directory") from error
    return AdapterChoice(source, number)
