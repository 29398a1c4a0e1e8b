"""Rounded rows are kept whole or not at all, and are read across bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.uniform import QuantizedRows


def rows(first: int, count: int) -> QuantizedRows:
    codes = np.arange(first * 4, (first + count) * 4, dtype=np.int64).reshape(count, 4)
    return QuantizedRows(codes.astype(np.int8), np.arange(first, first + count, dtype=np.float32))


def test_rows_are_read_across_bands_and_after_a_restart(tmp_path: Path) -> None:
    kept = RoundedWeights(tmp_path)
    kept.save("layers.1.q.weight", 10, rows(10, 5))
    kept.save("layers.1.q.weight", 0, rows(0, 10))
    for found in (kept, RoundedWeights(tmp_path)):
        assert "layers.1.q.weight" in found and "layers.1.q" not in found
        assert found.has("layers.1.q.weight", 10, 5) and not found.has("layers.1.q.weight", 10, 4)
        part = found.rows("layers.1.q.weight", 8, 12)
        np.testing.assert_array_equal(part.codes, rows(8, 4).codes)
        np.testing.assert_array_equal(part.scales, rows(8, 4).scales)


@pytest.mark.parametrize("left", [0, 5, 100, 130])
def test_a_band_that_is_not_whole_is_not_there(tmp_path: Path, left: int) -> None:
    RoundedWeights(tmp_path).save("w", 0, rows(0, 3))
    (band,) = tmp_path.iterdir()
    band.write_bytes(band.read_bytes()[:left])
    found = RoundedWeights(tmp_path)
    assert "w" not in found and list(tmp_path.iterdir()) == []
    found.save("w", 0, rows(0, 3))
    np.testing.assert_array_equal(RoundedWeights(tmp_path).rows("w", 0, 3).scales, rows(0, 3).scales)
