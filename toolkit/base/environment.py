"""What a file was made with: written beside it, because the file itself says nothing of the machine it was made on."""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.base.blas import blas_name
from toolkit.base.errors import BundleError
from toolkit.base.files import write_bytes
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.strict_json import read_json_file

FORMAT = "gemma-edge-environment/1"
_SUFFIX = ".environment.json"


def environment_file(output: Path) -> Path:
    """The file that tells what `output` was made with."""
    return output.with_name(output.name + _SUFFIX)


def require_environment_file(output: Output) -> None:
    """UsageError if the file beside `output` may not be written: the rules of the output itself."""
    replace(output, path=environment_file(output.path), kind=ENVIRONMENT).require()


def write_environment(output: Output) -> None:
    """Write what this process runs on beside `output`; an older file of this kind is replaced."""
    require_environment_file(output)
    value = {"format": FORMAT, **_environment()}
    write_bytes(environment_file(output.path), (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _stranger(path: Path) -> str | None:
    return None if _read(path) is not None else "something else than what an output was made with"


ENVIRONMENT = OutputKind("what an output was made with", _stranger)


def environment_differences(output: Path) -> list[str]:
    """In what this process's environment differs from the one that made `output`, if there is a file that tells."""
    made_with, here = _read(environment_file(output)) or {}, _environment()
    return [f"{key} {made_with[key]}, here {here[key]}" for key in here if made_with.get(key, here[key]) != here[key]]


def _environment() -> Mapping[str, str]:
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "blas": blas_name(),
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


def _read(path: Path) -> Mapping[str, str] | None:
    """The texts of a file of this kind; None for anything else."""
    try:
        value = read_json_file(path, BundleError, max_bytes=100_000)
    except BundleError:
        return None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return None
    return {key: text for key, text in value.items() if isinstance(text, str)}
