"""Reads many tables of a flatbuffer at once, checking each offset first; `schema_unpack.py` reads them one by one.

Positions are offsets in bytes from the start of the file. The rules are those of flatbuffers' own verifier: whatever is
read lies within the buffer, at a multiple of its size. Format: https://flatbuffers.dev/internals.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import GraphError

I64 = NDArray[np.int64]

Scalar = Literal["u1", "i1", "<u4", "<i4", "<u8"]
_MOST_SHARED = 4
"""How often the same bytes may be read, on average: packers share tables and vectors between graphs."""
_TABLE_BYTES = 4
_SLOT_BYTES = 2
_FIRST_SLOT = 4
"""In a vtable, behind its own size and the table's."""


class Flatbuffer:
    """The bytes of a flatbuffer."""

    def __init__(self, data: memoryview) -> None:
        self.size = len(data)
        self.view = data
        self._data = np.frombuffer(data, np.uint8)
        self._room = _MOST_SHARED * self.size

    def root(self, fields: int) -> Tables:
        """The root table; `fields`: how many fields its type has."""
        return Tables(self, self.read(np.zeros(1, np.int64), "<u4"), fields)

    def read(self, positions: I64, kind: Scalar) -> I64:
        """The numbers of one kind at these positions."""
        dtype = np.dtype(kind)
        self.check(positions, dtype.itemsize)
        return self._as(dtype)[positions // dtype.itemsize].astype(np.int64)

    def u16(self, positions: I64) -> I64:
        """The numbers at positions that were checked already."""
        return self._as(np.dtype("<u2"))[positions // _SLOT_BYTES].astype(np.int64)

    def check(self, positions: I64, width: int) -> None:
        """Raise GraphError unless each position is a multiple of `width`, with `width` bytes of the buffer there."""
        if positions.size and (positions.min() < 0 or positions.max() + width > self.size or np.any(positions % width)):
            raise GraphError("header", found="an offset that is misaligned or points outside the header")

    def vectors(self, positions: I64, item_bytes: int) -> tuple[I64, I64]:
        """Where the items of each vector begin, and how many there are; position 0 means no vector and no items."""
        present = positions > 0
        counts = np.zeros(len(positions), np.int64)
        counts[present] = self.read(positions[present], "<u4")
        starts = positions + _TABLE_BYTES
        if np.any(starts[present] + counts[present] * item_bytes > self.size):
            raise GraphError("header", found="a vector that ends outside the header")
        if item_bytes > 1 and np.any(starts[present & (counts > 0)] % item_bytes):
            raise GraphError("header", found="a misaligned vector")
        self.take(int(counts.sum()) * item_bytes)
        return starts, counts

    def padded(self, positions: I64, most: int, what: str) -> tuple[I64, I64]:
        """The int32 items of each vector as a row, padded with -1, and the counts; GraphError for more than `most`."""
        starts, counts = self.vectors(positions, 4)
        if counts.size and counts.max() > most:
            raise GraphError(what, found=f"{counts.max()} numbers", wanted=f"at most {most}")
        rows = np.full((len(positions), most), -1, np.int64)
        for column in range(most):
            there = counts > column
            rows[there, column] = self.read(starts[there] + 4 * column, "<i4")
        return rows, counts

    def numbers(self, start: int, count: int, kind: str) -> NDArray[np.generic]:
        """Consecutive numbers; `vectors` has checked the place."""
        dtype = np.dtype(kind)
        return self._data[start : start + count * dtype.itemsize].view(dtype)

    def bytes_at(self, start: int, count: int) -> bytes:
        """Bytes at a place that has been checked."""
        return self._data[start : start + count].tobytes()

    def check_texts(self, positions: I64) -> None:
        """Raise GraphError unless each string is within the buffer and ends with a zero byte, as C programs expect."""
        starts, counts = self.vectors(positions, 1)
        present = positions > 0
        if np.any(self.read((starts + counts)[present], "u1")):
            raise GraphError("header", found="an unterminated name")

    def text(self, position: int) -> str:
        """The string at a position, empty for position 0; GraphError if it is not UTF-8."""
        (start,), (count,) = self.vectors(np.array([position], np.int64), 1)
        try:
            return self.bytes_at(int(start), int(count)).decode()
        except UnicodeDecodeError as error:
            raise GraphError("header", found=f"a name that is not UTF-8 ({error.reason})") from error

    def _as(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The whole buffer as an array of one type; bytes at the end that do not fill an element are left out."""
        return self._data[: self.size - self.size % dtype.itemsize].view(dtype)

    def take(self, count: int) -> None:
        """Count `count` more bytes as read; GraphError once the same bytes must have been read over and over."""
        self._room -= count
        if self._room < 0:
            raise GraphError("header", found="tables that are referenced too often")


class Tables:
    """Tables of one type, at these positions; `fields`: how many fields the type has."""

    def __init__(self, buffer: Flatbuffer, positions: I64, fields: int) -> None:
        self._buffer = buffer
        self.positions = positions
        buffer.take(8 * _TABLE_BYTES * len(positions))
        self.vtables = positions - buffer.read(positions, "<i4")
        buffer.check(self.vtables, _SLOT_BYTES)
        buffer.check(self.vtables + _SLOT_BYTES, _SLOT_BYTES)
        self.vtable_bytes, self.table_bytes = buffer.u16(self.vtables), buffer.u16(self.vtables + _SLOT_BYTES)
        if len(positions) and (
            np.any(self.vtable_bytes < _FIRST_SLOT)
            or np.any(self.vtable_bytes % _SLOT_BYTES)
            or np.any(self.vtables + self.vtable_bytes > buffer.size)
            or np.any(self.table_bytes < _TABLE_BYTES)
            or np.any(positions + self.table_bytes > buffer.size)
        ):
            raise GraphError("header", found="a table outside the header")
        self._check_fields(fields)

    def __len__(self) -> int:
        return len(self.positions)

    def has(self, field: int) -> NDArray[np.bool_]:
        """Which tables store this field."""
        return self._offsets(field) > 0

    def scalars(self, field: int, kind: Scalar, default: int = 0) -> I64:
        """A field of numbers."""
        offsets = self._offsets(field)
        width = np.dtype(kind).itemsize
        present = offsets > 0
        if np.any(offsets[present] + width > self.table_bytes[present]):
            raise GraphError("header", found="a field outside its table")
        values = np.full(len(self), default, np.int64)
        values[present] = self._buffer.read(self.positions[present] + offsets[present], kind)
        return values

    def targets(self, field: int) -> I64:
        """The position that a field points to, for each table; 0 where it is absent."""
        relative = self.scalars(field, "<u4")
        present = self.has(field)
        targets = np.zeros(len(self), np.int64)
        targets[present] = self.positions[present] + self._offsets(field)[present] + relative[present]
        self._buffer.check(targets[present], 4)
        return targets

    def children(self, field: int, fields: int) -> Tables:
        """The tables in the vector of a field, those of all tables one after the other."""
        starts, counts = self._buffer.vectors(self.targets(field), 4)
        total = int(counts.sum())
        first = np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(starts, counts) + 4 * (np.arange(total) - first)
        return Tables(self._buffer, places + self._buffer.read(places, "<u4"), fields)

    def require_absent(self, what: str, *fields: int) -> None:
        """Raise GraphError if a table stores one of these fields, which our files never do."""
        for field in fields:
            if np.any(self.has(field)):
                raise GraphError(what, found=f"field {field} of the schema, which our graphs never use")

    def _check_fields(self, fields: int) -> None:
        """Raise GraphError for a field that its type does not have, or that begins outside its table."""
        vtables, firsts = np.unique(self.vtables, return_index=True)
        table_bytes = self.table_bytes[firsts]  # a vtable states it
        counts = (self.vtable_bytes[firsts] - _FIRST_SLOT) // _SLOT_BYTES
        self._buffer.take(_SLOT_BYTES * int(counts.sum()))
        number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = self._buffer.u16(np.repeat(vtables + _FIRST_SLOT, counts) + _SLOT_BYTES * number)
        if np.any(offsets[number >= fields]):
            raise GraphError("header", found="a field of a later schema")
        if np.any((offsets > 0) & ((offsets < _TABLE_BYTES) | (offsets >= np.repeat(table_bytes, counts)))):
            raise GraphError("header", found="a field outside its table")

    def _offsets(self, field: int) -> I64:
        """The field's place in each table; 0 where it is absent."""
        slot = _FIRST_SLOT + _SLOT_BYTES * field
        present = self.vtable_bytes > slot
        offsets = np.zeros(len(self), np.int64)
        offsets[present] = self._buffer.u16(self.vtables[present] + slot)
        return offsets
