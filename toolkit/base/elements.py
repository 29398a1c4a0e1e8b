"""The table of element types that weights can be stored in; all facts about them are here.

To add a type, add a row here and its name to `ElementName`. A quantised type also needs the scales that the search
tries (`toolkit/quant/uniform.py`) and the quality bounds for its bundles (`converters/thresholds.py`,
`converters/verify_towers.py`). Tests check that both cover every row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ElementName = Literal["f32", "f16", "int8", "int4", "int2"]
"""The names that recipes and manifests use."""


@dataclass(frozen=True, slots=True)
class ElementType:
    """How one number of a weight is stored.

    `codes`: the smallest and the largest integer code of a quantised type; None for a float type.
    `tensor_type`: the type's name in LiteRT's schema.
    """

    name: ElementName
    bits: int
    tensor_type: str
    codes: tuple[int, int] | None = None
    block_scales: bool = False
    """Whether LiteRT supports one scale for each block of columns, and not only one for each row."""
    convolutions: bool = False
    """Whether LiteRT runs convolutions with kernels of this type."""
    widened: bool = False
    """Whether the graph must first convert the whole weight to float32, because LiteRT cannot compute with the type."""

    @property
    def quantised(self) -> bool:
        """Whether values are stored as integer codes with scales."""
        return self.codes is not None

    @property
    def per_byte(self) -> int:
        """How many elements share one byte; 1 for types of a byte or more."""
        return max(1, 8 // self.bits)

    def bytes_of(self, count: int) -> int:
        """Bytes of `count` elements, rounded up to whole bytes.

        >>> [element.bytes_of(3) for element in ELEMENTS]
        [12, 6, 3, 2, 1]
        """
        return (count * self.bits + 7) // 8


ELEMENTS = (
    ElementType("f32", 32, "FLOAT32", convolutions=True),
    ElementType("f16", 16, "FLOAT16", convolutions=True, widened=True),
    # Symmetric codes: LiteRT's quantisation specification.
    ElementType("int8", 8, "INT8", codes=(-127, 127), convolutions=True),
    # XNNPACK and EMBEDDING_LOOKUP read -8 exactly; using it lowers the squared error of blocks of 32 by about a tenth.
    ElementType("int4", 4, "INT4", codes=(-8, 7), block_scales=True),
    ElementType("int2", 2, "INT2", codes=(-2, 1)),
)
"""All types, from the most to the least precise. Read it through the functions below, so that a test can add a row."""


def element_names() -> tuple[ElementName, ...]:
    """All names, from the most to the least precise type."""
    return tuple(element.name for element in ELEMENTS)


def element_of(name: str) -> ElementType:
    """The row with this name; check names from files against `element_names` first.

    >>> element_of("int4").bits
    4
    """
    return next(element for element in ELEMENTS if element.name == name)


def coarsest(names: Iterable[str]) -> ElementName:
    """The least precise of one or more types, which is the last of them in the table.

    >>> coarsest(["int8", "int4", "f32"])
    'int4'
    """
    used = set(names)
    return [name for name in element_names() if name in used][-1]
