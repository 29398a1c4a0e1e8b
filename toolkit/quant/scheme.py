"""How one weight is stored: element type, granularity of its scales, and how the scales are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.base.errors import RecipeError

Dtype = Literal["f32", "f16", "int8", "int4"]
Search = Literal["absmax", "mse"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """``block_size`` None: one float32 scale per row (per channel); else one float16 scale per so many columns.

    ``search``: "absmax" maps a group's largest magnitude to the largest code; "mse" clips where that lowers the
    group's squared error. Both run equally fast on the device.
    """

    dtype: Dtype
    block_size: int | None = None
    search: Search = "mse"

    @property
    def per_channel(self) -> bool:
        """Whether the weight carries one float32 scale per row."""
        return self.quantised and self.block_size is None

    @property
    def quantised(self) -> bool:
        """Whether the weight is stored as integer codes; float16 is only a smaller float."""
        return self.dtype not in ("f32", "f16")

    def __str__(self) -> str:
        """As people write it.

        >>> str(Scheme("int4", 32)), str(Scheme("int8")), str(Scheme("f32"))
        ('int4 in blocks of 32', 'int8 per channel', 'f32')
        """
        if not self.quantised:
            return self.dtype
        return f"{self.dtype} " + (f"in blocks of {self.block_size}" if self.block_size else "per channel")


def payload_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """Bytes of the codes, without scales.

    >>> payload_bytes((3, 64), Scheme("int4", 32)), payload_bytes((3, 64), Scheme("int8"))
    (96, 192)
    """
    count = math.prod(shape)
    return {"f32": 4 * count, "f16": 2 * count, "int8": count, "int4": (count + 1) // 2}[scheme.dtype]


def scales_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """Bytes of the float16 block scales that stand beside the payload; per-channel scales sit in the file's header.

    >>> scales_bytes((3, 64), Scheme("int4", 32)), scales_bytes((3, 64), Scheme("int4"))
    (12, 0)
    """
    if not scheme.quantised or scheme.block_size is None:
        return 0
    return 2 * math.prod(shape) // scheme.block_size


def check_scheme(name: str, shape: Sequence[int], scheme: Scheme) -> None:
    """RecipeError when a weight of this shape cannot be stored so."""
    if not scheme.quantised:
        return
    what = f"weight {name} as {scheme}"
    # A convolution's [out, height, width, in] is quantised as the matrix [out, height * width * in]; LiteRT's int4 and
    # block scales are for matrices, and depthwise kernels [1, height, width, channels] have no rows.
    if len(shape) == 4 and shape[0] > 1 and scheme.dtype == "int8" and scheme.block_size is None:
        return
    if len(shape) != 2:
        raise RecipeError(what, found=f"shape {tuple(shape)}", wanted="a matrix", remedy="keep it f32 or f16")
    columns = shape[1]
    block = scheme.block_size
    if block is not None and (block < 1 or columns % block):
        raise RecipeError(
            what,
            found=f"{columns} columns",
            wanted=f"a multiple of {block}",
            remedy="give its rule a block_size that divides the columns, or no block_size (one scale per row)",
        )
    if scheme.dtype == "int4" and (columns if block is None else block) % 2:
        # Two codes share a byte, and LiteRT's EMBEDDING_LOOKUP misreads rows that start inside one.
        raise RecipeError(what, found="an odd width", wanted="an even one", remedy="use int8 for it")
