"""Measures a process's memory: by kind, and by the parameter group whose files the pages belong to."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np

from toolkit.base.layout import ceil_div
from toolkit.base.procfs import MemoryMapping, ProcessStatus, parse_shared_maps, parse_smaps, parse_status

PLE_GROUP = "per_layer_embedding"

_DELETED = " (deleted)"  # what the kernel appends to the path of a deleted file
_RESET_PEAK = "5"  # to /proc/PID/clear_refs: VmHWM starts again at VmRSS (proc_pid_clear_refs(5))
_one_mapper = threading.RLock()
_UNKNOWN = ProcessStatus(None, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The memory of the files of one parameter group."""

    mapped_bytes: int
    """The size of their mappings in the process's address space, resident or not."""
    resident_bytes: int
    """The resident part of the mappings: clean pages, which the kernel may drop at any time."""
    page_cache_bytes: int | None
    """The size of the files' pages in the kernel's page cache, which belongs to no process."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a process at one moment; values that the system does not report are None."""

    process: ProcessStatus
    groups: Mapping[str, GroupMemory]

    @property
    def effective_bytes(self) -> int | None:
        """Resident and swapped memory without the pages of PLE shards; groups that are not loaded take none."""
        rss, swap = self.process.rss_bytes, self.process.swap_bytes
        if rss is None:
            return None
        ple = self.groups.get(PLE_GROUP)
        return rss + (swap or 0) - (ple.resident_bytes if ple else 0)

    def to_json(self) -> dict[str, object]:
        """As JSON, without the peak, which does not describe this moment."""
        process = {kind: count for kind, count in asdict(self.process).items() if kind != "peak_rss_bytes"}
        groups = {name: asdict(group) for name, group in self.groups.items()}
        return {**process, "effective_bytes": self.effective_bytes, "groups": groups}


def read_memory(groups: Mapping[str, Iterable[Path]], pid: int | None = None) -> Memory:
    """Read the memory of process `pid`, by default this one; `groups`: the files by group, with weight caches.

    Without /proc, for example on macOS, nothing is known about the process, and no group is listed.
    """
    smaps, status = _text("smaps", pid), _text("status", pid)
    mappings = parse_smaps(smaps)
    return Memory(
        process=parse_status(status) if status else _UNKNOWN,
        groups={name: _group(tuple(files), mappings) for name, files in groups.items()} if smaps else {},
    )


def page_cache_bytes(path: Path) -> int | None:
    """The size of a file's pages in the page cache; None if the system cannot tell."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _mincore(file.fileno(), size) if size else 0
    except (OSError, AttributeError):
        return None


def _mincore(fd: int, size: int) -> int:
    """Count the resident bytes of the whole file with mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = np.zeros(ceil_div(size, mmap.PAGESIZE), np.uint8)
    # ctypes can take the address of writable mappings only; a private one takes no memory until it is written to.
    with mmap.mmap(fd, size, access=mmap.ACCESS_COPY) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
        )
        del view
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int(np.count_nonzero(pages & 1)) * mmap.PAGESIZE


class FilePages:
    """Gives the kernel advice about a file's pages that were mapped within `with`, through any library.

    Only those: another owner of a mapping of the same file may end it at any time, and what is mapped in its place then
    would lose its content. Use as `with FilePages(path) as pages:` around the call that maps the file. Without /proc or
    glibc the methods do nothing, which only costs memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(path)
        self._spans: list[tuple[int, int]] = []
        self._before: set[tuple[int, int]] = set()

    def __enter__(self) -> FilePages:
        # One at a time: of two that map one file at once, neither could tell which mapping is whose.
        _one_mapper.acquire()
        try:
            self._before = set(_shared_spans(self._path))
        except BaseException:
            _one_mapper.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._spans = [span for span in _shared_spans(self._path) if span not in self._before]
        finally:
            _one_mapper.release()

    def expect_random_reads(self) -> None:
        """Advise to read only pages that are used: otherwise the kernel reads megabytes around each row of a table."""
        self._advise(mmap.MADV_RANDOM)

    def release(self) -> None:
        """Drop the pages from the process; when used again, they are read from the page cache or from flash."""
        self._advise(mmap.MADV_DONTNEED)

    def _advise(self, advice: int) -> None:
        if not self._spans:
            return
        libc = _libc()
        for begin, end in self._spans:
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _shared_spans(path: str) -> list[tuple[int, int]]:
    """The addresses at which this process maps a file to share it; none where the system does not tell.

    Not smaps: counting the pages of all mappings takes a fifth of the time of loading a small model. Shared mappings
    only: the pages of a private one may have been written, and their content would be lost.
    """
    try:
        return parse_shared_maps(_text("maps", None)).get(path, [])
    except OSError:
        return []


def peak_rss_bytes() -> int:
    """The peak resident memory of this process since its start or the last reset."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class StagePeaks:
    """The peak resident memory of each stage of this process, as the kernel counts it.

    >>> peaks = StagePeaks()
    >>> peaks.end("load"), peaks.end("prefill")
    (None, None)
    >>> list(peaks.stages), peaks.peak_rss_bytes == max(peaks.stages.values())
    (['load', 'prefill'], True)
    """

    def __init__(self) -> None:
        self.stages: dict[str, int] = {}
        """If the kernel cannot reset its count, a stage's figure is the peak of all stages so far."""

    @property
    def peak_rss_bytes(self) -> int:
        """The highest peak of all stages, including the current one."""
        return max(peak_rss_bytes(), *self.stages.values(), 0)

    def end(self, stage: str) -> None:
        """Record the peak of a stage that ends, and begin the next; a repeated stage keeps its largest peak."""
        self.stages[stage] = max(peak_rss_bytes(), self.stages.get(stage, 0))
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
        except OSError:
            return


def _group(files: tuple[Path, ...], mappings: tuple[MemoryMapping, ...]) -> GroupMemory:
    paths = {os.path.realpath(file) for file in files}
    cached = [page_cache_bytes(Path(path)) for path in sorted(paths)]
    ours = [mapping for mapping in mappings if mapping.path.removesuffix(_DELETED) in paths]
    return GroupMemory(
        mapped_bytes=sum(mapping.size_bytes for mapping in ours),
        resident_bytes=sum(mapping.rss_bytes or 0 for mapping in ours),
        page_cache_bytes=None if None in cached else sum(filter(None, cached)),
    )


def _text(name: str, pid: int | None) -> str:
    """Read a file of /proc/PID as text; empty on systems without /proc."""
    try:
        return Path(f"/proc/{pid or 'self'}/{name}").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
