"""Parsers for the text of files in Linux's /proc/PID, from this machine or from a phone.

A value that the kernel leaves out is None, never 0: a zombie has no memory lines, and old kernels have fewer keys. The
files are specified in the kernel's Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from toolkit.base.errors import EnvironmentFault

_KILOBYTES = re.compile(r"([0-9]+) kB", re.ASCII)
_MAPPING = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) [r-][w-][x-]([sp]) ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ [0-9]+(?: +(.*))?", re.ASCII
)
_KEY = re.compile(r"([^:\s][^:]*):[ \t]*(.*)")
_FAULTS_AND_START = (9, 11, 21)  # minflt, majflt, starttime: fields 10, 12, 22 of proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """The memory of a process, from /proc/PID/status."""

    rss_bytes: int | None
    """VmRSS: resident now; the sum of the three `rss_*` fields below."""
    peak_rss_bytes: int | None
    """VmHWM: the highest value of VmRSS so far, file pages included."""
    swap_bytes: int | None
    """VmSwap: anonymous pages swapped out; on phones into compressed memory (zram)."""
    rss_anonymous_bytes: int | None
    rss_file_bytes: int | None
    """Pages of mapped files: the kernel can drop clean ones and read them again."""
    rss_shmem_bytes: int | None


@dataclass(frozen=True, slots=True)
class SmapsRollup:
    """The memory of a process, from /proc/PID/smaps_rollup; PSS counts a page that n processes map as 1/n of it."""

    rss_bytes: int | None
    pss_bytes: int | None
    pss_anonymous_bytes: int | None
    pss_file_bytes: int | None
    pss_shmem_bytes: int | None
    private_clean_bytes: int | None
    private_dirty_bytes: int | None
    swap_bytes: int | None
    swap_pss_bytes: int | None


@dataclass(frozen=True, slots=True)
class MemoryMapping:
    """One memory mapping of a process, from /proc/PID/smaps."""

    begin: int
    end: int
    path: str
    """As the kernel prints it: a file, `[heap]`, `/memfd:NAME (deleted)`, or empty."""
    rss_bytes: int | None
    pss_bytes: int | None
    anonymous_bytes: int | None
    """Resident bytes that are not backed by a file: anonymous ones, and ones written in a private mapping."""
    offset: int = 0
    """The offset in the file at which the mapping begins."""

    @property
    def size_bytes(self) -> int:
        """The size of the address range, resident or not."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """Part of /proc/PID/stat. The id and the start time together identify a process, since ids are reused."""

    pid: int
    minor_faults: int
    """Page faults served without reading from storage."""
    major_faults: int
    """Page faults that had to read from storage."""
    start_ticks: int
    """The process's start, in clock ticks since boot."""


@dataclass(frozen=True, slots=True)
class ProcessIo:
    """What a process has read, from /proc/PID/io."""

    rchar_bytes: int | None
    """Returned by read calls, whether from the page cache or from storage; mapped pages are not counted."""
    read_bytes: int | None
    """Read from storage, including for mapped pages."""


def parse_status(text: str) -> ProcessStatus:
    """Parse /proc/PID/status; EnvironmentFault for any other text."""
    found = _keys(_lines(text), "process status")
    if "Pid" not in found:
        raise _unlike("process status", text, "lines with a Pid")
    sizes = _Sizes("process status", found)
    return ProcessStatus(
        rss_bytes=sizes.of("VmRSS"),
        peak_rss_bytes=sizes.of("VmHWM"),
        swap_bytes=sizes.of("VmSwap"),
        rss_anonymous_bytes=sizes.of("RssAnon"),
        rss_file_bytes=sizes.of("RssFile"),
        rss_shmem_bytes=sizes.of("RssShmem"),
    )


def parse_smaps_rollup(text: str) -> SmapsRollup:
    """Parse /proc/PID/smaps_rollup; EnvironmentFault for any other text."""
    head, *rest = _lines(text)
    match = _MAPPING.fullmatch(head)
    if match is None or match[5] != "[rollup]":
        raise _unlike("smaps_rollup", text, "a first line that ends in [rollup]")
    sizes = _Sizes("smaps_rollup", _keys(rest, "smaps_rollup"))
    return SmapsRollup(
        rss_bytes=sizes.of("Rss"),
        pss_bytes=sizes.of("Pss"),
        pss_anonymous_bytes=sizes.of("Pss_Anon"),
        pss_file_bytes=sizes.of("Pss_File"),
        pss_shmem_bytes=sizes.of("Pss_Shmem"),
        private_clean_bytes=sizes.of("Private_Clean"),
        private_dirty_bytes=sizes.of("Private_Dirty"),
        swap_bytes=sizes.of("Swap"),
        swap_pss_bytes=sizes.of("SwapPss"),
    )


def parse_smaps(text: str) -> tuple[MemoryMapping, ...]:
    """Parse /proc/PID/smaps: all mappings, in order of address. EnvironmentFault for any other text.

    A process without memory, such as a zombie, has no mappings.
    """
    blocks: list[tuple[re.Match[str], list[str]]] = []
    for line in _lines(text):
        match = _MAPPING.fullmatch(line)
        if match is not None:
            blocks.append((match, []))
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip():
            raise _unlike("smaps", text, "a first line with addresses")
    return tuple(_mapping(match, lines) for match, lines in blocks)


def parse_shared_maps(text: str) -> dict[str, list[tuple[int, int]]]:
    """Parse /proc/PID/maps: the address ranges (begin, end) of the shared mappings, by file; writes reach the file."""
    found: dict[str, list[tuple[int, int]]] = {}
    for line in filter(None, _lines(text)):
        match = _MAPPING.fullmatch(line)
        if match is None:
            raise _unlike("maps", line, "a line with addresses")
        if match[3] == "s":
            found.setdefault(match[5] or "", []).append((int(match[1], 16), int(match[2], 16)))
    return found


def parse_stat(text: str) -> ProcessStat:
    """Parse /proc/PID/stat; EnvironmentFault for any other text. The process name may itself contain brackets."""
    pid, bracket, _ = text.partition(" (")
    fields = text.rpartition(")")[2].split()
    # The first field after the name is field 3.
    numbers = [fields[place - 2] if place - 2 < len(fields) else "" for place in _FAULTS_AND_START]
    if not bracket or not all(number.isascii() and number.isdigit() for number in (pid, *numbers)):
        raise _unlike("process stat", text, "PID (NAME) STATE and at least 19 numbers")
    minor, major, start = map(int, numbers)
    return ProcessStat(int(pid), minor, major, start)


def parse_io(text: str) -> ProcessIo:
    """Parse /proc/PID/io; EnvironmentFault for any other text."""
    found = _keys(_lines(text), "process io")
    if not found:
        raise _unlike("process io", text, "lines of KEY: NUMBER")
    for key, value in found.items():
        if not (value.isascii() and value.isdigit()):
            raise EnvironmentFault(f"process io {key}", found=repr(value), wanted="a number of bytes")
    rchar, read = found.get("rchar"), found.get("read_bytes")
    return ProcessIo(None if rchar is None else int(rchar), None if read is None else int(read))


class _Sizes:
    """The values of one file, which are stated in kB."""

    def __init__(self, what: str, values: Mapping[str, str]) -> None:
        self._what, self._values = what, values

    def of(self, key: str) -> int | None:
        """A value in bytes; None if the key is absent."""
        value = self._values.get(key)
        if value is None:
            return None
        match = _KILOBYTES.fullmatch(value)
        if match is None:
            raise EnvironmentFault(f"{self._what} {key}", found=repr(value), wanted="a number of kB")
        return int(match[1]) * 1024


def _mapping(match: re.Match[str], lines: Iterable[str]) -> MemoryMapping:
    begin, end = int(match[1], 16), int(match[2], 16)
    what = f"smaps {match[1]}"
    if end <= begin:
        raise EnvironmentFault(what, found=f"the end {match[2]} is not after the beginning")
    sizes = _Sizes(what, _keys(lines, what))
    rss, pss, anonymous = map(sizes.of, ("Rss", "Pss", "Anonymous"))
    return MemoryMapping(begin, end, match[5] or "", rss, pss, anonymous, int(match[4], 16))


def _lines(text: str) -> list[str]:
    """The lines of a text, at least one; adb's shell may end them with CR LF."""
    return [line.rstrip("\r") for line in text.split("\n")]


def _keys(lines: Iterable[str], what: str) -> dict[str, str]:
    """The values of `KEY: VALUE` lines, by key; EnvironmentFault for any other line or a repeated key."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, lines)):
        match = _KEY.fullmatch(line)
        if match is None:
            raise EnvironmentFault(what, found=repr(line[:80]), wanted="KEY: VALUE")
        if match[1] in found:
            raise EnvironmentFault(f"{what} {match[1]}", found="a duplicate key")
        found[match[1]] = match[2]
    return found


def _unlike(what: str, text: str, wanted: str) -> EnvironmentFault:
    return EnvironmentFault(what, found=repr(text[:80]), wanted=wanted)
