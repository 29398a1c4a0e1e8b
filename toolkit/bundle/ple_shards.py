"""PLE shards: files of rows, each with all per-layer embeddings of one token (docs/formats/ple_shard.md).

`ple_writer.py` writes them, so code that only reads shards does not import the quantiser.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.elements import ElementType, element_names, element_of
from toolkit.base.errors import BundleError, system_reason
from toolkit.base.layout import PAGE_BYTES, align_up, ceil_div
from toolkit.quant.packing import unpack_codes

MAGIC = b"GEMMAPLE"
VERSIONS = {16: 1, 32: 2}
"""The version of a shard's format by the bits of its scales, the only difference between the versions."""

HEADER_BYTES = PAGE_BYTES
ROW_ALIGNMENT = 512  # the smallest sector of flash; divides every page size
DEFAULT_SHARD_BYTES = 256 << 20

CHECKSUM_BYTES = 4
_FIELDS = struct.Struct("<8sIIQQQIIIIII32s")


def ple_elements() -> tuple[ElementType, ...]:
    """The element types that a table's values may have: integer codes, or float32."""
    elements = (element_of(name) for name in element_names())
    return tuple(element for element in elements if element.quantised or element.name == "f32")


@dataclass(frozen=True, slots=True)
class PleLayout:
    """The properties that all shards of a table share. A row holds `width` values for each of `layers` layers.

    `bits`: of a code; 32 for float32 values. `scale_bits`: 16, or 32 for scales that a checkpoint states in float32.
    """

    vocab_size: int
    layers: int
    width: int
    bits: int
    scale_bits: int = 16

    @property
    def element(self) -> ElementType:
        """The element type of the values, by their number of bits."""
        return next(element for element in ple_elements() if element.bits == self.bits)

    @property
    def code_bytes(self) -> int:
        """Bytes of one row's values, without scales."""
        return self.layers * self.width * self.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Bytes of one row's scales, one for each layer; float32 values have none."""
        return self.layers * self.scale_bits // 8 if self.element.quantised else 0

    @property
    def scale_type(self) -> np.dtype[np.floating]:
        """The type of the scales."""
        return np.dtype(f"<f{self.scale_bits // 8}")

    @property
    def row_bytes(self) -> int:
        """Bytes from the start of one row to the next, padding included.

        >>> PleLayout(262144, 30, 256, 4).row_bytes, PleLayout(262144, 35, 256, 8).row_bytes
        (4096, 9216)
        """
        return align_up(self.code_bytes + self.scale_bytes + CHECKSUM_BYTES, ROW_ALIGNMENT)

    def rows_per_shard(self, shard_bytes: int) -> int:
        """The number of rows of every shard except the last, for shards of about `shard_bytes`."""
        return min(self.vocab_size, max(1, (shard_bytes - HEADER_BYTES) // self.row_bytes))

    def shard_count(self, shard_bytes: int) -> int:
        return ceil_div(self.vocab_size, self.rows_per_shard(shard_bytes))

    def total_bytes(self, shard_bytes: int) -> int:
        """Bytes of all shards, headers included."""
        return self.vocab_size * self.row_bytes + self.shard_count(shard_bytes) * HEADER_BYTES


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """The header page of one shard."""

    layout: PleLayout
    first_token: int
    row_count: int
    shard: int
    shard_count: int
    rows_sha256: bytes

    @property
    def file_bytes(self) -> int:
        """The size that the shard's file must have."""
        return HEADER_BYTES + self.row_count * self.layout.row_bytes

    def pack(self) -> bytes:
        """The bytes of the header page, with its own hash."""
        layout = self.layout
        fields = _FIELDS.pack(
            MAGIC, VERSIONS[layout.scale_bits], HEADER_BYTES, self.first_token, self.row_count, layout.vocab_size,
            layout.layers, layout.width, layout.bits, layout.row_bytes, self.shard, self.shard_count, self.rows_sha256,
        )  # fmt: skip
        return (fields + hashlib.sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")


def shard_name(index: int) -> str:
    """The file name of a shard.

    >>> shard_name(7)
    'ple_00007.bin'
    """
    return f"ple_{index:05}.bin"


def is_shard_name(name: str) -> bool:
    """Whether a file name is that of a shard.

    >>> is_shard_name("ple_00007.bin"), is_shard_name("ple.bin")
    (True, False)
    """
    return re.fullmatch(r"ple_[0-9]{5}\.bin", name) is not None


def read_header(path: Path) -> ShardHeader:
    """Read a shard's header, and check its hash, its fields and the file's size; BundleError if one is wrong."""
    try:
        with open(path, "rb") as file:
            page = file.read(HEADER_BYTES)
            size = file.seek(0, 2)
    except OSError as error:
        raise BundleError(file=path, found=system_reason(error)) from error
    if len(page) < HEADER_BYTES or page[:8] != MAGIC:
        raise BundleError(
            file=path,
            found=f"{size} bytes that begin with {page[:8]!r}",
            wanted=f"a PLE shard, which begins with {MAGIC!r}",
        )
    fields, digest = page[: _FIELDS.size], page[_FIELDS.size : _FIELDS.size + 32]
    if hashlib.sha256(fields).digest() != digest or any(page[_FIELDS.size + 32 :]):
        raise BundleError("header", file=path, found="damaged bytes", remedy="copy it again")
    header = _unpack(fields, path)
    if size != header.file_bytes:
        remedy = "copy it again" if size < header.file_bytes else None
        raise BundleError(file=path, found=f"{size} bytes", wanted=f"{header.file_bytes}", remedy=remedy)
    return header


def _unpack(fields: bytes, path: Path) -> ShardHeader:
    _, version, header_bytes, first, count, vocab, layers, width, bits, row_bytes, shard, shards, digest = (
        _FIELDS.unpack(fields)
    )
    scale_bits = next((bits for bits, known in VERSIONS.items() if known == version), None)
    if scale_bits is None:
        raise BundleError("header version", file=path, found=version, wanted=" or ".join(map(str, VERSIONS.values())))
    layout = PleLayout(vocab, layers, width, bits, scale_bits)
    known_bits = sorted(element.bits for element in ple_elements())
    if bits not in known_bits:
        raise BundleError("header bits", file=path, found=bits, wanted=" or ".join(map(str, known_bits)))
    wanted: tuple[tuple[str, object, bool, object], ...] = (
        ("header_bytes", header_bytes, header_bytes == HEADER_BYTES, HEADER_BYTES),
        ("layers", layers, 1 <= layers <= 1024, "1 to 1024"),
        ("width", width, 1 <= width <= 1 << 16 and layers * width * bits % 8 == 0, "whole bytes, at most 65536 values"),
        ("row_bytes", row_bytes, row_bytes == layout.row_bytes, layout.row_bytes),
        ("vocab_size", vocab, 1 <= vocab <= 1 << 24, "1 to 16777216"),
        ("row_count", count, count >= 1 and first + count <= vocab, f"1 to {vocab - first}"),
        ("shard", shard, shard < shards <= vocab, f"below {shards} shards"),
    )
    for name, found, holds, right in wanted:
        if not holds:
            raise BundleError(f"header {name}", file=path, found=found, wanted=right)
    return ShardHeader(layout, first, count, shard, shards, digest)


def check_sequence(paths: Sequence[Path], headers: Sequence[ShardHeader]) -> None:
    """Raise BundleError unless these are all shards of one table, in order."""
    if not headers:
        raise BundleError(found="there are no PLE shards")
    layout, count, rows, expected = headers[0].layout, headers[0].shard_count, headers[0].row_count, 0
    for index, (path, header) in enumerate(zip(paths, headers, strict=True)):
        if (header.layout, header.shard_count, header.shard) != (layout, count, index):
            found = f"shard {header.shard} of {header.shard_count}, {header.layout}"
            raise BundleError(file=path, found=found, wanted=f"shard {index} of {count}, {layout}")
        if path.name != shard_name(index):
            raise BundleError(file=path, found=f"the name of shard {index}", wanted=shard_name(index))
        if header.first_token != expected:
            raise BundleError("header first_token", file=path, found=header.first_token, wanted=expected)
        if header.row_count > rows or (header.row_count < rows and index < count - 1):
            wanted = f"{rows}, as in the first shard" if index < count - 1 else f"at most {rows}, as in the first shard"
            raise BundleError("header row_count", file=path, found=header.row_count, wanted=wanted)
        expected += header.row_count
    if len(headers) != count or expected != layout.vocab_size:
        found = f"{len(headers)} shards with {expected} rows"
        raise BundleError(file=paths[0], found=found, wanted=f"{count} shards with {layout.vocab_size} rows")


def row_checksum(row: NDArray[np.uint8]) -> int:
    """The checksum (CRC-32) of a row uint8[row_bytes], computed from its content."""
    return zlib.crc32(row[:-CHECKSUM_BYTES].data)


def stored_checksum(row: NDArray[np.uint8]) -> int:
    """The checksum stored in the last four bytes of a row uint8[row_bytes]."""
    return int.from_bytes(row[-CHECKSUM_BYTES:].tobytes(), "little")


def unpack_rows(rows: NDArray[np.uint8], layout: PleLayout) -> NDArray[np.float32]:
    """Dequantise rows uint8[n, row_bytes] to f32[n, layers, width]."""
    n = len(rows)
    bytes_ = np.ascontiguousarray(rows[:, : layout.code_bytes])
    if not layout.element.quantised:
        return bytes_.view("<f4").reshape(n, layout.layers, layout.width).astype(np.float32)
    codes = unpack_codes(bytes_, layout.bits)
    values = codes.astype(np.float32).reshape(n, layout.layers, layout.width)
    scales = np.ascontiguousarray(rows[:, layout.code_bytes : layout.code_bytes + layout.scale_bytes]).view(
        layout.scale_type
    )
    values *= scales.astype(np.float32)[:, :, None]
    return values
