"""Numbers to what LiteRT's INT4 and FLOAT16 tensors hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import CheckpointError, RecipeError


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes a byte over the whole array in C order, low nibble first; codes: an even number of int8 in [-8, 7].

    >>> pack_int4(np.array([1, -1, -8, 7], np.int8)).tolist()
    [241, 120]
    """
    # A pair is one little-endian uint16, 0x0H0L in its low nibbles; with its half 0x00H0 its low byte is 0xHL.
    pairs = np.ascontiguousarray(codes).reshape(-1).view("<u2") & 0x0F0F
    pairs |= pairs >> 4
    return pairs.astype(np.uint8)


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The codes of `pack_int4`, flat.

    >>> unpack_int4(np.array([241, 120], np.uint8)).tolist()
    [1, -1, -8, 7]
    """
    flat = packed.reshape(-1).view(np.int8)
    codes = np.empty((flat.size, 2), np.int8)
    np.right_shift(np.left_shift(flat, 4), 4, out=codes[:, 0])
    np.right_shift(flat, 4, out=codes[:, 1])
    return codes.reshape(-1)


def require_finite(values: NDArray[np.float32], name: str, first_row: int = 0) -> None:
    """CheckpointError for the first row with a number that is not finite; name and first_row are for errors."""
    finite = np.isfinite(values)
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), values.shape)
        what = f"weight {name}, row {first_row + int(place[0])}"
        raise CheckpointError(what, found=values[place], wanted="finite numbers", remedy="download it again")


def to_float16(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """Rounded to nearest; RecipeError for what overflows, CheckpointError for what is not finite. `name` is for errors.

    >>> to_float16(np.array([1.0, 65504.0, 1e-9], np.float32), "weights").tolist()
    [1.0, 65504.0, 0.0]
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        worst = float(np.abs(values).max())
        if not np.isfinite(worst):
            raise CheckpointError(f"weight {name}", found=worst, wanted="finite numbers", remedy="download it again")
        wanted = "at most 65504, what float16 holds"
        raise RecipeError(f"weight {name} as f16", found=f"{worst:g}", wanted=wanted, remedy="keep this weight f32")
    return halves
