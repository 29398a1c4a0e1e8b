"""Codes of less than a byte in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.quant.packing import pack_codes, unpack_codes


def test_every_pair_of_4_bit_codes_packs_low_nibble_first() -> None:
    pairs = np.array([(low, high) for low in range(-8, 8) for high in range(-8, 8)], np.int8)
    assert pack_codes(pairs, 4).tolist() == [(low & 15) | (high & 15) << 4 for low, high in pairs.tolist()]


def test_every_four_2_bit_codes_pack_the_first_in_the_lowest_bits() -> None:
    fours = np.stack(np.meshgrid(*[np.arange(-2, 2, dtype=np.int8)] * 4), -1).reshape(-1, 4)
    wanted = [sum((code & 3) << 2 * i for i, code in enumerate(four)) for four in fours.tolist()]
    assert pack_codes(fours, 2).tolist() == wanted


def test_codes_of_a_byte_are_their_own_bytes() -> None:
    codes = np.arange(-128, 128).astype(np.int8)
    assert pack_codes(codes, 8).tobytes() == codes.tobytes()
    assert unpack_codes(pack_codes(codes, 8), 8).tolist() == codes.tolist()


@given(st.sampled_from([1, 2, 4, 8]), st.lists(st.integers(-128, 127), max_size=10))
def test_unpacking_gives_the_codes_back(bits: int, numbers: list[int]) -> None:
    low = -(1 << (bits - 1))
    codes = np.array([number % (1 << bits) + low for number in numbers for _ in range(8 // bits)], np.int8)
    assert unpack_codes(pack_codes(codes, bits), bits).tolist() == codes.tolist()


def test_rows_lie_one_after_another() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    assert pack_codes(codes, 4).tobytes() == b"".join(pack_codes(row, 4).tobytes() for row in codes)


def test_strided_codes_pack_in_logical_order() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    assert pack_codes(codes.T, 4).tobytes() == pack_codes(np.ascontiguousarray(codes.T), 4).tobytes()


@pytest.mark.parametrize(("count", "bits"), [(3, 4), (6, 2)])
def test_codes_that_leave_a_byte_unfilled_cannot_be_packed(count: int, bits: int) -> None:
    with pytest.raises(ValueError, match="size"):
        pack_codes(np.zeros(count, np.int8), bits)
