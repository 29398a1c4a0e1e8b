"""Reads MP3 files that do not state their length.

libsndfile guesses their length from the first frames and never reads beyond it: of a file with variable bit rate and
without a Xing header, most of the sound may be lost. From a pipe, it reads to the end instead.
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
    """Yield the descriptor of a pipe with the file's content after its tags, in which a decoder might see frames."""
    reader, writer = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file.fileno(), writer), daemon=True)
    feeder.start()
    try:
        yield reader
    finally:
        os.close(reader)
        feeder.join()


def after_tags(fd: int) -> int:
    """The offset of the first byte after all leading ID3v2 tags (id3.org, ID3v2.4.0, section 3.1)."""
    offset = 0
    while len(header := os.pread(fd, 10, offset)) == 10 and header[:3] == b"ID3":
        size = 0
        for byte in header[6:]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(header[5] & 0x10)
        offset += 10 + size + 10 * has_footer
    return offset


def _feed(fd: int, writer: int) -> None:
    """Copy the file into the pipe, until its end or until the reading end is closed."""
    offset = after_tags(fd)
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        while chunk := os.pread(fd, _CHUNK_BYTES, offset):
            offset += len(chunk)
            try:
                while chunk:
                    chunk = chunk[pipe.write(chunk) :]
            except BrokenPipeError:
                return
