"""How one weight is stored: element type, granularity of its scales, and how the scales are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.base.elements import ElementName, ElementType, element_of
from toolkit.base.errors import RecipeError

Search = Literal["absmax", "mse"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """`dtype`: the element type. `block_size`: None means one float32 scale for each row (per channel); otherwise each
    block of so many consecutive columns of a row has one float16 scale.

    `search`: "absmax" maps the largest magnitude of a row or block to the largest code; "mse" clips where that lowers
    the squared error. Both run equally fast on the device.
    """

    dtype: ElementName
    block_size: int | None = None
    search: Search = "mse"

    @property
    def element(self) -> ElementType:
        """The row of the table of element types."""
        return element_of(self.dtype)

    @property
    def per_channel(self) -> bool:
        """Whether the weight carries one float32 scale per row."""
        return self.quantised and self.block_size is None

    @property
    def quantised(self) -> bool:
        """Whether the weight is stored as integer codes; float16 is only a smaller float."""
        return self.element.quantised

    def __str__(self) -> str:
        """The scheme in words.

        >>> str(Scheme("int4", 32)), str(Scheme("int8")), str(Scheme("f32"))
        ('int4 in blocks of 32', 'int8 per channel', 'f32')
        """
        if not self.quantised:
            return self.dtype
        return f"{self.dtype} " + (f"in blocks of {self.block_size}" if self.block_size else "per channel")


def payload_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """Bytes of a weight of this shape, without scales.

    >>> payload_bytes((3, 64), Scheme("int4", 32)), payload_bytes((3, 64), Scheme("int8"))
    (96, 192)
    """
    return scheme.element.bytes_of(math.prod(shape))


def scales_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """Bytes of the float16 block scales stored beside the payload; per-channel scales are in the file's header.

    >>> scales_bytes((3, 64), Scheme("int4", 32)), scales_bytes((3, 64), Scheme("int4"))
    (12, 0)
    """
    if not scheme.quantised or scheme.block_size is None:
        return 0
    return 2 * math.prod(shape) // scheme.block_size


def check_scheme(name: str, shape: Sequence[int], scheme: Scheme) -> None:
    """Raise RecipeError if a weight of this shape cannot be stored in this scheme; its message uses `name`."""
    if not scheme.quantised:
        return
    what = f"weight {name} as {scheme}"
    # A convolution's [out, height, width, in] is quantised as the matrix [out, height * width * in]; LiteRT has int4
    # and block scales for matrices only, and depthwise kernels [1, height, width, channels] have no rows.
    if len(shape) == 4 and shape[0] > 1 and scheme.element.convolutions and scheme.block_size is None:
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
    per_byte, width = scheme.element.per_byte, columns if block is None else block
    if width % per_byte:
        # LiteRT's EMBEDDING_LOOKUP misreads rows that start inside a byte.
        wanted = f"a multiple of {per_byte}, the codes in a byte"
        raise RecipeError(what, found=f"a width of {width}", wanted=wanted, remedy="use int8 for it")
