"""Builds the C programs in `native/` for the machine that runs them: statically linked, once, on demand.

zig's C compiler, from PyPI, includes the headers and the C library for all targets; no NDK is needed.
`bundle_runner.py` builds the one program that is not static, because it loads a library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from device_harness.adb.faults import DeviceFault
from toolkit.base.errors import EnvironmentFault
from toolkit.base.files import atomic_file
from toolkit.runtime.weight_cache import default_directory

Architecture = Literal["aarch64", "x86_64"]

FLASH_PROBE = "flash_probe"
PUSH_RECEIVER = "push_receiver"

# Align loadable segments to 16 KiB: devices with pages of that size refuse a smaller alignment.
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
    """Convert the output of `uname -m` to the compiler's name; DeviceFault for an unsupported architecture.

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
    """Return the program `name`, and build it first if it is not in `directory` (None: the user's cache).

    `say` is called when a build begins, because the first one takes longer: it compiles the C library too.
    EnvironmentFault if there is no compiler, or if it fails.
    """
    source, path = _source(name), _path(name, architecture, directory)
    build_once(path, partial(_compile, source, architecture), f"{name} for {architecture}", say)
    return described_program(name, architecture, path)


def build_once(path: Path, build: Callable[[Path], None], what: str, say: Callable[[str], None] | None) -> None:
    """Let `build` write the program `what` to an unfinished file that becomes `path`, unless there is one already."""
    if path.is_file():
        return
    if say is not None:
        say(f"building {what}; the first time takes a minute")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        build(unfinished)
        unfinished.chmod(0o755)


def built_program(name: str, architecture: Architecture, *, directory: Path | None = None) -> NativeProgram | None:
    """The program `name` if it is already built; never starts a build."""
    try:
        path = _path(name, architecture, directory)
    except EnvironmentFault:
        return None
    return described_program(name, architecture, path) if path.is_file() else None


def _source(name: str) -> Path:
    return Path(__file__).parent / "native" / f"{name}.c"


def _path(name: str, architecture: Architecture, directory: Path | None) -> Path:
    """The path of the program, whether it is built or not."""
    key = _key(_source(name), compiler_version(), architecture)
    return (directory or default_directory()) / "native" / f"{name}-{architecture}-{key}"


def described_program(name: str, architecture: Architecture, path: Path) -> NativeProgram:
    """The record of a program that is already built."""
    data = path.read_bytes()
    return NativeProgram(name, architecture, path, hashlib.sha256(data).hexdigest(), len(data))


def _key(source: Path, version: str, architecture: Architecture) -> str:
    """A short hash of everything that the program depends on; for simplicity, it includes all headers."""
    digest = hashlib.sha256()
    for path in (source, *sorted(source.parent.glob("*.h"))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update("\0".join((version, architecture, *_FLAGS)).encode())
    return digest.hexdigest()[:16]


def compiler_version() -> str:
    """The version of the installed compiler; EnvironmentFault if there is none."""
    try:
        return importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError as error:
        found, remedy = "no such package, which has the C compiler", "pip install 'gemma-edge[probe]'"
        raise EnvironmentFault("ziglang", found=found, remedy=remedy) from error


def _compile(source: Path, architecture: Architecture, target: Path) -> None:
    with compiler() as compile_with:
        compile_with("-target", f"{architecture}-linux-musl", *_FLAGS, "-o", str(target), str(source))


@contextmanager
def compiler() -> Iterator[Callable[..., None]]:
    """Yields a function that runs zig's C compiler with the given arguments; EnvironmentFault if it fails.

    zig's cache, about 80 MB for each target, is removed at the end unless the environment names its folder: only the
    tests profit from keeping it, because they build the same programs repeatedly.
    """
    with tempfile.TemporaryDirectory(prefix="gemma-edge-build-") as scratch:
        caches = {f"ZIG_{kind}_CACHE_DIR": str(Path(scratch, kind)) for kind in ("GLOBAL", "LOCAL")}
        yield partial(_run_compiler, {**caches, **os.environ})


def _run_compiler(environment: Mapping[str, str], *arguments: str) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *arguments],
            env=environment,
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
    return EnvironmentFault("zig cc", found=found, remedy="check the free space on the disk; otherwise report this")
