"""How many processors this process may use."""

from __future__ import annotations

import os

from toolkit.base.errors import UsageError

MAX_THREADS = 1024
"""More than the processors that run these models have; native code takes the number as it is."""


def usable_processors() -> int:
    """The number of processors that this process may run on; all, on systems without affinity, such as macOS."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def require_threads(count: int | None) -> None:
    """UsageError for a number of threads that no library could start; None stands for its own choice."""
    if count is not None and not 1 <= count <= MAX_THREADS:
        raise UsageError("threads", found=count, wanted=f"a number from 1 to {MAX_THREADS}")
