"""The payload of an adb message: bytes in memory, or a piece of a file that need not be read into memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import BundleError
from toolkit.base.files import file_shrunk

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class FilePayload:
    """A range of an open local file as a payload; if possible, the kernel sends it without copying it here."""

    path: Path
    fd: int
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self) -> bytes:
        data = os.pread(self.fd, self.size, self.offset)
        while len(data) < self.size:
            more = os.pread(self.fd, self.size - len(data), self.offset + len(data))
            if not more:
                raise self.shrunk(self.offset + len(data))
            data += more
        return data

    def shrunk(self, end: int) -> BundleError:
        return file_shrunk(self.path, end, self.offset + self.size)


Payload = Buffer | FilePayload


def part_of(payload: Payload, start: int, most: int) -> Payload:
    """At most `most` bytes from `start` on, without a copy."""
    if not isinstance(payload, FilePayload):
        return memoryview(payload)[start : start + most]
    size = min(most, payload.size - start)
    return FilePayload(payload.path, payload.fd, payload.offset + start, size)
