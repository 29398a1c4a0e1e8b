"""What a process holds in memory: by kind, and by the parameter group whose files its pages belong to."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from toolkit.base.layout import ceil_div
from toolkit.base.procfs import MemoryMapping, ProcessStatus, parse_shared_maps, parse_smaps, parse_status

PLE_GROUP = "per_layer_embedding"

_DELETED = " (deleted)"  # the kernel's mark behind the path of a file that is gone
_RESET_PEAK = "5"  # to /proc/PID/clear_refs: VmHWM starts again at VmRSS (proc_pid_clear_refs(5))
_UNKNOWN = ProcessStatus(None, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The files of one parameter group."""

    mapped_bytes: int
    """The size of their mappings in the process's address space, resident or not."""
    resident_bytes: int
    """The part of them in memory now: clean pages, which the kernel may drop at any time."""
    page_cache_bytes: int | None
    """Bytes of the files in the kernel's page cache, which count as no process's memory."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a process at one moment; values that the system does not report are None."""

    process: ProcessStatus
    groups: Mapping[str, GroupMemory]

    @property
    def effective_bytes(self) -> int | None:
        """Everything resident or swapped but pages of the PLE shards; groups that are not loaded take nothing."""
        rss, swap = self.process.rss_bytes, self.process.swap_bytes
        if rss is None:
            return None
        ple = self.groups.get(PLE_GROUP)
        return rss + (swap or 0) - (ple.resident_bytes if ple else 0)

    def to_json(self) -> dict[str, object]:
        """Without the peak, which says nothing of this moment."""
        process = {kind: count for kind, count in asdict(self.process).items() if kind != "peak_rss_bytes"}
        groups = {name: asdict(group) for name, group in self.groups.items()}
        return {**process, "effective_bytes": self.effective_bytes, "groups": groups}


def read_memory(groups: Mapping[str, Iterable[Path]], pid: int | None = None) -> Memory:
    """Of this process, or of the one with that id; `groups`: each group's files, its weight cache among them."""
    mappings = parse_smaps(_text("smaps", pid))
    status = _text("status", pid)
    return Memory(
        process=parse_status(status) if status else _UNKNOWN,
        groups={name: _group(tuple(files), mappings) for name, files in groups.items()},
    )


def page_cache_bytes(path: Path) -> int | None:
    """How much of a file the kernel holds in memory; None where it cannot be asked."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _mincore(file.fileno(), size) if size else 0
    except (OSError, AttributeError):
        return None


def _mincore(fd: int, size: int) -> int:
    """mincore(2) over the whole file."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = np.zeros(ceil_div(size, mmap.PAGESIZE), np.uint8)
    # Only a writable mapping gives ctypes its address; a private one that nobody writes to costs nothing.
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
    """The pages of a file that this process maps, through whatever library: what the kernel is told of them."""

    def __init__(self, path: Path) -> None:
        """As it is mapped now. Where there is no /proc or no glibc nothing is told, and nothing but memory is lost."""
        self._spans: list[tuple[int, int]] = []
        try:
            self._libc = ctypes.CDLL(None)
            # Not smaps: counting every mapping's pages and reading the counts takes a fifth of a small model's loading.
            # A private mapping's pages may have been written: they are no longer the file's, and would be lost.
            self._spans = parse_shared_maps(_text("maps", None)).get(os.path.realpath(path), [])
        except OSError:
            return

    def expect_random_reads(self) -> None:
        """Read what is touched and no more: else the kernel reads megabytes around each row of a table."""
        self._advise(mmap.MADV_RANDOM)

    def release(self) -> None:
        """Give them back; touched again, they come back from the kernel's cache or from flash."""
        self._advise(mmap.MADV_DONTNEED)

    def _advise(self, advice: int) -> None:
        for begin, end in self._spans:
            self._libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))


def release_freed_memory() -> None:
    """Give memory that was freed back to the system, as far as the C library lets us."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def peak_rss_bytes() -> int:
    """The most memory this process has had resident, since its start or the last reset."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class StagePeaks:
    """The most that was resident in each stage of a process's work, by the kernel's own count.

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
        """The highest peak of all stages and since."""
        return max(peak_rss_bytes(), *self.stages.values(), 0)

    def end(self, stage: str) -> None:
        """A stage is over and the next begins; one that comes again keeps its larger figure."""
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
    """A file of /proc/PID as text; empty on systems without /proc."""
    try:
        return Path(f"/proc/{pid or 'self'}/{name}").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
