"""The element types that a weight can be stored in: the one table of what is known of each.

A new type is a row here and its name in `ElementName`; and, where it is quantised, the scales that the search tries
(`toolkit/quant/uniform.py`) and the bounds that a bundle of it is judged by (`converters/verify*.py`). Tests hold that
these know every row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ElementName = Literal["f32", "f16", "int8", "int4"]
"""As recipes and manifests write it."""


@dataclass(frozen=True, slots=True)
class ElementType:
    """How one number of a weight is stored.

    `codes`: the smallest and the largest integer of a quantised type; None for a float.
    `tensor_type`: its name in LiteRT's schema.
    """

    name: ElementName
    bits: int
    tensor_type: str
    codes: tuple[int, int] | None = None
    block_scales: bool = False
    """LiteRT computes with one scale for each block of columns, not only with one for each row."""
    convolutions: bool = False
    """LiteRT computes convolutions with kernels of it."""
    widened: bool = False
    """LiteRT computes with it as float32 only: an operator of the graph converts the whole weight before its use."""

    @property
    def quantised(self) -> bool:
        """Whether it holds integer codes, which stand for reals by a scale."""
        return self.codes is not None

    @property
    def per_byte(self) -> int:
        """How many share one byte; 1 for types of a byte or more."""
        return max(1, 8 // self.bits)

    def bytes_of(self, count: int) -> int:
        """Bytes of so many elements, the last byte perhaps not full.

        >>> [element.bytes_of(3) for element in ELEMENTS]
        [12, 6, 3, 2]
        """
        return (count * self.bits + 7) // 8


ELEMENTS = (
    ElementType("f32", 32, "FLOAT32", convolutions=True),
    ElementType("f16", 16, "FLOAT16", convolutions=True, widened=True),
    # Symmetric codes: LiteRT's quantisation specification.
    ElementType("int8", 8, "INT8", codes=(-127, 127), convolutions=True),
    # XNNPACK and EMBEDDING_LOOKUP read -8 exactly; it lowers the squared error of blocks of 32 by about a tenth.
    ElementType("int4", 4, "INT4", codes=(-8, 7), block_scales=True),
)
"""From the finest to the coarsest. Read it through the functions below, which a test can give one row more."""


def element_names() -> tuple[ElementName, ...]:
    """All names, from the finest to the coarsest."""
    return tuple(element.name for element in ELEMENTS)


def element_of(name: str) -> ElementType:
    """The row of a name; what comes from a file has been held against `element_names` before.

    >>> element_of("int4").bits
    4
    """
    return next(element for element in ELEMENTS if element.name == name)


def coarsest(names: Iterable[str]) -> ElementName:
    """The name that stands last in the table, of at least one.

    >>> coarsest(["int8", "int4", "f32"])
    'int4'
    """
    used = set(names)
    return [name for name in element_names() if name in used][-1]
