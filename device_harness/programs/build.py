"""Builds the C programs beside this file for the machine that runs them: on demand, once, static.

zig's C compiler, from PyPI, brings the headers and the C library for every target; no NDK is needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device_harness.adb.faults import DeviceFault
from toolkit.base.errors import EnvironmentFault
from toolkit.base.files import atomic_file
from toolkit.runtime.weight_cache import default_directory

Architecture = Literal["aarch64", "x86_64"]

FLASH_PROBE = "flash_probe"
PUSH_RECEIVER = "push_receiver"

# Loadable segments on borders of 16 KiB: devices with pages of that size refuse smaller ones.
_FLAGS = ("-static", "-std=c99", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-Wl,-z,max-page-size=16384")
_BUILD_S = 1800.0
_NAMES = {"aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64", "amd64": "x86_64"}


@dataclass(frozen=True, slots=True)
class NativeProgram:
    """A built program on this computer."""

    name: str
    architecture: Architecture
    path: Path
    sha256: str
    bytes: int


def parse_architecture(machine: str, what: str) -> Architecture:
    """What `uname -m` says, as compilers call it; DeviceFault for one that nothing is built for.

    >>> parse_architecture("aarch64", "phone")
    'aarch64'
    """
    found = _NAMES.get(machine.strip().lower())
    if found is None:
        raise DeviceFault(f"{what} uname -m", found=repr(machine.strip()), wanted="aarch64 or x86_64")
    return "aarch64" if found == "aarch64" else "x86_64"


def native_program(
    name: str, architecture: Architecture, *, directory: Path | None = None, say: Callable[[str], None] | None = None
) -> NativeProgram:
    """The program `name`, built if it is not in `directory` (None: the user's cache) yet.

    `say` is told that a build begins, for the first one compiles the C library too. EnvironmentFault if there is no
    compiler, or if it fails.
    """
    source, path = _source(name), _path(name, architecture, directory)
    if not path.is_file():
        if say is not None:
            say(f"building {name} for {architecture}; the first time takes a minute")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            _compile(source, architecture, partial)
            partial.chmod(0o755)
    return _described(name, architecture, path)


def built_program(name: str, architecture: Architecture, *, directory: Path | None = None) -> NativeProgram | None:
    """The program `name` if it has been built; this never takes a minute."""
    try:
        path = _path(name, architecture, directory)
    except EnvironmentFault:
        return None
    return _described(name, architecture, path) if path.is_file() else None


def _source(name: str) -> Path:
    return Path(__file__).parent / "native" / f"{name}.c"


def _path(name: str, architecture: Architecture, directory: Path | None) -> Path:
    """The path of the program once it is built."""
    key = _key(_source(name), _zig_version(), architecture)
    return (directory or default_directory()) / "native" / f"{name}-{architecture}-{key}"


def _described(name: str, architecture: Architecture, path: Path) -> NativeProgram:
    data = path.read_bytes()
    return NativeProgram(name, architecture, path, hashlib.sha256(data).hexdigest(), len(data))


def _key(source: Path, version: str, architecture: Architecture) -> str:
    """Everything that the program depends on, shortened; all headers are there for all programs."""
    digest = hashlib.sha256()
    for path in (source, *sorted(source.parent.glob("*.h"))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update("\0".join((version, architecture, *_FLAGS)).encode())
    return digest.hexdigest()[:16]


def _zig_version() -> str:
    try:
        return importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError as error:
        remedy = "pip install 'gemma-edge[probe]'"
        raise EnvironmentFault(
            "ziglang", found="the package is not installed, and it has the C compiler", remedy=remedy
        ) from error


def _compile(source: Path, architecture: Architecture, target: Path) -> None:
    """zig's own cache holds some 80 MB a target, and goes with the build unless the environment names a place for it.

    Nothing here needs it twice; the tests, which build the same programs again and again, do.
    """
    arguments = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl", *_FLAGS]
    with tempfile.TemporaryDirectory(prefix="gemma-edge-build-") as scratch:
        caches = {f"ZIG_{kind}_CACHE_DIR": str(Path(scratch, kind)) for kind in ("GLOBAL", "LOCAL")}
        try:
            done = subprocess.run(
                [*arguments, "-o", str(target), str(source)],
                env={**caches, **os.environ},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_BUILD_S,
            )
        except subprocess.TimeoutExpired as error:
            raise _fault(f"the compiler ran over {_BUILD_S:g} s") from error
    if done.returncode:
        raise _fault(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")


def _fault(found: str) -> EnvironmentFault:
    return EnvironmentFault("zig cc", found=found, remedy="check the room on the disk; report it")
