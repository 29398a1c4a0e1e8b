"""Runs Android executables for arm64 without Android: with qemu, and a stand-in for Android's linker and C library.

`bionic/` is that stand-in: it loads the executable and its libraries as Android's linker does, into a process of
glibc's. It shows that the very files that a phone gets are right in what a linker sees and what they compute. The real
linker's further checks, SELinux, and a GPU's libraries are not shown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

import pytest
from emulated_arm import emulated_arm

from device_harness.native.library import LibraryChoice, find_library
from device_harness.programs.build import compiler
from device_harness.programs.bundle_runner import bundle_runner
from toolkit.base.errors import EnvironmentFault

_Made = TypeVar("_Made")
_SOURCES = sorted((Path(__file__).parent / "bionic").glob("*.c"))
_FLAGS = ("-std=gnu11", "-O1", "-fPIE", "-pie", "-fno-stack-protector", "-Wall", "-Wextra", "-Werror")


def android_command(cpu: str, tmp_path: Path) -> list[str]:
    """The command that runs an Android executable, which follows it; skips the test where that cannot be."""
    return [*emulated_arm(cpu, tmp_path), str(_or_skip(_stand_in))]


def android_runner() -> tuple[Path, Path]:
    """bundle_runner for Android on arm64, and Google's library for it; skips the test where one cannot be had."""

    def both() -> tuple[Path, Path]:
        library = find_library("android", "aarch64", LibraryChoice(), say=lambda _: None)
        return bundle_runner("android", "aarch64").path, library.path

    return _or_skip(both)


def _or_skip(make: Callable[[], _Made]) -> _Made:
    try:
        return make()
    except EnvironmentFault as error:
        pytest.skip(str(error))


@cache
def _stand_in() -> Path:
    target = Path(mkdtemp(prefix="gemma-edge-bionic-")) / "android_program"
    with compiler() as compile_with:
        compile_with("-target", "aarch64-linux-gnu.2.36", *_FLAGS, "-o", str(target), *map(str, _SOURCES))
    return target
