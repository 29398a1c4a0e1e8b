"""A target, and what several targets share."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from toolkit.base.errors import ToolkitError

REPOSITORY = Path(__file__).parent.parent
CORPUS = Path(__file__).parent / "corpus"
EXAMPLE = REPOSITORY / "examples" / "tiny_gemma3n"
MOST_SEED_BYTES = 64 * 1024
"""Larger seeds make every mutant slow; the rest of a file is weights."""


@dataclass(frozen=True, slots=True)
class Target:
    """A format: its name, what reads it, and valid files of it."""

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]

    def run(self, data: bytes) -> None:
        """Read the bytes; any exception but a ToolkitError is a find."""
        with contextlib.suppress(ToolkitError):
            self.read(data)


@cache
def scratch() -> Path:
    """A folder for the files that targets read; one for each process, which removes it at its end."""
    folder = Path(tempfile.mkdtemp(prefix="gemma-edge-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def of_file(
    name: str, read: Callable[[Path], object], size: Callable[[], int] = lambda: 0
) -> Callable[[bytes], object]:
    """A function that reads bytes through a file, with zeros after them up to `size`, for the weights of a cut seed."""

    def run(data: bytes) -> object:
        path = scratch() / name
        path.write_bytes(data)
        os.truncate(path, max(len(data), size()))
        return read(path)

    return run


def beginnings(*paths: Path) -> list[bytes]:
    """The files' contents, without most of their weights."""
    return [path.read_bytes()[:MOST_SEED_BYTES] for path in paths]
