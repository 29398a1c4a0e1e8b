"""Plans which chunks of a file to send, and which to copy on the device; checks free space. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from device_harness.push.source import PushFile
from toolkit.base.errors import EnvironmentFault

Action = Literal["copy", "send"]


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on the device: its size in bytes, and the numbers of its correct chunks."""

    size: int
    good: frozenset[int]
    stored: int
    """The bytes of storage that it takes: fewer than its size if chunks are still to come before others."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What the device has of a file: under its own name, and in the NAME.part of an interrupted push."""

    file: PushFile
    whole: Remote | None
    part: Remote | None

    @property
    def is_done(self) -> bool:
        """Whether the file on the device is already complete and correct."""
        whole = self.whole
        return whole is not None and whole.size == self.file.size and len(whole.good) == len(self.file.chunks)


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """Chunks `first` up to but not including `stop`, to be sent, or copied on the device from the old file."""

    action: Action
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class FilePlan:
    """How to build NAME.part. `gives_up_whole`: NAME itself is removed first, because there is no room for both.

    `starts_as_whole`: NAME becomes NAME.part; otherwise NAME.part is the one left by an interrupted push.
    """

    file: PushFile
    gives_up_whole: bool
    starts_as_whole: bool
    keep_bytes: int
    """The size to which NAME.part is truncated first: the end of its last correct chunk."""
    runs: tuple[ChunkSpan, ...]

    def runs_of(self, action: Action) -> list[ChunkSpan]:
        return [run for run in self.runs if run.action == action]

    def bytes_of(self, action: Action) -> int:
        return sum(self.file.extent(run.first, run.stop) for run in self.runs_of(action))

    @property
    def written(self) -> tuple[int, ...]:
        """The chunks that are newly written, and so must be verified."""
        return tuple(chunk for run in self.runs for chunk in range(run.first, run.stop))


def plan_push(states: Sequence[FileState], free_bytes: int, where: str) -> tuple[FilePlan, ...]:
    """Make a plan for each file that is not done. Old files are changed in place if there is no room for both.

    EnvironmentFault if there is not enough room even so; its text names the device by `where`.
    """
    missing = [state for state in states if not state.is_done]
    replaced: set[str] = set()
    for state in [None, *(state for state in missing if state.whole is not None)]:
        if state is not None:
            replaced.add(state.file.name)
        growth = sum(_growth(other, in_place=other.file.name in replaced) for other in missing)
        # Whole blocks and the file system's metadata take a little more room than the bytes.
        needed = growth + max(0, growth) // 256
        if needed <= free_bytes:
            return tuple(_plan_file(other, in_place=other.file.name in replaced) for other in missing)
    raise EnvironmentFault(
        where, found=f"{free_bytes:,} bytes free", wanted=f"{needed:,}", remedy="remove something from the device"
    )


def _growth(state: FileState, *, in_place: bool) -> int:
    """The bytes of storage that a file needs until it is complete, beyond what it has now."""
    whole = state.whole.size if in_place and state.whole is not None else 0
    part = state.part.stored if state.part is not None else 0
    return state.file.size - whole - part


def _plan_file(state: FileState, *, in_place: bool) -> FilePlan:
    nothing = Remote(0, frozenset(), 0)
    part, whole = state.part or nothing, state.whole or nothing
    starts_as_whole = in_place and len(whole.good) > len(part.good)
    base = whole if starts_as_whole else part
    keep = max((state.file.offset(chunk + 1) for chunk in base.good), default=0)
    copied = frozenset() if in_place else whole.good
    runs = tuple(_runs(state.file, base.good, copied))
    return FilePlan(state.file, in_place, starts_as_whole, keep, runs)


def _runs(file: PushFile, there: frozenset[int], copied: frozenset[int]) -> Iterator[ChunkSpan]:
    """Join neighbouring chunks with the same action into runs."""
    first, action = 0, None
    for chunk in range(len(file.chunks) + 1):
        now: Action | None = None
        if chunk < len(file.chunks) and chunk not in there:
            now = "copy" if chunk in copied else "send"
        if now != action:
            if action is not None:
                yield ChunkSpan(action, first, chunk)
            first, action = chunk, now
