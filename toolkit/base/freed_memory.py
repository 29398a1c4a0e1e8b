"""Returns memory that the process has freed to the system."""

from __future__ import annotations

import contextlib
import ctypes


def release_freed_memory() -> None:
    """Return freed memory to the system; does nothing with C libraries other than glibc."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
