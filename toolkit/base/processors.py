"""How many processors this process may use."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """The processors that this process may run on; all of them where the system knows no affinity, as macOS."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
