"""Takes a model's files out of a machine's page cache, and says what stayed: a start may be cold to the kernel too."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from device_harness.flash.probe import place_probe
from device_harness.machines.machine import Machine
from toolkit.base.errors import ResultsError
from toolkit.base.json_types import Range
from toolkit.base.strict_json import parse_json, read_record

_DROP_S = 120.0


@dataclass(frozen=True, slots=True)
class DroppedFiles:
    """What the probe says of its work, by mincore."""

    record: Literal["dropped"]
    files: Annotated[int, Range(1, 2**32)]
    bytes: Annotated[int, Range(0, 2**53)]
    resident_bytes: Annotated[int, Range(0, 2**53)]
    """Whole pages that are in memory all the same: mapped by others, not yet written, or not ours to ask about."""


@dataclass(frozen=True, slots=True)
class PageCache:
    """`program`: the flash probe on the machine, which needs no root for it."""

    program: str

    def drop(self, machine: Machine, paths: Sequence[str]) -> DroppedFiles:
        """EnvironmentFault if the program fails; ResultsError if it does not say what it did."""
        what = f"{machine.serial} page cache"
        command = " ".join(map(shlex.quote, [self.program, "--drop", *paths]))
        text = machine.shell(command, timeout=_DROP_S).require(what).strip()
        return read_record(parse_json(text.encode(), None, ResultsError, what), DroppedFiles, None, ResultsError, what)


def place_page_cache(machine: Machine, say: Callable[[str], None]) -> PageCache:
    """Bring the program there; EnvironmentFault if none can be built."""
    return PageCache(place_probe(machine, say).program)
