"""Alignment arithmetic as pure functions: the only place where offsets are rounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MATRIX_ALIGNMENT = 64
"""Alignment of weight matrices in a .tflite. LiteRT needs none; 64 is a cache line and an AVX-512 vector."""

PAGE_BYTES = 4096
"""Alignment of row tables: the page size of Linux on x86-64 and most Android devices, and the sector of UFS flash."""

SECTION_ALIGNMENT = 16 * 1024
"""Alignment of .litertlm sections: `BLOCK_SIZE` in litert_lm_builder/litertlm_core.py; Android 15's large page size."""


def align_up(offset: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is at least `offset`.

    >>> [align_up(offset, 64) for offset in (0, 1, 63, 64, 65)]
    [0, 64, 64, 64, 128]
    """
    return offset + padding(offset, alignment)


def padding(offset: int, alignment: int) -> int:
    """The number of bytes from `offset` to the next multiple of `alignment`; 0 if it is one.

    >>> [padding(offset, 4096) for offset in (0, 1, 4095, 4096, 4097)]
    [0, 4095, 1, 0, 4095]
    """
    assert offset >= 0 and alignment > 0, (offset, alignment)
    return -offset % alignment


def ceil_div(count: int, size: int) -> int:
    """The number of pieces of `size` needed to cover `count`.

    >>> [ceil_div(count, 4) for count in (0, 1, 3, 4, 5)]
    [0, 1, 1, 1, 2]
    """
    assert count >= 0 and size > 0, (count, size)
    return -(-count // size)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The byte range [begin, end) of a file, and the name of its content."""

    begin: int
    end: int
    name: str


def overlaps(spans: Iterable[Span]) -> list[tuple[Span, Span]]:
    """Pairs of spans that overlap; each span is compared with that of the earlier spans which ends last.

    Empty spans never overlap. Equal ranges are allowed, since two tensors may share one buffer.

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
