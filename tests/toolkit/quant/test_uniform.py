"""Scales and codes: exact for the stored scale, near the optimum, and defined for every finite weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toolkit.base.elements import ElementName
from toolkit.base.errors import CheckpointError, RecipeError
from toolkit.quant.scheme import Scheme, Search
from toolkit.quant.uniform import QuantizedRows, block_scale, dequantize_rows, quantize_rows

BLOCKS: dict[ElementName, tuple[int | None, ...]] = {
    "int8": (None, 64),
    "int4": (None, 8, 32, 64, 128),
    "int2": (None, 128),
}
SEARCHES: tuple[Search, ...] = ("absmax", "mse")
SCHEMES = [Scheme(dtype, block, search) for dtype, blocks in BLOCKS.items() for block in blocks for search in SEARCHES]
HIGH: dict[ElementName, int] = {"int8": 127, "int4": 7, "int2": 1}
LOW: dict[ElementName, int] = {"int8": -127, "int4": -8, "int2": -2}


def label(scheme: Scheme) -> str:
    return f"{scheme} {scheme.search}"


def random_rows(kind: str, rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    draws = {
        "gaussian": lambda: rng.standard_normal((rows, columns)),
        "laplace": lambda: rng.laplace(size=(rows, columns)),
        "student": lambda: rng.standard_t(3, size=(rows, columns)),
        "positive": lambda: rng.uniform(0.1, 1, (rows, columns)),
    }
    return (draws[kind]() * 0.02).astype(np.float32)


def in_groups(w: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float64]:
    return w.astype(np.float64).reshape(-1, scheme.block_size or w.shape[1])


def block_errors(w: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float64]:
    """Squared error of each group."""
    errors: NDArray[np.float64] = np.square(
        in_groups(dequantize_rows(quantize_rows(w, scheme)), scheme) - in_groups(w, scheme)
    ).sum(1)
    return errors


def expected_codes(w: NDArray[np.float32], quantized: QuantizedRows, scheme: Scheme) -> NDArray[np.int8]:
    """The specification, one group after another."""
    groups = w.reshape(-1, scheme.block_size or w.shape[1])
    scales = quantized.scales.astype(np.float32).reshape(-1)
    codes = [np.rint(group * (np.float32(1) / scale)) for group, scale in zip(groups, scales, strict=True)]
    clipped: NDArray[np.int8] = np.clip(codes, LOW[scheme.dtype], HIGH[scheme.dtype]).astype(np.int8)
    return clipped.reshape(w.shape)


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
@pytest.mark.parametrize("kind", ["gaussian", "student", "positive"])
def test_codes_follow_from_the_stored_scales(scheme: Scheme, kind: str) -> None:
    w = random_rows(kind, 7, 256)
    quantized = quantize_rows(w, scheme)
    assert quantized.codes.dtype == np.int8 and quantized.codes.shape == w.shape
    np.testing.assert_array_equal(quantized.codes, expected_codes(w, quantized, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
def test_scales_have_the_type_and_shape_that_files_hold(scheme: Scheme) -> None:
    scales = quantize_rows(random_rows("gaussian", 7, 256), scheme).scales
    if scheme.block_size is None:
        assert scales.dtype == np.float32 and scales.shape == (7,)
    else:
        assert scales.dtype == np.float16 and scales.shape == (7, 256 // scheme.block_size)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_absmax_maps_the_largest_magnitude_to_the_largest_code(dtype: ElementName) -> None:
    w = np.array([[0.5, -1, 0.25, 0], [3, -2, 1, 0]], np.float32)
    quantized = quantize_rows(w, Scheme(dtype, None, "absmax"))
    np.testing.assert_array_equal(quantized.scales, np.array([1, 3], np.float32) / np.float32(HIGH[dtype]))
    assert np.abs(quantized.codes).max(axis=1).tolist() == [HIGH[dtype]] * 2


@pytest.mark.parametrize("scheme", [Scheme("int8", 64, "absmax"), Scheme("int4", 64, "absmax")], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_plain_block_scale_rounded_down_as_far_as_can_be_wraps_no_code(scheme: Scheme, sign: int) -> None:
    high = 127 if scheme.dtype == "int8" else 7
    w = np.full((1, 64), sign * high * (1 + 2**-8), np.float32)  # a tie, to the even scale 1
    quantized = quantize_rows(w, scheme)
    assert quantized.scales.tolist() == [[1.0]]
    assert (quantized.codes == sign * high).all()


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.search == "mse"], ids=label)
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student", "positive"])
def test_the_search_is_never_worse_than_absmax_in_any_group(scheme: Scheme, kind: str) -> None:
    w = random_rows(kind, 64, 512, seed=1)
    plain = block_errors(w, Scheme(scheme.dtype, scheme.block_size, "absmax"))
    assert (block_errors(w, scheme) <= plain * 1.0001).all()


@pytest.mark.parametrize(
    ("block", "gain"), [(32, 0.80), (64, 0.79), (128, 0.75), (None, 0.52)], ids=["32", "64", "128", "row"]
)
def test_the_int4_search_lowers_the_error_of_gaussian_weights(block: int | None, gain: float) -> None:
    w = random_rows("gaussian", 32, 2048, seed=2)
    plain = block_errors(w, Scheme("int4", block, "absmax")).sum()
    assert block_errors(w, Scheme("int4", block)).sum() < gain * plain


def exhaustive_errors(groups: NDArray[np.float64], dtype: ElementName) -> NDArray[np.float64]:
    """The least squared error of each group over 400 scales, each refitted to its codes."""
    low, high = LOW[dtype], HIGH[dtype]
    unclipped = np.maximum(groups.max(1) / high, groups.min(1) / low)
    best = np.full(len(groups), np.inf)
    for ratio in np.geomspace(0.8, 30, 400):
        codes = np.clip(np.rint(groups * (ratio / unclipped)[:, None]), low, high)
        scale = (groups * codes).sum(1) / np.maximum((codes * codes).sum(1), 1)
        codes = np.clip(np.rint(groups / scale[:, None]), low, high)
        best = np.minimum(best, np.square(groups - codes * scale[:, None]).sum(1))
    return best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "excess"),
    [
        *((Scheme("int4", block), 1.01) for block in (32, 64, 128, 256)),
        (Scheme("int4"), 1.03),
        (Scheme("int2", 256), 1.03),
        (Scheme("int2"), 1.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student"])
def test_the_search_comes_close_to_an_exhaustive_one(kind: str, scheme: Scheme, excess: float) -> None:
    w = random_rows(kind, 16, 2048, seed=3)
    assert block_errors(w, scheme).sum() < excess * exhaustive_errors(in_groups(w, scheme), scheme.dtype).sum()


def test_block_scales_are_the_same_number_in_bfloat16() -> None:
    scales = quantize_rows(random_rows("gaussian", 16, 512), Scheme("int4", 32)).scales.astype(np.float32)
    assert not (scales.view(np.uint32) & 0xFFFF).any()


@given(st.floats(2**-14, 65280, width=32))
def test_a_block_scale_is_the_nearest_one_of_eight_bits(scale: float) -> None:
    mantissa, exponent = np.frexp(scale)
    nearest = float(np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8))
    got = float(block_scale(np.array([scale], np.float32))[0])
    assert abs(got - scale) == pytest.approx(abs(nearest - scale), abs=0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
@pytest.mark.parametrize("fill", [0.0, 1e-45, 1e-38, 3e-12])
def test_tiny_weights_get_positive_normal_scales(scheme: Scheme, fill: float) -> None:
    w = np.zeros((2, 128), np.float32)
    w[1] = fill
    quantized = quantize_rows(w, scheme)
    least = np.float32(2.0**-126) if scheme.block_size is None else np.float16(2.0**-14)
    assert (quantized.scales >= least).all() and np.isfinite(quantized.scales).all()
    assert not quantized.codes[0].any()
    assert (np.abs(dequantize_rows(quantized) - w) <= quantized.scales.max() / 2).all()


@pytest.mark.parametrize("search", ["absmax", "mse"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_huge_weights_have_a_scale(dtype: ElementName, search: Search) -> None:
    w = np.array([[8e37, -8e37, 1e37, 0]], np.float32)
    quantized = quantize_rows(w, Scheme(dtype, None, search))
    assert np.abs(dequantize_rows(quantized).astype(np.float64) - w).max() <= quantized.scales[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
def test_a_weight_that_is_not_finite_is_named_with_its_row(scheme: Scheme, bad: float) -> None:
    w = random_rows("gaussian", 5, 128)
    w[3, 100] = bad
    with pytest.raises(CheckpointError, match=r"weight layers\.0\.w, row 13: (nan|inf), not a finite number"):
        quantize_rows(w, scheme, name="layers.0.w", first_row=10)


def test_a_weight_too_large_for_its_scale_is_refused_with_a_remedy() -> None:
    w = np.ones((2, 64), np.float32)
    w[1, 40] = 7 * 65281
    with pytest.raises(RecipeError, match=r"weight w, row 1: found 456967, .*keep this weight f32"):
        quantize_rows(w, Scheme("int4", 32), name="w")
    with pytest.raises(RecipeError, match=r"weight w, row 0: found 3e\+38, .*keep this weight f32"):
        quantize_rows(np.full((1, 8), -3e38, np.float32), Scheme("int8"), name="w")
    w[1, 40] = 7 * 65280
    assert quantize_rows(w, Scheme("int4", 32)).codes.max() == 7


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
def test_a_row_does_not_depend_on_its_neighbours(scheme: Scheme) -> None:
    width = scheme.block_size or 512
    w = random_rows("gaussian", 1 + (1 << 18) // width, width, seed=4)  # one group more than a tile
    together = quantize_rows(w, scheme)
    for row in (0, len(w) // 2, len(w) - 1):
        alone = quantize_rows(w[row : row + 1], scheme)
        np.testing.assert_array_equal(together.codes[row], alone.codes[0])
        np.testing.assert_array_equal(together.scales[row], alone.scales[0])


def test_weights_are_not_written_to() -> None:
    w = random_rows("gaussian", 4, 128)
    w.setflags(write=False)
    for scheme in SCHEMES:
        quantize_rows(w, scheme)


def test_strided_and_empty_rows_are_fine() -> None:
    w = random_rows("gaussian", 128, 6).T
    for scheme in SCHEMES:
        np.testing.assert_array_equal(quantize_rows(w, scheme).codes, quantize_rows(w.copy(), scheme).codes)
        assert quantize_rows(w[:0], scheme).codes.shape == (0, 128)


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    rows = draw(st.integers(1, 4))
    values = st.floats(-1, 1, width=32) | st.sampled_from([0.0, 1.0, -1.0, 2.0**-20])
    flat = draw(st.lists(values, min_size=rows * 32, max_size=rows * 32))
    exponent = draw(st.sampled_from([-40, -10, 0, 12]))
    return np.ldexp(np.array(flat, np.float32).reshape(rows, 32), exponent)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from([Scheme(dtype, block) for dtype in BLOCKS for block in (None, 32, 8)]))
def test_weights_inside_the_range_are_off_by_half_a_scale_at_most(w: NDArray[np.float32], scheme: Scheme) -> None:
    quantized = quantize_rows(w, scheme)
    scales = quantized.scales.astype(np.float64).reshape(len(w), -1)
    scale = np.repeat(scales, 32 // scales.shape[1], axis=1)
    inside = (w <= (HIGH[scheme.dtype] + 0.5) * scale) & (w >= (LOW[scheme.dtype] - 0.5) * scale)
    error = np.abs(dequantize_rows(quantized).astype(np.float64) - w)
    assert (error[inside] <= 0.5001 * scale[inside]).all()
    plain = block_errors(w, Scheme(scheme.dtype, scheme.block_size, "absmax"))
    rounding = 1e-6 * np.square(in_groups(w, scheme)).sum(1)  # of the sums that the search compares
    assert (block_errors(w, scheme) <= plain * 1.0001 + rounding).all()
