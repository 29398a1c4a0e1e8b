"""How many processors this process may use."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """The number of processors that this process may run on; all, on systems without affinity, such as macOS."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
