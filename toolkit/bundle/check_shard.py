"""Checks one PLE shard without its bundle (docs/formats/ple_shard.md): its header, the hash of its rows, each row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BundleError
from toolkit.base.files import Advance, Progress
from toolkit.bundle.faults import Fault
from toolkit.bundle.ple_shards import HEADER_BYTES, PleLayout, ShardHeader, read_header, row_checksum, stored_checksum

_BLOCK_BYTES = 1 << 20
_MOST_ROWS = 20  # so many bad rows are named one by one, and the rest are counted


def check_shard(path: Path, *, progress: Progress | None = None) -> list[Fault]:
    """All faults of the shard."""
    try:
        header = read_header(path)
    except BundleError as error:
        return [Fault.of(error, path.name, "shard")]
    return row_faults(path, header, Advance(header.file_bytes - HEADER_BYTES, progress))


def row_faults(path: Path, header: ShardHeader, advance: Advance) -> list[Fault]:
    """Faults of the rows, for a shard whose header is valid."""
    digest = hashlib.sha256()
    faults: list[Fault] = []
    token = header.first_token
    for rows in _blocks(path, header.layout.row_bytes):
        digest.update(rows.data)
        faults += _faults_of(path.name, rows, header.layout, token)
        token += len(rows)
        advance(rows.nbytes)
    if len(faults) > _MOST_ROWS:
        more = f"{len(faults) - _MOST_ROWS} more bad rows"
        faults = [*faults[:_MOST_ROWS], Fault(path.name, "rows", more, None)]
    if digest.digest() != header.rows_sha256:
        wanted = f"{header.rows_sha256.hex()} as in the header"
        faults.append(Fault(path.name, "rows", f"sha256 {digest.hexdigest()}", wanted))
    return faults


def _blocks(path: Path, row_bytes: int) -> Iterator[NDArray[np.uint8]]:
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        while data := file.read(max(1, _BLOCK_BYTES // row_bytes) * row_bytes):
            yield np.frombuffer(data, np.uint8).reshape(-1, row_bytes)


def _faults_of(file: str, rows: NDArray[np.uint8], layout: PleLayout, first: int) -> list[Fault]:
    """One fault for each bad row: a wrong checksum, or values that the format forbids with a right checksum."""
    codes, behind = layout.code_bytes, layout.code_bytes + layout.scale_bytes
    damaged = np.array([row_checksum(row) != stored_checksum(row) for row in rows])
    numbers = np.ascontiguousarray(rows[:, codes:behind]).view(layout.scale_type)
    wrong = {
        "damaged bytes": damaged,
        "a scale that is not finite and positive": ~(np.isfinite(numbers) & (numbers > 0)).all(axis=1),
        "padding other than zeros": rows[:, behind:-4].any(axis=1),
    }
    if layout.bits == 8 and layout.scale_bits == 16:
        wrong["the code -128"] = (rows[:, :codes] == 0x80).any(axis=1)
    if not layout.element.quantised:
        wrong["a value that is not finite"] = ~np.isfinite(np.ascontiguousarray(rows[:, :codes]).view("<f4")).all(
            axis=1
        )
    found = {int(row): what for what, which in reversed(wrong.items()) for row in np.flatnonzero(which)}
    return [Fault(file, f"row of token {first + row}", found[row], None) for row in sorted(found)]
