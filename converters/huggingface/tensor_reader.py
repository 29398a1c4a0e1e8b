"""Reads parts of stored tensors as float32: only the needed bytes, converted while in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.safetensors import SafetensorsFile, TensorInfo
from toolkit.base.errors import CheckpointError, UsageError

Range = tuple[int, int]

_STORED: Mapping[str, np.dtype[np.generic]] = {
    "BF16": np.dtype(np.uint16),  # NumPy has no bfloat16: its bits
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
_EXPONENTS: Mapping[str, int] = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000}
"""The bits of each type's exponent: infinities and NaN have all of them set, other numbers have not."""

FLOAT_DTYPES = tuple(_STORED)
"""The dtypes that can be read, by their names in safetensors; `toolkit.base.elements` lists those that are written."""

_PIECE_BYTES = 1 << 20
"""Large enough for storage, and small enough to stay in the processor's cache between the read and the conversion."""

_LEAST_STRIDED_BYTES = 4096
"""The page size: for shorter gaps between parts of rows, separate reads cost more than reading whole rows."""


def read_tensor(
    file: SafetensorsFile, info: TensorInfo, rows: Range | None, columns: Range | None
) -> NDArray[np.float32]:
    """Read half-open ranges of the first and last axis (None: all); bf16 and f16 become float32 of equal value.

    CheckpointError for a NaN or an infinity, with the name and the row in the checkpoint's file.
    """
    if info.dtype not in FLOAT_DTYPES:
        raise CheckpointError(info.name, file=file.path, found=info.dtype, wanted=" or ".join(FLOAT_DTYPES))
    if not info.shape and (rows or columns):
        raise UsageError(info.name, found="a range of a tensor without axes", wanted="all of it")
    if len(info.shape) == 1 and columns is not None:
        raise UsageError(info.name, found="a range of columns", wanted="a range of rows: it has one axis")
    first, last = _checked(info, rows, 0), _checked(info, columns, -1)
    width = info.shape[-1] if len(info.shape) > 1 else 1
    if len(info.shape) < 2:
        last = (0, 1)
    middle = math.prod(info.shape[1:-1])
    out = np.empty(((first[1] - first[0]) * middle, last[1] - last[0]), np.float32)
    if out.shape[1] == width:
        _read_run(file, info, first[0] * middle * width, out.reshape(-1))
    else:
        _read_columns(file, info, first[0] * middle, last[0], width, out)
    return out.reshape(_part_shape(info.shape, first, last))


def _checked(info: TensorInfo, part: Range | None, axis: int) -> Range:
    size = info.shape[axis] if info.shape else 1
    if part is None:
        return 0, size
    if not 0 <= part[0] <= part[1] <= size:
        raise UsageError(f"{info.name} axis {axis}", found=f"the range {part}", wanted=f"one within 0..{size}")
    return part


def _part_shape(shape: tuple[int, ...], first: Range, last: Range) -> tuple[int, ...]:
    """The shape of the part; axes other than the first and the last are whole."""
    if len(shape) < 2:
        return tuple(first[1] - first[0] for _ in shape)
    return first[1] - first[0], *shape[1:-1], last[1] - last[0]


def _read_run(file: SafetensorsFile, info: TensorInfo, start: int, out: NDArray[np.float32]) -> None:
    """Read consecutive elements, starting at `start`, into a flat array."""
    stored = _STORED[info.dtype]
    begin = info.begin + start * stored.itemsize
    if info.dtype == "F32":
        file.read_into(out, begin)
        _require_finite(file, info, out, start)
        return
    piece = _PIECE_BYTES // stored.itemsize
    scratch = np.empty(min(piece, out.size), stored)
    for done in range(0, out.size, piece):
        part = scratch[: min(piece, out.size - done)]
        file.read_into(part, begin + done * stored.itemsize)
        _require_finite(file, info, part, start + done)
        _widen(part, out[done : done + part.size])


def _read_columns(
    file: SafetensorsFile, info: TensorInfo, first_row: int, first_column: int, width: int, out: NDArray[np.float32]
) -> None:
    """Read a rectangle, some rows at a time: only the wanted part of each row, or whole rows if that is most of it."""
    stored = _STORED[info.dtype]
    rows, columns = out.shape
    strided = columns * stored.itemsize >= _LEAST_STRIDED_BYTES and columns * 2 <= width
    read_width, skipped = (columns, 0) if strided else (width, first_column)
    piece = max(1, _PIECE_BYTES // (read_width * stored.itemsize))
    scratch = np.empty((min(piece, rows), read_width), stored)
    for done in range(0, rows, piece):
        part = scratch[: min(piece, rows - done)]
        begin = info.begin + (first_row + done) * width * stored.itemsize
        if strided:
            for index, row in enumerate(part):
                file.read_into(row, begin + (index * width + first_column) * stored.itemsize)
        else:
            file.read_into(part, begin)
        wanted = part[:, skipped : skipped + columns]
        _require_finite(file, info, wanted, (first_row + done) * width + first_column, width)
        _widen(wanted, out[done : done + len(part)])


def _require_finite(
    file: SafetensorsFile, info: TensorInfo, stored: NDArray[np.generic], start: int, width: int = 0
) -> None:
    """Raise CheckpointError if any of the numbers is not finite.

    `start`: the index of the first number in the flattened tensor. `width`: for numbers of several rows, the distance
    of their beginnings.
    """
    size, exponent = stored.dtype.itemsize, _EXPONENTS[info.dtype]
    # Without their sign, the bits of floats sort like integers: two maxima suffice, in a fraction of widening's time.
    unsigned, signed = stored.view(f"u{size}"), stored.view(f"i{size}")
    if not stored.size or (signed.max() < exponent and unsigned.max() < exponent | 1 << (8 * size - 1)):
        return
    place = np.unravel_index(int(np.argmax(unsigned & exponent == exponent)), stored.shape)
    offset = start + int(place[-1]) + (int(place[0]) * width if stored.ndim > 1 else 0)
    row = offset // max(1, math.prod(info.shape[1:]))
    value = np.empty(1, np.float32)
    _widen(stored[place].reshape(1), value)
    what = f"tensor {info.name}, row {row}" if info.shape else f"tensor {info.name}"
    raise CheckpointError(what, file=file.path, found=f"{value[0]}, not a finite number", remedy="download it again")


def _widen(stored: NDArray[np.generic], out: NDArray[np.float32]) -> None:
    if stored.dtype == np.uint16:
        # bf16 is the upper half of a float32; two passes are faster than one that converts and shifts.
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, 16, out=bits)
    else:
        out[...] = stored
