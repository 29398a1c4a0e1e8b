"""A drafter's matrices, on a made-up model whose next state is a known function of token and state."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.drafting.examples import Examples
from toolkit.drafting.fit import Drafter, Problem, _inputs, _Likelihood, _Rows, fit
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
    x = drafter.features(given.embedding(examples.tokens[rows]), examples.states[examples.at[rows] - 1])
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
    for rounds in (0, 1, 6):
        parts = [given.rows(held_out=held) for held in (False, True)]
        inputs = [_inputs(given, fit(given), part) for part in parts]
        rows, held = (
            _Rows.of(x, given.examples.following[part], given.head_ids) for x, part in zip(inputs, parts, strict=True)
        )
        inverse = np.linalg.inv(rows.inputs.T @ rows.inputs + np.eye(rows.inputs.shape[1], dtype=np.float32))
        judge = _Likelihood(given.head, rows, held, inverse)
        found = judge.improved(np.zeros((WIDTH, len(inverse)), np.float32), rounds, lambda _: None)
        right.append(judge._right(held.products(found)))
    assert right[0] < right[1] < right[2]


def test_the_gradient_is_that_of_the_loss() -> None:
    random = np.random.default_rng(1)
    head = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    rows = _Rows(random.standard_normal((40, 5)).astype(np.float32), random.integers(0, TOKENS, 40))
    judge = _Likelihood(head, rows, rows, np.eye(5, dtype=np.float32))
    matrix: F32 = random.standard_normal((WIDTH, 5)).astype(np.float32) / np.float32(4)
    gradient, covariance = judge._gradient(rows.products(matrix))
    for place in ((0, 0), (3, 4), (11, 2)):
        step = np.zeros_like(matrix)
        step[place] = 1e-2
        up, down = (judge._loss(rows.products(matrix + np.float32(sign) * step), rows.classes) for sign in (1, -1))
        assert -gradient[place] / len(rows.classes) == pytest.approx((up - down) / 2e-2, abs=2e-3)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_tokens_that_the_head_lacks_are_not_fitted_to() -> None:
    rows = _Rows.of(np.eye(3, dtype=np.float32), np.array([7, 5, 9]), np.array([5, 9]))
    assert rows.classes.tolist() == [0, 1] and (rows.inputs == np.eye(3)[1:]).all()


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
