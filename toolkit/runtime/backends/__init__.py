"""What can run a bundle on this machine: a folder and an entry of `BACKENDS` for each."""

from __future__ import annotations

from toolkit.base.errors import UsageError
from toolkit.runtime.backends.cpu import CpuBackend
from toolkit.runtime.backends.interface import Backend

BACKENDS: tuple[Backend, ...] = (CpuBackend(),)
"""The first is the default."""


def backend_names() -> tuple[str, ...]:
    """In the order of `BACKENDS`.

    >>> backend_names()
    ('cpu',)
    """
    return tuple(backend.name for backend in BACKENDS)


def find_backend(name: str) -> Backend:
    """UsageError for a name that no backend has."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise UsageError("backend", found=name, wanted=" or ".join(backend_names()))
