"""The backends that can run a bundle on this machine: each is a folder and an entry in `BACKENDS`."""

from __future__ import annotations

from toolkit.base.errors import UsageError
from toolkit.runtime.backends.cpu import CpuBackend
from toolkit.runtime.backends.gpu import GpuBackend
from toolkit.runtime.backends.interface import Backend

BACKENDS: tuple[Backend, ...] = (CpuBackend(), GpuBackend())
"""The first is the default."""


def backend_names() -> tuple[str, ...]:
    """The names of the backends, in the order of `BACKENDS`.

    >>> backend_names()
    ('cpu', 'gpu')
    """
    return tuple(backend.name for backend in BACKENDS)


def find_backend(name: str) -> Backend:
    """Find a backend by its name; UsageError if there is none."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise UsageError("backend", found=name, wanted=" or ".join(backend_names()))
