"""The BLAS library that NumPy multiplies matrices with: its name and kernel, and how many threads it starts."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# The prefixes and suffixes of OpenBLAS's functions: none in plain builds, others in NumPy's wheels.
_SPELLINGS = (("", ""), ("", "64_"), ("scipy_", "64_"), ("scipy_", ""))


def blas_name() -> str:
    """The library's name, version and kernel, such as "scipy-openblas 0.3.31 SkylakeX"; sums differ between kernels."""
    library = _openblas()
    facts = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = f"{facts.get('name', 'unknown')} {facts.get('version', '')}".strip()
    if library is None:
        return name
    corename = library.function("get_corename")
    corename.restype = ctypes.c_char_p
    return f"{name} {corename().decode('ascii', 'replace')}"


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Have each product use one thread, so that its sums do not depend on the number of cores.

    To use all cores, compute products in several threads. A BLAS other than OpenBLAS is left as it is.
    """
    library = _openblas()
    if library is None:
        yield
        return
    get, set_ = library.function("get_num_threads"), library.function("set_num_threads")
    before = get()
    set_(1)
    try:
        yield
    finally:
        set_(before)


class _OpenBlas:
    """An OpenBLAS that this process has loaded."""

    def __init__(self, library: ctypes.CDLL, prefix: str, suffix: str) -> None:
        self._library, self._prefix, self._suffix = library, prefix, suffix

    def function(self, name: str) -> ctypes._NamedFuncPointer:
        function: ctypes._NamedFuncPointer = getattr(self._library, f"{self._prefix}openblas_{name}{self._suffix}")
        return function


def _openblas() -> _OpenBlas | None:
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix, suffix in _SPELLINGS:
            if hasattr(library, f"{prefix}openblas_set_num_threads{suffix}"):
                return _OpenBlas(library, prefix, suffix)
    return None


def _candidates() -> Iterator[Path]:
    """The libraries that come with NumPy, then those that the process has loaded, if the system reports them."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        yield from sorted(folder.glob("*openblas*"))
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    yield from map(Path, dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if "blas" in line.lower()))
