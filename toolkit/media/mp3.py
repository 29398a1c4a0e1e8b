"""MP3 files that do not say how long they are.

libsndfile guesses their length from the first frames, and never gives what lies behind its guess: of a file of variable
bit rate without a Xing header that can be most of it. From a pipe it reads to the end instead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

_CHUNK_BYTES = 1 << 16


@contextmanager
def piped_mp3(file: BinaryIO) -> Iterator[int]:
    """The reading end of a pipe that carries the file without its tags, in which a decoder would look for frames."""
    reader, writer = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file.fileno(), writer), daemon=True)
    feeder.start()
    try:
        yield reader
    finally:
        os.close(reader)
        feeder.join()


def after_tags(fd: int) -> int:
    """The offset in bytes behind all ID3v2 tags at the beginning (id3.org, ID3v2.4.0, section 3.1)."""
    offset = 0
    while len(header := os.pread(fd, 10, offset)) == 10 and header[:3] == b"ID3":
        size = 0
        for byte in header[6:]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(header[5] & 0x10)
        offset += 10 + size + 10 * has_footer
    return offset


def _feed(fd: int, writer: int) -> None:
    """Ends with the file, or when nobody reads any more."""
    offset = after_tags(fd)
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        while chunk := os.pread(fd, _CHUNK_BYTES, offset):
            offset += len(chunk)
            try:
                while chunk:
                    chunk = chunk[pipe.write(chunk) :]
            except BrokenPipeError:
                return
