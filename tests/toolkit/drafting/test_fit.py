"""A drafter's matrices, on a made-up model whose next state is a known function of token and state."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.drafting.examples import Examples
from toolkit.drafting.fit import Drafter, Problem, _Classes, _Inputs, _Likelihood, _random, _Rows, fit
from toolkit.drafting.passages import Passage, repeats

F32 = NDArray[np.float32]
WIDTH, TOKENS = 12, 30


def made_up(passages: int = 60, length: int = 24, seed: int = 0) -> tuple[Examples, F32, F32]:
    """Examples of a model whose next state is linear in token and state; its embedding and its output matrix."""
    random = np.random.default_rng(seed)
    embedding = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    mix: F32 = random.standard_normal((2 * WIDTH, WIDTH)).astype(np.float32) / np.float32(5)
    head = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    written = []
    for _ in range(passages):
        state: F32 = random.standard_normal(WIDTH).astype(np.float32)
        ids, states = [int(random.integers(TOKENS))], [state]
        for _ in range(length):
            ids.append(int(np.argmax(head @ states[-1])))
            state = np.concatenate([embedding[ids[-1]], state]) @ mix
            states.append(state)
        written.append(Passage(tuple(ids), 1, 0, np.array(states[:length], np.float32)))
    return Examples.of(written), embedding, head


def problem(random_features: int = 8, rounds: int = 4) -> Problem:
    examples, embedding, head = made_up()
    return Problem(examples, lambda ids: embedding[ids], head, np.arange(TOKENS), random_features, rounds)


def guesses(drafter: Drafter, given: Problem, rows: NDArray[np.int64]) -> tuple[F32, NDArray[np.int64]]:
    """The states and tokens that a drafter guesses for examples."""
    examples = given.examples
    joined = [given.embedding(examples.tokens[rows]), examples.states[examples.at[rows] - 1]]
    x = drafter.features(np.concatenate(joined, 1))
    return x @ drafter.state.T, drafter.head_ids[np.argmax(x @ drafter.token.T @ drafter.head.T, 1)]


def test_what_can_be_known_is_found() -> None:
    given = problem()
    held = given.rows(held_out=True)
    states, tokens = guesses(fit(given), given, held)
    wanted = given.examples.states[given.examples.at[held]]
    assert np.square(states - wanted).mean() < 0.01 * np.square(wanted).mean()
    assert (tokens == given.examples.following[held]).mean() > 0.95


def test_the_same_problem_has_the_same_drafter() -> None:
    one, other = fit(problem()), fit(problem())
    assert all((getattr(one, name) == getattr(other, name)).all() for name in ("scale", "signs", "state", "token"))


def test_further_rounds_are_right_about_more_held_out_tokens() -> None:
    given, right = problem(), []
    drafter = _random(given)
    rows, held = (_Rows.of(given, drafter, given.rows(held_out=held)) for held in (False, True))
    gram, _ = rows.inputs.moments(rows.states)
    inverse = np.linalg.inv(gram + np.eye(len(gram))).astype(np.float32)
    nothing = np.zeros((WIDTH, len(gram)), np.float32)
    for rounds in (0, 1, 6):
        classes, held_classes = (some.classes(nothing, given.head_ids) for some in (rows, held))
        judge = _Likelihood(given.head, classes, held_classes, inverse)
        found = judge.improved(nothing, rounds, lambda _: None)
        right.append(judge._right(judge.held.inputs.products(found)))
    assert right[0] < right[1] < right[2]


def test_the_gradient_is_that_of_the_loss() -> None:
    random = np.random.default_rng(1)
    head = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    given = problem(random_features=4)
    inputs = _Inputs(_random(given), random.standard_normal((40, 2 * WIDTH)).astype(np.float32))
    rows, features = _Classes(inputs, random.integers(0, TOKENS, 40)), 2 * WIDTH + 4 + 1
    judge = _Likelihood(head, rows, rows, np.eye(features, dtype=np.float32))
    matrix: F32 = random.standard_normal((WIDTH, features)).astype(np.float32) / np.float32(4)
    gradient, covariance = judge._gradient(inputs.products(matrix))
    for place in ((0, 0), (3, 4), (11, 2), (5, features - 2)):
        step = np.zeros_like(matrix)
        step[place] = 1e-2
        up, down = (judge._loss(inputs.products(matrix + np.float32(sign) * step), rows.indices) for sign in (1, -1))
        assert -gradient[place] / len(rows.indices) == pytest.approx((up - down) / 2e-2, abs=2e-3)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_tokens_are_fitted_to_after_states_that_are_known_and_after_states_that_are_guessed() -> None:
    """But not tokens that the head lacks."""
    given = problem()
    lacking = int(given.examples.following[3])
    rows = _Rows.of(given, _random(given), np.arange(48))
    state = np.random.default_rng(2).standard_normal((WIDTH, 2 * WIDTH + 9)).astype(np.float32)
    head_ids = np.delete(np.arange(TOKENS), lacking)
    found = rows.classes(state, head_ids)
    known = np.flatnonzero(rows.following != lacking)
    same = np.diff(given.examples.passage[:48], prepend=-1) == 0  # the first row of a passage has no guess before it
    again = known[same[known]]
    assert len(known) < 48 and len(again) < len(known)
    assert (head_ids[found.indices] == rows.following[[*known, *again]]).all()
    assert (found.inputs.values[: len(known)] == rows.inputs.values[known]).all()
    guessed = found.inputs.values[len(known) :]
    assert (guessed[:, :WIDTH] == rows.inputs.values[again, :WIDTH]).all()
    features = rows.inputs.drafter.features(rows.inputs.values[again - 1])
    assert guessed[:, WIDTH:] == pytest.approx(features @ state.T, abs=1e-4)


def test_examples_begin_where_the_text_becomes_greedy_and_stay_in_their_passage() -> None:
    states = np.arange(10, dtype=np.float32)[:, None]
    one = Passage((2, 3, 4, 5, 6), 2, 0, states[:4])
    other = Passage((2, 9, 7, 8, 6, 5), 3, 1, states[4:8])
    examples = Examples.of([one, other])
    assert examples.tokens.tolist() == [4, 5, 8, 6] and examples.following.tolist() == [5, 6, 6, 5]
    # The state before token 4 of the first passage is that at position 1; the second passage's states begin at 1.
    assert examples.states[examples.at - 1, 0].tolist() == [1, 2, 5, 6]
    assert examples.starts(2).tolist() == [0, 2]


@pytest.mark.parametrize(("period", "tokens"), [(1, 16), (5, 16), (16, 48)])
def test_a_loop_ends_a_passage(period: int, tokens: int) -> None:
    text = [100, 101, *[i % period for i in range(tokens)]]
    assert repeats(text) and not repeats([*text[:-1], 99])
