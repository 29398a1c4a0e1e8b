"""Reads the header of any .litertlm, and nothing else of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from toolkit.base.errors import BundleError, system_reason
from toolkit.bundle.faults import Fault
from toolkit.litertlm import tables
from toolkit.litertlm.tables import ContainerMetadata

_REMEDY = "run gemma-edge check"


@dataclass(frozen=True, slots=True)
class Header:
    """The bytes before the first section, and what they say."""

    data: bytes
    metadata: ContainerMetadata


def read_header(path: Path) -> Header:
    """Read the header only; BundleError if the file is not a .litertlm, or is cut off."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        fixed = file.read(tables.METADATA_OFFSET)
        end = header_end(path.name, fixed, size)
        if isinstance(end, Fault):
            raise end.error(path, remedy=_REMEDY)
        table = file.read(end - tables.METADATA_OFFSET)
    metadata = tables.unpack_container_metadata(table, path)
    for section in metadata.sections:
        if not end <= section.begin <= section.end <= size:
            found, wanted = f"bytes {section.begin} to {section.end}", f"within the file's {size}"
            raise BundleError(f"section {section.label}", file=path, found=found, wanted=wanted, remedy=_REMEDY)
    return Header(fixed + table, metadata)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read; BundleError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise BundleError(file=path, found=system_reason(error)) from error


def header_end(file: str, fixed: bytes, size: int) -> int | Fault:
    """The offset at which the header ends, or a fault; fixed: the first METADATA_OFFSET bytes; size: the file's."""
    if len(fixed) < tables.METADATA_OFFSET:
        return Fault(file, "size", f"{size} bytes", f"at least {tables.METADATA_OFFSET}")
    if not fixed.startswith(tables.MAGIC):
        return Fault(file, "magic", repr(fixed[: len(tables.MAGIC)]), repr(tables.MAGIC))
    version = struct.unpack_from("<3I", fixed, len(tables.MAGIC))
    if version[0] != tables.VERSION[0]:
        return Fault(file, "version", ".".join(map(str, version)), f"{tables.VERSION[0]}.x")
    (end,) = struct.unpack_from("<Q", fixed, tables.HEADER_END_OFFSET)
    limit = min(size, tables.MAX_HEADER_BYTES)
    if not tables.METADATA_OFFSET < end <= limit:
        return Fault(file, "header_end", str(end), f"{tables.METADATA_OFFSET + 1} to {limit}")
    return int(end)
