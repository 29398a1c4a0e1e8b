"""Alignment at each border, and overlaps of spans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolkit.base.layout import Span, align_up, overlaps, padding


@given(st.integers(0, 2**50), st.sampled_from([1, 16, 64, 4096, 16384]))
def test_align_up_is_the_least_multiple_not_below(offset: int, alignment: int) -> None:
    aligned = align_up(offset, alignment)
    assert aligned % alignment == 0
    assert 0 <= aligned - offset < alignment
    assert padding(offset, alignment) == aligned - offset


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=8))
def test_overlaps_are_found_exactly_when_two_different_ranges_share_a_byte(ranges: list[tuple[int, int]]) -> None:
    spans = [Span(begin, begin + size, str(i)) for i, (begin, size) in enumerate(ranges)]
    shared = any(
        (a.begin, a.end) != (b.begin, b.end) and max(a.begin, b.begin) < min(a.end, b.end) for a in spans for b in spans
    )
    assert bool(overlaps(spans)) == shared
    assert all(max(a.begin, b.begin) < min(a.end, b.end) for a, b in overlaps(spans))


def test_a_span_inside_a_wide_one_is_found_past_a_narrow_neighbour() -> None:
    found = overlaps([Span(0, 100, "wide"), Span(10, 20, "first"), Span(30, 40, "second")])
    assert [(a.name, b.name) for a, b in found] == [("wide", "first"), ("wide", "second")]
