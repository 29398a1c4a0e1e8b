"""Rounding against inputs changes products less than rounding each weight by itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.base.elements import ELEMENTS
from toolkit.base.errors import CheckpointError
from toolkit.quant.gptq import Inputs, measure_inputs, round_rows
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import block_scale, dequantize_rows, quantize_rows

F32 = NDArray[np.float32]

SCHEMES = [
    Scheme(element.name, block)
    for element in ELEMENTS
    if element.quantised
    for block in (None, *((32, 64) if element.block_scales else ()))
]


def correlated(tokens: int = 600, columns: int = 128) -> F32:
    """Inputs as layers have them: much of their energy in few directions, and columns of different size."""
    random = np.random.default_rng(1)
    few = random.standard_normal((tokens, 12)) @ random.standard_normal((12, columns))
    x = few + 0.5 * random.standard_normal((tokens, columns))
    return (x * np.exp(random.standard_normal(columns))).astype(np.float32)


def weights(rows: int = 48, columns: int = 128) -> F32:
    return (np.random.default_rng(2).standard_normal((rows, columns)) * 0.05).astype(np.float32)


def error(x: F32, w: F32, rounded: F32) -> float:
    return float(np.square(x.astype(np.float64) @ (w - rounded).T).mean())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_change_less_than_with_the_nearest_codes(scheme: Scheme) -> None:
    x, w = correlated(), weights()
    found = round_rows(w, scheme, measure_inputs(x))
    nearest = dequantize_rows(quantize_rows(w, scheme))
    assert error(x, w, dequantize_rows(found)) < 0.5 * error(x, w, nearest)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_and_scales_are_those_that_files_hold(scheme: Scheme) -> None:
    found = round_rows(weights(), scheme, measure_inputs(correlated()))
    low, high = scheme.element.codes or (0, 0)
    assert found.codes.dtype == np.int8 and low <= found.codes.min() and found.codes.max() <= high
    if scheme.block_size is None:
        assert found.scales.dtype == np.float32 and found.scales.shape == (48,)
    else:
        assert found.scales.dtype == np.float16 and found.scales.shape == (48, 128 // scheme.block_size)
        np.testing.assert_array_equal(found.scales, block_scale(found.scales.astype(np.float32)))


def test_inputs_that_know_nothing_of_each_other_leave_each_weight_its_nearest_code() -> None:
    w, scheme = weights(), Scheme("int4")
    found = round_rows(w, scheme, measure_inputs(np.eye(128, dtype=np.float32)))
    np.testing.assert_array_equal(found.codes, np.clip(np.rint(w / found.scales[:, None]), -8, 7))


def test_an_input_that_is_always_zero_keeps_its_weight_near() -> None:
    x, w, scheme = correlated(), weights(), Scheme("int4")
    x[:, 5] = 0
    found = round_rows(w, scheme, measure_inputs(x))
    np.testing.assert_array_equal(found.codes[:, 5], np.clip(np.rint(w[:, 5] / found.scales), -8, 7))


def test_text_without_any_input_is_no_fault() -> None:
    found = round_rows(weights(), Scheme("int4"), measure_inputs(np.zeros((10, 128), np.float32)))
    assert np.abs(dequantize_rows(found) - weights()).max() < 0.05


def test_a_wide_matrix_is_rounded_in_parts_that_still_gain() -> None:
    x, w, scheme = correlated(), weights(), Scheme("int4")
    inputs = measure_inputs(x, largest_part=50)
    assert [(part.start, part.stop) for part in inputs.parts] == [(0, 42), (42, 85), (85, 128)]
    nearest = dequantize_rows(quantize_rows(w, scheme))
    assert error(x, w, dequantize_rows(round_rows(w, scheme, inputs))) < 0.8 * error(x, w, nearest)


def test_the_masses_are_the_mean_squares_of_the_inputs() -> None:
    x = correlated()
    np.testing.assert_allclose(measure_inputs(x).masses, np.square(x).mean(0), rtol=1e-4)


def test_a_weight_that_is_not_finite_is_named() -> None:
    w = weights()
    w[3, 4] = np.nan
    inputs: Inputs = measure_inputs(correlated())
    with pytest.raises(CheckpointError, match="weight w, row 13"):
        round_rows(w, Scheme("int4"), inputs, name="w", first_row=10)
