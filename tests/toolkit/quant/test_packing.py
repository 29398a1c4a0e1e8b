"""int4 codes in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.quant.packing import pack_int4, unpack_int4


def test_every_pair_of_codes_packs_low_nibble_first() -> None:
    pairs = np.array([(low, high) for low in range(-8, 8) for high in range(-8, 8)], np.int8)
    assert pack_int4(pairs).tolist() == [(low & 15) | (high & 15) << 4 for low, high in pairs.tolist()]


@given(st.lists(st.tuples(st.integers(-8, 7), st.integers(-8, 7)), max_size=40))
def test_unpacking_gives_the_codes_back(pairs: list[tuple[int, int]]) -> None:
    codes = np.array(pairs, np.int8).reshape(-1)
    assert unpack_int4(pack_int4(codes)).tolist() == codes.tolist()


def test_rows_lie_one_after_another() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    assert pack_int4(codes).tobytes() == b"".join(pack_int4(row).tobytes() for row in codes)


def test_strided_codes_pack_in_logical_order() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    assert pack_int4(codes.T).tobytes() == pack_int4(np.ascontiguousarray(codes.T)).tobytes()


def test_an_odd_number_of_codes_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="size"):
        pack_int4(np.zeros(3, np.int8))
