"""Caches weights in XNNPACK's packed layout in files, which LiteRT maps instead of packing the weights again.

LiteRT does not check that such a file belongs to the model: with a stale one, results are silently wrong. So the file's
name depends on everything that its content depends on, and only complete files get that name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from toolkit.base.errors import EnvironmentFault, ToolkitError
from toolkit.base.files import atomic_file, locked_directory, require_free_space
from toolkit.runtime.backends.interface import ModelFile

T = TypeVar("T")

IN_MEMORY = ":memory"
"""LiteRT's name for a cache in memory."""

LIMIT_BYTES = 16 * 1024**3
"""The maximum size of all files in a directory, enough for two sizes of the largest Gemma 3n; beyond it, the least
recently used files are removed."""

# XNNPACK's file header: version, then offset and length of the list of packed weights, which is the end of the file.
_HEADER = struct.Struct("<QQQ")
# Increase this when a change of the options for opening models changes the packed weights.
_SCHEME = "1"
# Packed weights are as large as the model's, each rounded up to cache lines; measured: 0.1 % more for 16 MB matrices.
_ROOM = 1.25

# The names that `cache_name` gives; other files in the directory are not ours.
_NAMES = f"{'[0-9a-f]' * 16}-{'[0-9a-f]' * 16}.xnnpack"

_log = logging.getLogger(__name__)


def cache_name(sha256: str, runtime_version: str, cpu: str) -> str:
    """The file name for a model's weights, packed by this version of LiteRT for this kind of CPU."""
    key = hashlib.sha256("\n".join((_SCHEME, sha256, runtime_version, cpu)).encode()).hexdigest()
    return f"{sha256[:16]}-{key[:16]}.xnnpack"


def cache_path(model: ModelFile, directory: Path) -> Path:
    """The path of the model's packed weights for this machine."""
    return directory / cache_name(model.sha256, importlib.metadata.version("ai-edge-litert"), cpu_identity())


def cpu_identity(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The models and features of all cores, which determine XNNPACK's kernels and so the packed layout."""
    keys = {"model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "isa"}
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = sorted({line for line in lines if line.partition(":")[0].strip() in keys})
    # platform.processor() starts the program uname, which on Linux tells less than these lines.
    processor = "" if sys.platform == "linux" else platform.processor()
    return "\n".join([platform.machine(), processor, *found])


def is_complete(path: Path) -> bool:
    """Whether the file is complete: one that is being written or is truncated does not end with its list."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if len(header) < _HEADER.size:
        return False
    version, offset, length = _HEADER.unpack(header)
    return bool(version and length and offset + length == size)


def open_cached(model: ModelFile, directory: Path, load: Callable[[str], T]) -> T:
    """Call `load(cache path)` with this model's cache in `directory`, creating the cache first if it is missing.

    If the directory cannot be used, logs a warning and packs the weights in memory.
    """
    path = cache_path(model, directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked_directory(directory, exclusive=False):
            if is_complete(path):
                os.utime(path)
                return load(str(path))
        with locked_directory(directory, exclusive=True):
            return _load_or_build(model, path, load)
    except (OSError, ToolkitError) as error:
        _log.warning("weight cache %s cannot be used, packing weights in memory: %s", path, error)
    return load(IN_MEMORY)


def _load_or_build(model: ModelFile, path: Path, load: Callable[[str], T]) -> T:
    """With the directory locked exclusively: build the cache under another name, then rename it."""
    if is_complete(path):
        return load(str(path))
    for partial in path.parent.glob(f".{_NAMES}.*.partial"):
        partial.unlink()
    require_free_space(path.parent, int(model.size_bytes * _ROOM))
    with atomic_file(path, verify=_require_complete) as partial:
        # The result is not used: the model that packs weights keeps the largest matrix in memory until it is closed.
        load(str(partial))
    prune(path.parent, LIMIT_BYTES, keep=path)
    return load(str(path))


def prune(directory: Path, limit_bytes: int, *, keep: Path) -> None:
    """Remove the least recently used caches until the rest fits; `keep` stays whatever its size."""
    caches = sorted(directory.glob(_NAMES), key=lambda path: (path != keep, -path.stat().st_mtime_ns))
    total = 0
    for path in caches:
        total += path.stat().st_size
        if total > limit_bytes and path != keep:
            path.unlink()


def _require_complete(path: Path) -> None:
    if not is_complete(path):
        raise EnvironmentFault(file=path, found="packed weights without their list at the end")
