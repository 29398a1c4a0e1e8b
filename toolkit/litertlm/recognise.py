"""Tells whether a file is a .litertlm, without importing the reader."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".litertlm"
MAGIC = b"LITERTLM"


def is_litertlm(path: Path) -> bool:
    """Whether a file has the ending or the first bytes of a .litertlm; False if it cannot be read."""
    if path.suffix == SUFFIX or not path.is_file():
        return path.is_file()
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
