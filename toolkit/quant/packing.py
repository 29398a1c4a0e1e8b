"""Turns codes and floats into the bytes that LiteRT's tensors hold, and bytes into codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import CheckpointError, RecipeError


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Pack the codes of an array in C order, 8 / bits codes to a byte, the first in the lowest bits: uint8[bytes].

    `codes`: signed numbers of `bits` bits (1, 2, 4 or 8), as many as fill whole bytes.

    >>> pack_codes(np.array([1, -1, -8, 7], np.int8), 4).tolist()
    [241, 120]
    """
    packed = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    while bits < 8:
        # At 4 bits a pair is one little-endian uint16 0x?H?L; cleared and with its half 0x00H0, its low byte is 0xHL.
        pairs = packed.view("<u2") & (0x0101 * ((1 << bits) - 1))
        pairs |= pairs >> (8 - bits)
        packed = pairs.astype(np.uint8)
        bits *= 2
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Unpack what `pack_codes` packed, as one axis: int8[bytes * 8 / bits].

    >>> unpack_codes(np.array([241, 120], np.uint8), 4).tolist()
    [1, -1, -8, 7]
    """
    codes = packed.reshape(-1).view(np.int8)
    half = 4
    while half >= bits:
        halves = np.empty((codes.size, 2), np.int8)
        np.right_shift(np.left_shift(codes, 8 - half), 8 - half, out=halves[:, 0])
        np.right_shift(codes, half, out=halves[:, 1])
        codes = halves.reshape(-1)
        half //= 2
    return codes


def require_finite(values: NDArray[np.float32], name: str, first_row: int = 0) -> None:
    """Raise CheckpointError if any value is a NaN or an infinity; its message uses `name` and `first_row`."""
    finite = np.isfinite(values)
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), values.shape)
        what = f"weight {name}, row {first_row + int(place[0])}"
        raise CheckpointError(what, found=f"{values[place]}, not a finite number", remedy="download it again")


def to_float16(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """The nearest float16 numbers; RecipeError if one overflows, CheckpointError for a NaN or an infinity.

    >>> to_float16(np.array([1.0, 65504.0, 1e-9], np.float32), "weights").tolist()
    [1.0, 65504.0, 0.0]
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        worst = float(np.abs(values).max())
        if not np.isfinite(worst):
            raise CheckpointError(f"weight {name}", found=f"{worst}, not a finite number", remedy="download it again")
        wanted = "at most 65504, the largest float16"
        raise RecipeError(f"weight {name} as f16", found=f"{worst:g}", wanted=wanted, remedy="keep this weight f32")
    return halves
