"""The checker of one PLE shard: valid shards, and one broken shard for each fault."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import OneTable

from toolkit.bundle.faults import Fault
from toolkit.bundle.ple_shards import HEADER_BYTES, PleLayout, read_header, shard_name
from toolkit.bundle.ple_writer import write_ple_shards
from toolkit.check import check

VOCAB, LAYERS, WIDTH = 300, 3, 32
VALUES = np.random.default_rng(5).standard_normal((VOCAB, LAYERS * WIDTH)).astype(np.float32)


def shard(directory: Path, bits: int = 8) -> Path:
    """The second of three, with the rows of tokens 128 to 255."""
    layout = PleLayout(VOCAB, LAYERS, WIDTH, bits)
    write_ple_shards(directory, OneTable(VALUES), "table", layout, shard_bytes=HEADER_BYTES + 128 * layout.row_bytes)
    return directory / shard_name(1)


def change(path: Path, token: int, offset: int, data: bytes, *, mend: bool = True) -> None:
    """Write into a row; with `mend` make its checksum and the header's hash right again."""
    header = read_header(path)
    content = bytearray(path.read_bytes())
    size = header.layout.row_bytes
    begin = HEADER_BYTES + (token - header.first_token) * size
    content[begin + offset : begin + offset + len(data)] = data
    if mend:
        content[begin + size - 4 : begin + size] = zlib.crc32(content[begin : begin + size - 4]).to_bytes(4, "little")
        digest = hashlib.sha256(content[HEADER_BYTES:]).digest()
        content[:HEADER_BYTES] = replace(header, rows_sha256=digest).pack()
    path.write_bytes(content)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_a_shard_is_sound_alone(tmp_path: Path, bits: int) -> None:
    seen: list[tuple[int, int]] = []
    path = shard(tmp_path, bits)
    assert check(path, progress=lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (path.stat().st_size - HEADER_BYTES,) * 2


CODES = LAYERS * WIDTH
FAULTS: dict[str, tuple[int, Callable[[Path], None], str]] = {
    "infinite scale": (4, lambda path: change(path, 130, CODES // 2, b"\x00\x7c"), "finite and positive"),
    "no scale": (8, lambda path: change(path, 130, CODES + 2, b"\x00\x00"), "finite and positive"),
    "negative scale": (8, lambda path: change(path, 130, CODES, b"\x00\xbc"), "finite and positive"),
    "padding": (8, lambda path: change(path, 130, CODES + 6, b"\x01"), "padding"),
    "code": (8, lambda path: change(path, 130, 5, b"\x80"), "the code -128"),
    "value": (32, lambda path: change(path, 130, 4, b"\x00\x00\xc0\x7f"), "not finite"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_row_that_no_writer_may_write_is_named(tmp_path: Path, name: str) -> None:
    bits, spoil, says = FAULTS[name]
    path = shard(tmp_path, bits)
    spoil(path)
    (fault,) = check(path)
    assert (fault.file, fault.fault) == ("ple_00001.bin", "row of token 130") and says in fault.found


def test_flipped_bytes_are_named_by_row_and_by_the_headers_hash(tmp_path: Path) -> None:
    path = shard(tmp_path)
    for token in (128, 255):
        change(path, token, 7, b"\x11\x11", mend=False)
    assert [fault.fault for fault in check(path)] == ["row of token 128", "row of token 255", "rows"]


def test_a_shard_of_nothing_but_damage_is_not_listed_row_by_row(tmp_path: Path) -> None:
    path = shard(tmp_path)
    path.write_bytes(path.read_bytes()[:HEADER_BYTES] + b"\x55" * (path.stat().st_size - HEADER_BYTES))
    faults = check(path)
    assert len(faults) == 22 and faults[20] == Fault("ple_00001.bin", "rows", "108 more bad rows", None)


def test_a_broken_header_is_one_fault(tmp_path: Path) -> None:
    path = shard(tmp_path)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert [(fault.file, fault.fault) for fault in check(path)] == [("ple_00001.bin", "shard")]
