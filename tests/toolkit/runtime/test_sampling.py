"""Sampling: greedy, temperature, top-k and top-p against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.runtime.sampling import Sampler, Sampling, distribution

LOGITS = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-80, 80, width=32))


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


@given(LOGITS)
def test_temperature_zero_takes_the_lowest_id_among_the_largest(logits: NDArray[np.float32]) -> None:
    token = Sampler(Sampling(), len(logits)).draw(logits)
    assert token == min(np.flatnonzero(logits == logits.max()))


@given(LOGITS, st.floats(0.01, 100))
def test_without_limits_the_distribution_is_the_softmax(logits: NDArray[np.float32], temperature: float) -> None:
    ids, probabilities = distribution(logits, Sampling(temperature=temperature))
    assert sorted(ids) == list(range(len(logits)))
    np.testing.assert_allclose(probabilities, softmax(logits, temperature)[ids], rtol=1e-12, atol=1e-300)


@given(LOGITS, st.integers(1, 250))
def test_top_k_keeps_exactly_the_k_most_likely(logits: NDArray[np.float32], k: int) -> None:
    ids, probabilities = distribution(logits, Sampling(temperature=1, top_k=k))
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert list(ids) == expected
    assert probabilities.sum() == pytest.approx(1)


@given(LOGITS, st.floats(0.01, 0.999), st.integers(0, 50))
def test_top_p_keeps_the_fewest_tokens_that_reach_the_sum(logits: NDArray[np.float32], p: float, k: int) -> None:
    ids, probabilities = distribution(logits, Sampling(temperature=1, top_k=k, top_p=p))
    allowed, base = distribution(logits, Sampling(temperature=1, top_k=k or len(logits)))
    assert list(ids) == list(allowed[: len(ids)])
    assert base[: len(ids)].sum() >= p * (1 - 1e-12)
    assert len(ids) == 1 or base[: len(ids) - 1].sum() < p * (1 + 1e-12)
    assert probabilities.sum() == pytest.approx(1)


def test_a_nucleus_wider_than_the_first_guess_is_found() -> None:
    ids, _ = distribution(np.zeros(20_000, np.float32), Sampling(temperature=1, top_p=0.75))
    assert len(ids) == 15_000


@given(LOGITS, st.integers(0, 2**32))
def test_the_same_seed_draws_the_same_tokens(logits: NDArray[np.float32], seed: int) -> None:
    settings = Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=seed)
    first, second = Sampler(settings, len(logits)), Sampler(settings, len(logits))
    assert [first.draw(logits) for _ in range(5)] == [second.draw(logits) for _ in range(5)]


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1, seed=3), 4)
    counts = np.bincount([sampler.draw(logits) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / 20_000, [0.5, 0.3, 0.15, 0.05], atol=0.015)


@pytest.mark.parametrize("temperature", [0.0, 1e-310, 1.0, 1e6])
def test_ids_outside_the_vocabulary_are_never_drawn(temperature: float) -> None:
    logits = np.array([0, 1, 2, 90, 90], np.float32)
    sampler = Sampler(Sampling(temperature=temperature), 3)
    assert all(sampler.draw(logits) < 3 for _ in range(100))


def test_a_tiny_temperature_is_greedy() -> None:
    assert Sampler(Sampling(temperature=1e-310), 3).draw(np.array([0, 2, 1], np.float32)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(EnvironmentFault, match="logit of token 1"):
        Sampler(Sampling(temperature=temperature), 3).draw(np.array([0, bad, 1], np.float32))


@pytest.mark.parametrize(
    "values", [{"temperature": -1}, {"temperature": np.nan}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"seed": -1}]
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**values)  # type: ignore[arg-type]
