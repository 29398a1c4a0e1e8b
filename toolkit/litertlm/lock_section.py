"""The lock of an export, in a section of its own: LiteRT-LM reads only 16 KiB of a header, and a lock may be longer."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.base.errors import BundleError
from toolkit.bundle.lock import MAX_LOCK_BYTES, Lock, lock_line, parse_lock
from toolkit.litertlm import tables
from toolkit.litertlm.container import Section
from toolkit.litertlm.header import opened
from toolkit.litertlm.tables import ContainerMetadata


def lock_section(lock: Lock) -> Section:
    """The section that holds a lock."""
    return Section(tables.BINARY_DATA, (lock_line(lock).encode("ascii"),), items={tables.NAME: tables.LOCK})


def read_lock(path: Path, metadata: ContainerMetadata) -> Lock | None:
    """The lock of a .litertlm whose sections lie within the file; None if it has none, BundleError if it is invalid."""
    section = metadata.binary_data(tables.LOCK)
    if section is None:
        text = metadata.system.get(tables.LOCK)
        return None if text is None else parse_lock(text.encode("utf-8"), path)
    size = section.end - section.begin
    if size > MAX_LOCK_BYTES:
        raise BundleError(f"section {section.label}", file=path, found=f"{size:,} bytes", wanted="a lock")
    with opened(path) as file:
        return parse_lock(os.pread(file.fileno(), size, section.begin), path)
