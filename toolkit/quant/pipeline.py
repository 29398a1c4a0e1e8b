"""Takes chunks of work through two stages: one thread reads them ahead, then every core processes them."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 1  # a second one takes as long in all: it contends with the workers for the interpreter
AHEAD = 4  # chunks read or being read beyond those that are processed

# malloc.h of glibc, and how much freed memory a thread's arena may keep
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20

Chunk = TypeVar("Chunk")
Values = TypeVar("Values")
Result = TypeVar("Result")


def pipeline(
    chunks: Iterable[Chunk], read: Callable[[Chunk], Values], process: Callable[[Chunk, Values], Result], workers: int
) -> Generator[Result, None, None]:
    """The result of each chunk, in order; at most `workers + AHEAD` chunks are under way.

    The first error in the order of the chunks is raised as it is. After it, or when the caller stops early, only what
    is running finishes.
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
    """Have glibc keep the memory of freed chunks: there are thousands, and new pages take time to clear.

    Other C libraries have no such function, or one that does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
