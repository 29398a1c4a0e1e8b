"""What Linux tells of a process under /proc/PID, as text: pure parsers, for this machine's files and a phone's alike.

What a kernel leaves out is None, never 0: a zombie has no memory lines, old kernels know fewer kinds. The texts are
specified in the kernel's Documentation/filesystems/proc.rst.
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
    """Memory in /proc/PID/status."""

    rss_bytes: int | None
    """VmRSS: resident now, the sum of the three kinds below."""
    peak_rss_bytes: int | None
    """VmHWM: the most that was ever resident, file pages included."""
    swap_bytes: int | None
    """VmSwap: anonymous pages swapped out; on phones they lie compressed in zram."""
    rss_anonymous_bytes: int | None
    rss_file_bytes: int | None
    """Pages of mapped files: the kernel can drop clean ones and read them again."""
    rss_shmem_bytes: int | None


@dataclass(frozen=True, slots=True)
class SmapsRollup:
    """/proc/PID/smaps_rollup; the shares (PSS) count a page that n processes map as a n-th."""

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
    """One mapping of /proc/PID/smaps."""

    begin: int
    end: int
    path: str
    """As the kernel prints it: a file, `[heap]`, `/memfd:NAME (deleted)`, or nothing."""
    rss_bytes: int | None
    pss_bytes: int | None
    anonymous_bytes: int | None
    """Of the resident bytes, those that are no longer the file's: written, or never a file's."""
    offset: int = 0
    """In the file, where the mapping begins."""

    @property
    def size_bytes(self) -> int:
        """Addresses, resident or not."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """/proc/PID/stat: together with the id, the start says whether it is still the same process."""

    pid: int
    minor_faults: int
    """Pages that were in memory already."""
    major_faults: int
    """Pages that had to be read."""
    start_ticks: int
    """Since boot."""


@dataclass(frozen=True, slots=True)
class ProcessIo:
    """/proc/PID/io."""

    rchar_bytes: int | None
    """Returned by read calls, from the page cache or not; mapped pages do not count."""
    read_bytes: int | None
    """Fetched from storage, for mapped pages too."""


def parse_status(text: str) -> ProcessStatus:
    """EnvironmentFault unless it is a process's status."""
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
    """EnvironmentFault unless it is one line of addresses and a mapping's keys."""
    head, *rest = _lines(text)
    match = _MAPPING.fullmatch(head)
    if match is None or match[5] != "[rollup]":
        raise _unlike("smaps_rollup", text, "a line that ends in [rollup] first")
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
    """All mappings in order of address; none for a process without memory. EnvironmentFault for any other text."""
    blocks: list[tuple[re.Match[str], list[str]]] = []
    for line in _lines(text):
        match = _MAPPING.fullmatch(line)
        if match is not None:
            blocks.append((match, []))
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip():
            raise _unlike("smaps", text, "a line of addresses first")
    return tuple(_mapping(match, lines) for match, lines in blocks)


def parse_shared_maps(text: str) -> dict[str, list[tuple[int, int]]]:
    """The addresses, begin and end, that map each file shared: what is written there is the file's."""
    found: dict[str, list[tuple[int, int]]] = {}
    for line in filter(None, _lines(text)):
        match = _MAPPING.fullmatch(line)
        if match is None:
            raise _unlike("maps", line, "a line of addresses")
        if match[3] == "s":
            found.setdefault(match[5] or "", []).append((int(match[1], 16), int(match[2], 16)))
    return found


def parse_stat(text: str) -> ProcessStat:
    """The name in brackets may hold anything, brackets too."""
    pid, bracket, _ = text.partition(" (")
    fields = text.rpartition(")")[2].split()
    # The first field behind the name is the third of all.
    numbers = [fields[place - 2] if place - 2 < len(fields) else "" for place in _FAULTS_AND_START]
    if not bracket or not all(number.isascii() and number.isdigit() for number in (pid, *numbers)):
        raise _unlike("process stat", text, "PID (NAME) STATE and at least 19 numbers")
    minor, major, start = map(int, numbers)
    return ProcessStat(int(pid), minor, major, start)


def parse_io(text: str) -> ProcessIo:
    """EnvironmentFault unless it is made of the file's keys."""
    found = _keys(_lines(text), "process io")
    if not found:
        raise _unlike("process io", text, "lines of KEY: NUMBER")
    for key, value in found.items():
        if not (value.isascii() and value.isdigit()):
            raise EnvironmentFault(f"process io {key}", found=repr(value), wanted="a number of bytes")
    rchar, read = found.get("rchar"), found.get("read_bytes")
    return ProcessIo(None if rchar is None else int(rchar), None if read is None else int(read))


class _Sizes:
    """Values in kB of one text."""

    def __init__(self, what: str, values: Mapping[str, str]) -> None:
        self._what, self._values = what, values

    def of(self, key: str) -> int | None:
        """In bytes; None when the kernel does not tell."""
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
        raise EnvironmentFault(what, found=f"the end {match[2]} is not behind the beginning")
    sizes = _Sizes(what, _keys(lines, what))
    rss, pss, anonymous = map(sizes.of, ("Rss", "Pss", "Anonymous"))
    return MemoryMapping(begin, end, match[5] or "", rss, pss, anonymous, int(match[4], 16))


def _lines(text: str) -> list[str]:
    """Never none; a shell over adb may end them in CR LF."""
    return [line.rstrip("\r") for line in text.split("\n")]


def _keys(lines: Iterable[str], what: str) -> dict[str, str]:
    """`KEY: VALUE` of each line, once."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, lines)):
        match = _KEY.fullmatch(line)
        if match is None:
            raise EnvironmentFault(what, found=repr(line[:80]), wanted="KEY: VALUE")
        if match[1] in found:
            raise EnvironmentFault(f"{what} {match[1]}", found="the key is there twice")
        found[match[1]] = match[2]
    return found


def _unlike(what: str, text: str, wanted: str) -> EnvironmentFault:
    return EnvironmentFault(what, found=repr(text[:80]), wanted=wanted)
