"""Sampling: greedy, temperature, top-k and top-p against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.runtime.sampling import Sampler, Sampling, distribution, penalised

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


@given(LOGITS, st.floats(0, 1), st.sampled_from([(0, 1.0), (0, 0.9), (20, 1.0), (20, 0.9)]))
def test_min_p_removes_what_is_less_likely_than_that_share_of_the_most_likely(
    logits: NDArray[np.float32], min_p: float, limits: tuple[int, float]
) -> None:
    ids, before = distribution(logits, Sampling(1.0, *limits))
    kept, probabilities = distribution(logits, Sampling(1.0, *limits, min_p=min_p))
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    assert list(kept) == [token for token in ids if weights[token] >= min_p]
    np.testing.assert_allclose(probabilities, before[np.isin(ids, kept)] / before[np.isin(ids, kept)].sum())


@pytest.mark.reference
@pytest.mark.parametrize("limits", [{}, {"top_k": 40}, {"top_p": 0.9}, {"top_k": 40, "top_p": 0.9}])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_all_settings_together_give_the_distribution_of_transformers(
    limits: dict[str, float], min_p: float, penalty: float
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    processors = transformers.generation.logits_process
    random = np.random.default_rng(5)
    logits = random.normal(0, 3, 500).astype(np.float32)
    seen = random.integers(0, 500, 60).tolist()
    scores = torch.tensor(logits[None])
    steps = [processors.RepetitionPenaltyLogitsProcessor(penalty), processors.TemperatureLogitsWarper(0.7)]
    steps += [processors.TopKLogitsWarper(int(limits["top_k"]))] if "top_k" in limits else []
    steps += [processors.TopPLogitsWarper(limits["top_p"])] if "top_p" in limits else []
    for step in [*steps, processors.MinPLogitsWarper(min_p)]:
        scores = step(torch.tensor([seen]), scores)
    expected = torch.softmax(scores[0], -1).numpy()

    settings = Sampling(0.7, **limits, min_p=min_p, repeat_penalty=penalty)  # type: ignore[arg-type]
    ids, probabilities = distribution(penalised(logits, seen, penalty), settings)
    assert set(ids) == set(np.flatnonzero(expected))
    np.testing.assert_allclose(probabilities, expected[ids], rtol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("penalty", [1.2, 0.7])
def test_a_repeat_penalty_changes_the_bits_that_transformers_changes(penalty: float) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    process = transformers.generation.logits_process.RepetitionPenaltyLogitsProcessor(penalty)
    logits = np.random.default_rng(6).normal(0, 3, 300).astype(np.float32)
    seen = [0, 7, 7, 150, 299]
    expected = process(torch.tensor([seen]), torch.tensor(logits[None]))[0].numpy()
    assert (penalised(logits, seen, penalty) == expected).all()


def test_a_repeat_penalty_counts_without_a_temperature_and_passes_over_ids_without_logits() -> None:
    sampler = Sampler(Sampling(repeat_penalty=2), 3)
    assert sampler.draw(np.array([1, 3, 2, 9], np.float32), {1, 3, 70}) == 2


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
    "values",
    [
        {"temperature": -1},
        {"temperature": np.nan},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"seed": -1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": np.nan},
        {"repeat_penalty": 0},
        {"repeat_penalty": np.inf},
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**values)  # type: ignore[arg-type]
