"""Where an image or a sound comes from: a file, or bytes in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from toolkit.base.errors import UsageError
from toolkit.base.strict_json import open_regular

MediaSource: TypeAlias = Path | str | bytes
"""A path, or the content of a file."""


def source_name(source: MediaSource, kind: str) -> str:
    """What errors call it.

    >>> source_name("cat.png", "image"), source_name(b"GIF89a", "image")
    ('cat.png', 'image of 6 bytes')
    """
    return f"{kind} of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def open_source(source: MediaSource) -> Iterator[BinaryIO]:
    """A file with a descriptor of its own, also for bytes: decoders in C seek where Python's streams raise.

    UsageError for what is no regular file, or cannot be read.
    """
    if isinstance(source, bytes):
        with tempfile.TemporaryFile() as file:
            file.write(source)
            file.seek(0)
            yield file
    else:
        with os.fdopen(open_regular(Path(source), UsageError), "rb") as file:
            yield file
