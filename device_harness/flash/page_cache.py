"""Drops a model's files from a machine's page cache, for a start that is cold to the kernel, and reports what stays."""

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
    """The probe's report on the files that it dropped, by mincore."""

    record: Literal["dropped"]
    files: Annotated[int, Range(1, 2**32)]
    bytes: Annotated[int, Range(0, 2**53)]
    resident_bytes: Annotated[int, Range(0, 2**53)]
    """The size of pages still in memory: mapped by other processes, not yet written, or of files we may not query."""


@dataclass(frozen=True, slots=True)
class PageCache:
    """A machine's page cache; `program` is the path of the flash probe on the machine. It does not need root."""

    program: str

    def drop(self, machine: Machine, paths: Sequence[str]) -> DroppedFiles:
        """Drop files from the page cache; EnvironmentFault if the program fails, ResultsError for an invalid report."""
        what = f"{machine.serial} page cache"
        command = " ".join(map(shlex.quote, [self.program, "--drop", *paths]))
        text = machine.shell(command, timeout=_DROP_S).require(what).strip()
        return read_record(parse_json(text.encode(), None, ResultsError, what), DroppedFiles, None, ResultsError, what)


def place_page_cache(machine: Machine, say: Callable[[str], None]) -> PageCache:
    """Copy the flash probe to the machine; EnvironmentFault if it cannot be built."""
    return PageCache(place_probe(machine, say).program)
