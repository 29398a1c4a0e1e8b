"""Fits a drafter: least squares first, then a few steps towards the most likely tokens.

A drafter maps x = scale * [embedding of the last token, state before it] to features [x, max(signs @ x, 0)]. One matrix
maps the features to a guess at the next state, another to a row whose product with the output matrix gives logits.
The first matrix is found by ridge regression. The second begins as the first; the cross-entropy of the tokens is convex
in it, and is lowered by conjugate gradients, preconditioned by both inverse covariances. Each token counts twice there:
after the state that the model had before, and after what the first matrix guesses of that state, because that is what
the drafter has for all drafts of a step but the first. Of all steps, the matrix that predicts most tokens of held-out
passages correctly is kept.
All sums run over blocks of rows in a fixed order. Features, of which there are several times as many as inputs, are
computed a block at a time, as often as they are needed: so memory grows with the inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.drafting.examples import Examples

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

RIDGES = (1e-3, 1e-2, 1e-1)
"""The penalties that are tried, relative to the mean square of a feature."""
_DAMPING = 0.3
_LEAST_SCALE = 0.05
"""Inputs below this fraction of the others are scaled up less than to the same mean square."""
_BLOCK = 1024
_SHORTEST_STEP, _FIRST_STEP = 1e-4, 1e-2


@dataclass(frozen=True, slots=True)
class Drafter:
    """The matrices of a drafter; see the module. D is the hidden size, M the number of random features."""

    scale: F32
    """f32[2 D], a factor for each input"""
    signs: F32
    """f32[M, 2 D], the same magnitude everywhere, with random signs"""
    state: F32
    """f32[D, 2 D + M + 1], features to next state; the last column is the bias"""
    token: F32
    """f32[D, 2 D + M + 1], features to the row that `head` multiplies; the last column is the bias"""
    head: F32
    """f32[K, D]: the rows of the output matrix for the tokens that may be drafted"""
    head_ids: I64
    """i64[K]: the token of each row of `head`"""

    def features(self, inputs: F32) -> F32:
        """The features f32[n, 2 D + M + 1] of inputs f32[n, 2 D]: embeddings, and states before them."""
        x = inputs * self.scale
        return np.concatenate([x, np.maximum(x @ self.signs.T, 0), np.ones((len(x), 1), np.float32)], 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """What to fit, and to what.

    `examples`: of these, every fifth passage is held out. `embedding`: gives f32[n, D] for i64[n] ids. `head`,
    `head_ids`: see `Drafter`. `random_features`: M. `rounds`: the most steps of conjugate gradients.
    """

    examples: Examples
    embedding: Callable[[I64], F32]
    head: F32
    head_ids: I64
    random_features: int
    rounds: int

    def rows(self, *, held_out: bool) -> I64:
        """The indices of the examples of held-out passages, or of the other passages."""
        return np.flatnonzero((self.examples.passage % 5 == 4) == held_out)


def fit(problem: Problem, *, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Drafter:
    """Fit the drafter for a problem; `progress` gets the number of steps done and their total."""
    total = problem.rounds + len(RIDGES) + 1
    drafter = _random(problem)
    some, held = (_Rows.of(problem, drafter, problem.rows(held_out=held_out)) for held_out in (False, True))
    gram, cross = some.inputs.moments(some.states)
    progress(1, total)
    state, inverse = _ridge(gram, cross, held, lambda done: progress(1 + done, total))
    classes, held_classes = (rows.classes(state, problem.head_ids) for rows in (some, held))
    likelihood = _Likelihood(problem.head, classes, held_classes, inverse)
    token = likelihood.improved(state, problem.rounds, lambda done: progress(1 + len(RIDGES) + done, total))
    return Drafter(drafter.scale, drafter.signs, state, token, problem.head, problem.head_ids)


def _ridge(gram: F64, cross: F64, held: _Rows, done: Callable[[int], None]) -> tuple[F32, F32]:
    """Ridge regression from sums over rows, with the penalty that does best on held-out rows.

    Returns the matrix f32[D, F], and the inverse of the penalised second moments f32[F, F].
    """
    found: list[tuple[float, F32, F32]] = []
    for tried, penalty in enumerate(RIDGES):
        inverse = np.linalg.inv(gram + penalty * np.trace(gram) / len(gram) * np.eye(len(gram)))
        matrix = (inverse @ cross).T.astype(np.float32)
        error = float(np.square(held.inputs.products(matrix) - held.states, dtype=np.float64).sum())
        found = [min([*found, (error, matrix, inverse.astype(np.float32))], key=lambda one: one[0])]
        done(tried + 1)
    _, matrix, kept = found[0]
    return matrix, kept


def _random(problem: Problem) -> Drafter:
    """A drafter with the scale that gives each input a mean square of about 1, and with random features."""
    examples, width = problem.examples, problem.head.shape[1]
    used, counts = np.unique(examples.tokens, return_counts=True)
    embeddings = (np.square(problem.embedding(used), dtype=np.float64) * (counts / counts.sum())[:, None]).sum(0)
    states = np.square(examples.states, dtype=np.float64).mean(0)
    scales = [1 / np.maximum(np.sqrt(part), _LEAST_SCALE * np.sqrt(part).mean()) for part in (embeddings, states)]
    signs = np.random.default_rng(0).integers(0, 2, (problem.random_features, 2 * width), np.int8) * 2 - 1
    nothing = np.zeros((width, 0), np.float32)
    return Drafter(
        np.concatenate(scales).astype(np.float32),
        signs.astype(np.float32) * np.float32((2 * width) ** -0.5),
        nothing,
        nothing,
        problem.head,
        problem.head_ids,
    )


def _blocks(rows: int) -> Iterator[slice]:
    yield from (slice(start, start + _BLOCK) for start in range(0, rows, _BLOCK))


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A drafter's inputs f32[n, 2 D], embeddings and states before them; gives their features, F a row."""

    drafter: Drafter
    values: F32

    def features(self, block: slice) -> F32:
        """The features of some rows, f32[rows, F]."""
        return self.drafter.features(self.values[block])

    def products(self, matrix: F32) -> F32:
        """The features times the transpose of a matrix f32[D, F]: f32[n, D]."""
        found = np.empty((len(self.values), len(matrix)), np.float32)
        for block in _blocks(len(found)):
            np.matmul(self.features(block), matrix.T, out=found[block])
        return found

    def moments(self, outputs: F32) -> tuple[F64, F64]:
        """The sums over rows of features times features, and of features times outputs f32[n, D]."""
        size = self.values.shape[1] + len(self.drafter.signs) + 1
        gram, cross = np.zeros((size, size)), np.zeros((size, outputs.shape[1]))
        for block in _blocks(len(outputs)):
            features = self.features(block)
            gram += features.T @ features
            cross += features.T @ outputs[block]
        return gram, cross


@dataclass(frozen=True, slots=True)
class _Rows:
    """Examples: inputs, the states that followed f32[n, D], and the tokens that the model predicted from those i64[n].

    `after`: for each row, whether the row before it is the position before it.
    """

    inputs: _Inputs
    states: F32
    following: I64
    after: NDArray[np.bool_]

    @classmethod
    def of(cls, problem: Problem, drafter: Drafter, rows: I64) -> _Rows:
        """Some examples of a problem, of whole passages."""
        examples = problem.examples
        at = examples.at[rows]
        values = np.concatenate([problem.embedding(examples.tokens[rows]), examples.states[at - 1]], 1)
        after = np.concatenate([[False], at[1:] - 1 == at[:-1]])
        return cls(_Inputs(drafter, values), examples.states[at], examples.following[rows], after)

    def classes(self, state: F32, head_ids: I64) -> _Classes:
        """The examples; then those that are not the first of a passage again, after the state that a matrix guesses.

        Those whose following token the head lacks are left out.
        """
        place = np.full(int(max(head_ids.max(), self.following.max(initial=0))) + 1, -1)
        place[head_ids] = np.arange(len(head_ids))
        found = place[self.following]
        once, again = np.flatnonzero(found >= 0), np.flatnonzero(self.after & (found >= 0))
        values = self.inputs.values
        embeddings, guessed = values[again, : self.states.shape[1]], self.inputs.products(state)[again - 1]
        both = np.concatenate([values[once], np.concatenate([embeddings, guessed], 1)])
        return _Classes(_Inputs(self.inputs.drafter, both), np.concatenate([found[once], found[again]]))


@dataclass(frozen=True, slots=True)
class _Classes:
    """Inputs of n examples, and for each the index in the head of the token that followed, i64[n]."""

    inputs: _Inputs
    indices: I64


@dataclass(frozen=True, slots=True)
class _Likelihood:
    """Raises the likelihood of the tokens that followed under the head's logits.

    `inverse`: the inverse second moments of the features, f32[F, F].
    """

    head: F32
    rows: _Classes
    held: _Classes
    inverse: F32

    def improved(self, matrix: F32, rounds: int, done: Callable[[int], None]) -> F32:
        """Of the matrices f32[D, F] after 0 to `rounds` steps, the one that is right about most held-out tokens."""
        guesses, held = self.rows.inputs.products(matrix), self.held.inputs.products(matrix)
        best, most = matrix, self._right(held)
        curvature: F32 | None = None
        previous: tuple[F32, F32] | None = None
        direction = np.zeros_like(matrix)
        for step in range(rounds):
            gradient, covariance = self._gradient(guesses)
            if curvature is None:
                curvature = np.linalg.inv(covariance).astype(np.float32)
            preconditioned = (curvature @ gradient @ self.inverse).astype(np.float32, copy=False)
            turn = 0.0
            if previous is not None:  # Polak and Ribiere's rule
                change = np.vdot(preconditioned, gradient - previous[0])
                turn = max(0.0, float(change / np.vdot(previous[1], previous[0])))
            previous = gradient, preconditioned
            direction = preconditioned + np.float32(turn) * direction
            moved = self.rows.inputs.products(direction)
            length = np.float32(self._step_length(guesses, moved))
            matrix = matrix + length * direction
            guesses += length * moved
            held += length * self.held.inputs.products(direction)
            right = self._right(held)
            done(step + 1)
            if right > most:
                best, most = matrix, right
            if length == 0:
                break
        done(rounds)
        return best

    def _right(self, held: F32) -> int:
        """How many held-out tokens have the highest logit. (Their loss would stop the search much earlier: it soon
        rises, from overconfidence.)"""
        found = [np.argmax(held[block] @ self.head.T, 1) == self.held.indices[block] for block in _blocks(len(held))]
        return sum(int(some.sum()) for some in found)

    def _loss(self, guesses: F32, classes: I64) -> float:
        """The mean cross-entropy in nats; 0 if there are no rows."""
        total = 0.0
        for block in _blocks(len(classes)):
            logits = guesses[block] @ self.head.T
            logits -= logits.max(1, keepdims=True)
            chosen = logits[np.arange(len(logits)), classes[block]]
            total += float((np.log(np.exp(logits).sum(1)) - chosen).sum(dtype=np.float64))
        return total / max(len(classes), 1)

    def _gradient(self, guesses: F32) -> tuple[F32, F64]:
        """The likelihood's gradient in the matrix, f32[D, F], and the mean covariance of the head's rows, f64[D, D]."""
        head, classes = self.head, self.rows.indices
        width = head.shape[1]
        gradient, covariance = np.zeros((width, len(self.inverse))), np.zeros((width, width))
        for block in _blocks(len(classes)):
            weights = guesses[block] @ head.T
            weights -= weights.max(1, keepdims=True)
            np.exp(weights, out=weights)
            weights /= weights.sum(1, keepdims=True)
            expected = weights @ head
            covariance += (head * weights.sum(0)[:, None]).T @ head - expected.T @ expected
            gradient += (head[classes[block]] - expected).T @ self.rows.inputs.features(block)
        covariance /= max(len(classes), 1)
        covariance[np.diag_indices(width)] += _DAMPING * np.trace(covariance) / width + 1e-12
        return gradient.astype(np.float32), covariance

    def _step_length(self, guesses: F32, moved: F32) -> float:
        """The step length that gives the lowest loss on every fifth row, among doublings; 0 if none lowers it."""
        some = slice(None, None, 5)
        start, way, classes = guesses[some], moved[some], self.rows.indices[some]
        best, least = 0.0, self._loss(start, classes)
        length = _FIRST_STEP
        while length >= _SHORTEST_STEP:
            loss = self._loss(start + np.float32(length) * way, classes)
            if loss < least:
                best, least = length, loss
                length *= 2
            elif best == 0:
                length /= 4
            else:
                break
        return best
