"""Alignment arithmetic: the only place that rounds offsets. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MATRIX_ALIGNMENT = 64
"""Offsets of weight matrices in a .tflite. LiteRT asks for none; 64 is a cache line, and a vector of AVX-512."""

PAGE_BYTES = 4096
"""Offsets of row tables: the page of Linux on x86-64 and of most Android devices, and the sector of UFS flash."""

SECTION_ALIGNMENT = 16 * 1024
"""Offsets of .litertlm sections: `BLOCK_SIZE` in litert_lm_builder/litertlm_core.py, and Android 15's larger page."""


def align_up(offset: int, alignment: int) -> int:
    """The least multiple of `alignment` that is not below `offset`.

    >>> [align_up(offset, 64) for offset in (0, 1, 63, 64, 65)]
    [0, 64, 64, 64, 128]
    """
    return offset + padding(offset, alignment)


def padding(offset: int, alignment: int) -> int:
    """How many bytes lead from `offset` to the next multiple of `alignment`.

    >>> [padding(offset, 4096) for offset in (0, 1, 4095, 4096, 4097)]
    [0, 4095, 1, 0, 4095]
    """
    assert offset >= 0 and alignment > 0, (offset, alignment)
    return -offset % alignment


def ceil_div(count: int, size: int) -> int:
    """How many pieces of `size` cover `count`.

    >>> [ceil_div(count, 4) for count in (0, 1, 3, 4, 5)]
    [0, 1, 1, 1, 2]
    """
    assert count >= 0 and size > 0, (count, size)
    return -(-count // size)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Bytes [begin, end) of a file, and what lies there."""

    begin: int
    end: int
    name: str


def overlaps(spans: Iterable[Span]) -> list[tuple[Span, Span]]:
    """Pairs of spans that share a byte: each span against the one before it that reaches furthest.

    Empty spans share nothing. Two tensors may share one buffer, so the same range twice is no fault.

    >>> [(a.name, b.name) for a, b in overlaps([Span(0, 4, "a"), Span(4, 8, "b"), Span(7, 9, "c"), Span(7, 9, "d")])]
    [('b', 'c')]
    """
    found: list[tuple[Span, Span]] = []
    unique = {(span.begin, span.end): span for span in sorted(spans, reverse=True) if span.end > span.begin}
    furthest: Span | None = None
    for span in sorted(unique.values()):
        if furthest is not None and span.begin < furthest.end:
            found.append((furthest, span))
        if furthest is None or span.end > furthest.end:
            furthest = span
    return found
