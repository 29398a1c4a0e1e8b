"""Runs chunks of work through two stages: one thread reads them ahead, then several threads process them."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 1  # a second reader saves no time: it competes with the workers for the interpreter's lock
AHEAD = 4  # chunks read or being read, besides those being processed

# Parameters from glibc's malloc.h, and how much freed memory a thread's arena may keep
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20

Chunk = TypeVar("Chunk")
Values = TypeVar("Values")
Result = TypeVar("Result")


def pipeline(
    chunks: Iterable[Chunk], read: Callable[[Chunk], Values], process: Callable[[Chunk, Values], Result], workers: int
) -> Generator[Result, None, None]:
    """The result of each chunk, in order; at most `workers + AHEAD` chunks are under way.

    The first error in the order of the chunks is raised as it is. After it, or if the caller stops early, only the
    chunks that are being read or processed are finished.
    """
    _keep_freed_memory()
    readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    pool = ThreadPoolExecutor(workers, thread_name_prefix="quantise")
    pending: deque[Future[Result]] = deque()

    def process_when_read(chunk: Chunk, values: Future[Values]) -> Result:
        return process(chunk, values.result())

    try:
        for chunk in chunks:
            if len(pending) == workers + AHEAD:
                yield pending.popleft().result()
            pending.append(pool.submit(process_when_read, chunk, readers.submit(read, chunk)))
        while pending:
            yield pending.popleft().result()
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        pool.shutdown(wait=True, cancel_futures=True)


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed chunks: there are thousands of them, and the kernel clears each new page.

    Other C libraries lack this function, or have one that does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
