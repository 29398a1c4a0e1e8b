"""Sizes of stored weights, and which weights a scheme fits."""

from __future__ import annotations

import pytest

from toolkit.base.elements import ElementName
from toolkit.base.errors import RecipeError
from toolkit.quant.scheme import Scheme, check_scheme, payload_bytes, scales_bytes


@pytest.mark.parametrize(
    ("scheme", "payload", "scales"),
    [
        (Scheme("f32"), 4 * 6 * 256, 0),
        (Scheme("int8"), 6 * 256, 0),
        (Scheme("int8", 256), 6 * 256, 6 * 2),
        (Scheme("int4"), 6 * 128, 0),
        (Scheme("int4", 32), 6 * 128, 6 * 8 * 2),
        (Scheme("int4", 128), 6 * 128, 6 * 2 * 2),
    ],
    ids=str,
)
def test_bytes_are_exact(scheme: Scheme, payload: int, scales: int) -> None:
    assert payload_bytes((6, 256), scheme) == payload
    assert scales_bytes((6, 256), scheme) == scales


def test_only_rows_with_scales_of_their_own_are_per_channel() -> None:
    assert [s.per_channel for s in (Scheme("int8"), Scheme("int4", 32), Scheme("f32"))] == [True, False, False]


@pytest.mark.parametrize(("dtype", "block"), [("int4", 32), ("int4", 48), ("int8", 96), ("int8", None), ("f32", None)])
def test_blocks_that_divide_the_columns_fit(dtype: ElementName, block: int | None) -> None:
    check_scheme("w", (3, 96), Scheme(dtype, block))


def test_a_block_that_does_not_divide_the_columns_is_refused_with_a_remedy() -> None:
    with pytest.raises(RecipeError, match=r"weight layers\.0\.w as int4 in blocks of 64: found 96 columns.*block_size"):
        check_scheme("layers.0.w", (3, 96), Scheme("int4", 64))


@pytest.mark.parametrize(("shape", "block", "width"), [((4, 63), None, 63), ((4, 63), 9, 9)])
def test_int4_rows_of_odd_width_are_refused(shape: tuple[int, int], block: int | None, width: int) -> None:
    with pytest.raises(RecipeError, match=f"found a width of {width}, wanted a multiple of 2"):
        check_scheme("w", shape, Scheme("int4", block))


@pytest.mark.parametrize("shape", [(64,), (2, 2, 64), ()])
def test_only_matrices_are_quantised(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="a matrix"):
        check_scheme("w", shape, Scheme("int8"))
    check_scheme("w", shape, Scheme("f32"))
