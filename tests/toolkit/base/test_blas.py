"""The BLAS is named, and its threads are one only for a while."""

from __future__ import annotations

import numpy as np

from toolkit.base.blas import _openblas, blas_name, single_threaded_blas


def test_the_name_has_a_library_and_a_version() -> None:
    assert len(blas_name().split()) >= 2


def test_products_of_several_shapes_have_the_same_bits_as_in_bands() -> None:
    random = np.random.default_rng(0)
    x, w = (random.standard_normal((n, 300)).astype(np.float32) for n in (257, 64))
    with single_threaded_blas():
        whole = x @ w.T
        again = x @ w.T
    np.testing.assert_array_equal(whole, again)


def test_the_number_of_threads_is_given_back() -> None:
    library = _openblas()
    if library is None:
        return  # another BLAS, which is left as it is
    threads = library.function("get_num_threads")
    before = threads()
    with single_threaded_blas():
        assert threads() == 1
    assert threads() == before
