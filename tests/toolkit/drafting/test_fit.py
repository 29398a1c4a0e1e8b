"""A drafter's matrices, on a made-up model whose next state is a known function of token and state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.drafting.examples import Examples
from toolkit.drafting.fit import CHAIN, Drafter, Problem, _Data, _Network, fit
from toolkit.drafting.passages import Passage, repeats

F32 = NDArray[np.float32]
WIDTH, TOKENS = 12, 30


def made_up(passages: int = 60, length: int = 24, *, bend: float = 0.0) -> tuple[Examples, F32, F32]:
    """Examples of a model whose next state is linear in token and state, but for `bend`; its embedding and its output
    matrix."""
    random = np.random.default_rng(0)
    embedding = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    mix: F32 = random.standard_normal((2 * WIDTH, WIDTH)).astype(np.float32) / np.float32(5)
    bent: F32 = random.standard_normal((2 * WIDTH, WIDTH)).astype(np.float32) * np.float32(bend)
    head = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    written = []
    for _ in range(passages):
        state: F32 = random.standard_normal(WIDTH).astype(np.float32)
        ids, states = [int(random.integers(TOKENS))], [state]
        for _ in range(length):
            ids.append(int(np.argmax(head @ states[-1])))
            x = np.concatenate([embedding[ids[-1]], states[-1]])
            states.append(x @ mix + np.abs(x) @ bent)
        written.append(Passage(tuple(ids), 1, 0, np.array(states[:length], np.float32), tuple(ids[1:])))
    return Examples.of(written), embedding, head


def problem(hidden_units: int = 8, epochs: int = 4, *, bend: float = 0.0) -> Problem:
    examples, embedding, head = made_up(bend=bend)
    return Problem(examples, lambda ids: embedding[ids], head, np.arange(TOKENS), hidden_units, epochs)


def guesses(drafter: Drafter, given: Problem, rows: NDArray[np.int64]) -> tuple[F32, NDArray[np.int64]]:
    """The states and tokens that a drafter guesses for examples."""
    examples = given.examples
    states = drafter.states(
        np.concatenate([given.embedding(examples.tokens[rows]), examples.states[examples.at[rows] - 1]], 1)
    )
    return states, drafter.head_ids[np.argmax(states @ drafter.head.T, 1)]


def test_what_can_be_known_is_found() -> None:
    given = problem()
    held = given.examples.judging(1)
    states, tokens = guesses(fit(given), given, held)
    wanted = given.examples.states[given.examples.at[held]]
    assert np.square(states - wanted).mean() < 0.01 * np.square(wanted).mean()
    assert (tokens == given.examples.following[held]).mean() > 0.95


def test_the_same_problem_has_the_same_drafter_with_any_number_of_threads() -> None:
    one, other = fit(problem(), threads=1), fit(problem(), threads=3)
    assert all((getattr(one, name) == getattr(other, name)).all() for name in ("scale", "hidden", "state"))


@pytest.mark.parametrize("passages", [3, 6, 16])
@pytest.mark.parametrize("length", [2, 4, 5])
def test_little_text_is_enough(passages: int, length: int) -> None:
    """No or one chain in a passage, and perhaps no passage that is held out."""
    examples, embedding, head = made_up(passages, length)
    given = Problem(examples, lambda ids: embedding[ids], head, np.arange(TOKENS), 4, 2)
    told: list[tuple[int, int]] = []
    drafter = fit(given, progress=lambda *counts: told.append(counts))
    assert np.isfinite(drafter.hidden).all() and np.isfinite(drafter.state).all()
    assert told == sorted(told) and len({total for _, total in told}) == 1 and told[-1][0] == told[-1][1]


def test_training_has_more_drafts_accepted_than_the_ridge_regression_that_it_begins_at() -> None:
    accepted = []
    for epochs in (0, 60):
        given = problem(64, epochs, bend=0.2)
        held = given.examples.judging(CHAIN)
        drafter, right = fit(given), np.ones(len(held), np.bool_)
        state = given.examples.states[given.examples.at[held] - 1]
        for step in range(CHAIN):  # each from the guess before it
            rows = held + step
            state = drafter.states(np.concatenate([given.embedding(given.examples.tokens[rows]), state], 1))
            right &= np.argmax(state @ drafter.head.T, 1) == given.examples.following[rows]
        accepted.append(right.mean())
    assert accepted[0] + 0.1 < accepted[1]


def chain_losses(network: _Network, data: _Data, rows: NDArray[np.int64]) -> float:
    """The sum of cross-entropies and Huber's losses of the drafts of some chains."""
    total = 0.0
    for step, (_, guess) in enumerate(network.guesses(data, rows)):
        away = np.abs(guess - data.states[data.at[rows + step]]).astype(np.float64)
        total += np.where(away < 1, away**2 / 2, away - 0.5).mean(1).sum()
        logits, classes = guess.astype(np.float64) @ data.head.T, data.classes[rows + step]
        known = np.flatnonzero(classes >= 0)
        total += (np.log(np.exp(logits[known]).sum(1)) - logits[known, classes[known]]).sum()
    return total


def test_the_gradients_are_those_of_the_losses_of_a_chain() -> None:
    """Tokens that the head lacks count only by their states."""
    random = np.random.default_rng(1)
    given = replace(problem(hidden_units=6), head_ids=np.arange(TOKENS) + 5)
    data = _Data.of(given)
    assert 0 < (data.classes < 0).sum() < len(data.classes)
    network = _Network(
        random.standard_normal((6, 2 * WIDTH + 1)).astype(np.float32) / np.float32(4),
        random.standard_normal((WIDTH, 2 * WIDTH + 1 + 6)).astype(np.float32) / np.float32(4),
    )
    rows = given.examples.fitted()[: 20 * 23 : 23]
    found = network.gradients(data, rows, np.float32(0.5))
    for matrix, gradient in zip((network.hidden, network.state), found, strict=True):
        for place in ((0, 0), (3, WIDTH + 2), (5, 2 * WIDTH), (2, matrix.shape[1] - 1)):
            kept, losses = matrix[place], []
            for change in (1e-2, -1e-2):
                matrix[place] = kept + np.float32(change)
                losses.append(chain_losses(network, data, rows))
            matrix[place] = kept
            assert gradient[place] == pytest.approx(0.5 * (losses[0] - losses[1]) / 2e-2, rel=0.02, abs=2e-2)


def test_examples_are_all_tokens_with_states_around_them_and_stay_in_their_passage() -> None:
    states = np.arange(10, dtype=np.float32)[:, None]
    one = Passage((2, 3, 4, 5, 6), 2, 0, states[:4], (7, 4, 5, 6))
    other = Passage((2, 9, 7, 8, 6, 5), 3, 1, states[4:8], (1, 8, 6, 5))
    examples = Examples.of([one, other])
    assert examples.tokens.tolist() == [3, 4, 5, 7, 8, 6] and examples.following.tolist() == [4, 5, 6, 8, 6, 5]
    assert examples.greedy.tolist() == [False, True, True, False, True, True]
    # The state before token 3 of the first passage is that at position 0; the second passage's states begin at 1.
    assert examples.states[examples.at - 1, 0].tolist() == [0, 1, 2, 4, 5, 6]
    assert examples.starts(2).tolist() == [0, 1, 3, 4]


def test_no_passage_is_fitted_to_and_chosen_by_and_judged_by() -> None:
    examples = made_up(passages=20, length=6)[0]
    passages = [
        set(examples.passage[rows].tolist()) for rows in (examples.fitted(), examples.choosing(3), examples.judging(3))
    ]
    assert passages[1:] == [{14, 19}, {4, 9}] and passages[0] == set(range(20)) - {4, 9, 14, 19}
    assert len(examples.judging(1)) - len(examples.judging(3)) == 2 * 2


@pytest.mark.parametrize(("period", "tokens"), [(1, 16), (5, 16), (16, 48)])
def test_a_loop_ends_a_passage(period: int, tokens: int) -> None:
    text = [100, 101, *[i % period for i in range(tokens)]]
    assert repeats(text) and not repeats([*text[:-1], 99])
