"""The plan of a prefill covers the prompt, fits the context and wastes little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolkit.runtime.prefill import plan_prefill

WIDTHS = st.lists(st.integers(1, 64), max_size=4, unique=True).map(sorted)


@given(st.integers(0, 300), st.integers(0, 100), WIDTHS)
def test_a_plan_covers_the_prompt_within_the_room(tokens: int, spare: int, widths: list[int]) -> None:
    room = tokens + spare
    position = 0
    for width, count in plan_prefill(tokens, widths, room):
        assert width in {1, *widths}
        assert 1 <= count <= width
        assert position + width <= room
        position += count
    assert position == tokens


@given(st.integers(1, 300), WIDTHS)
def test_only_the_last_step_is_padded(tokens: int, widths: list[int]) -> None:
    assert all(width == count for width, count in plan_prefill(tokens, widths, 1000)[:-1])


def test_a_prompt_without_a_signature_that_fits_is_decoded() -> None:
    assert plan_prefill(3, (8,), 7) == [(1, 1)] * 3
    assert plan_prefill(3, (), 7) == [(1, 1)] * 3


def test_padding_is_preferred_to_many_small_steps() -> None:
    assert plan_prefill(100, (8, 128), 4096) == [(128, 100)]
    assert plan_prefill(20, (8, 1024), 4096) == [(8, 8), (8, 8), (8, 4)]
