"""What an output was made with, in a file beside it, because the output's bytes must not depend on the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from toolkit.base.beside import FileBeside
from toolkit.base.blas import blas_name
from toolkit.base.outputs import Output

_DISTRIBUTIONS = {"litert": "ai-edge-litert", "pillow": "pillow", "soundfile": "soundfile", "soxr": "soxr"}
ENVIRONMENT = FileBeside(".environment.json", "gemma-edge-environment/1", "what an output was made with")


def libraries() -> Mapping[str, str]:
    """The versions of what computes, and decodes pictures and sounds: they decide the codes of what is calibrated.

    >>> list(libraries())
    ['numpy', 'blas', 'litert', 'pillow', 'soundfile', 'soxr']
    """
    others = {key: _version(name) for key, name in _DISTRIBUTIONS.items()}
    return {"numpy": np.__version__, "blas": blas_name(), **others}


def _version(distribution: str) -> str:
    """A replacement of the same module, such as pillow-simd, has another distribution's name."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write_environment(output: Output) -> None:
    """Write this process's environment to the file beside `output`, in place of an older file of this kind."""
    ENVIRONMENT.write(output, _environment())


def environment_differences(output: Path) -> list[str]:
    """How this process's environment differs from the one that made `output`, if a file beside it records that."""
    made_with, here = ENVIRONMENT.read(output), _environment()
    stated = {key: text for key, text in made_with.items() if isinstance(text, str)}
    return [f"{key} {stated[key]}, here {here[key]}" for key in here if stated.get(key, here[key]) != here[key]]


def _environment() -> Mapping[str, str]:
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **libraries(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
    }


def _processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
