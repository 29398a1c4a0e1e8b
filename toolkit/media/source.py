"""The source of an image or a sound: a file, or bytes in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from toolkit.base.errors import UsageError, errors_about
from toolkit.base.strict_json import open_regular

MediaSource: TypeAlias = Path | str | bytes
"""A path, or the content of a file."""


def source_name(source: MediaSource, kind: str) -> str:
    """The name of a source in errors.

    >>> source_name("cat.png", "image"), source_name(b"GIF89a", "image")
    ('cat.png', 'image of 6 bytes')
    """
    return f"{kind} of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


def errors_about_source(source: MediaSource, kind: str) -> AbstractContextManager[None]:
    """Add the source's path to errors that name no file; for bytes, its name."""
    return errors_about(source_name(source, kind)) if isinstance(source, bytes) else errors_about(file=source)


@contextmanager
def open_source(source: MediaSource) -> Iterator[BinaryIO]:
    """Open the source as a file with a descriptor, even bytes: C decoders may seek to places where BytesIO raises.

    UsageError if the path is not a regular file or cannot be read.
    """
    if isinstance(source, bytes):
        with tempfile.TemporaryFile() as file:
            file.write(source)
            file.seek(0)
            yield file
    else:
        with os.fdopen(open_regular(Path(source), UsageError), "rb") as file:
            yield file
