"""Fits a drafter: a network with one hidden layer, trained on chains of drafts.

x = scale * [embedding of the last token, state before it], and a drafter guesses the next state as one matrix times
[x, max(hidden @ x, 0)]; the guess's product with the output matrix gives the logits of the next token. What it guesses
is the input of its own next draft. So it is trained on chains: from a token and the model's own state before it three
states are guessed one after another, each from the guess before, and all three should give the model's tokens and be
near its states. Inputs are the tokens that the text has, whatever was guessed; the text is all that the model wrote,
drawn or greedy, but its likeliest tokens are always what is to be guessed.

Training begins at the ridge regression of states on inputs, with a hidden layer that adds nothing yet. Adam (Kingma and
Ba, https://arxiv.org/abs/1412.6980) lowers the cross-entropy of the tokens plus Huber's loss of the states. Of all
epochs, the network whose drafts are accepted most often on other passages is kept.

Each batch is cut into the same shards, whose gradients are added in order, however many threads there are: with
products that use one thread each, the result is the same on the same kind of processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from toolkit.base.blas import single_threaded_blas
from toolkit.drafting.examples import Examples

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

CHAIN = 3
"""The drafts in a row that a drafter is trained on."""
_RIDGE = 1e-2  # relative to the mean square of an input
_LEAST_SCALE = 0.05
"""Inputs below this fraction of the others are scaled up less than to the same mean square."""
_BATCH = 256  # chains
_MOST_STEPS = 8192  # of training, each with a batch: with much text there are fewer epochs
_SHARDS = 4
_LEARNING_RATE = 1.0  # times the number of inputs: a step of Adam changes what a matrix gives by about as much
_BETAS = (0.9, 0.98)  # how much of its running means Adam keeps in a step
_WARM_UP = 100  # steps
_ROWS = 1024  # in a product on one thread
_BAND = 32  # rows of a matrix that a thread changes at a time


@dataclass(frozen=True, slots=True)
class Drafter:
    """The matrices of a drafter; see the module. D is the width of a state, M that of the hidden layer."""

    scale: F32
    """f32[2 D], a factor for each input"""
    hidden: F32
    """f32[M, 2 D + 1], inputs to hidden layer; the last column is the bias"""
    state: F32
    """f32[D, 2 D + M + 1], inputs and hidden layer to next state; the last column is the bias"""
    head: F32
    """f32[K, D]: the rows of the output matrix for the tokens that may be drafted"""
    head_ids: I64
    """i64[K]: the token of each row of `head`"""

    def states(self, inputs: F32) -> F32:
        """The guesses at the next states f32[n, D] from inputs f32[n, 2 D]: embeddings, and states before them."""
        x = inputs * self.scale
        hidden = np.maximum(x @ self.hidden[:, :-1].T + self.hidden[:, -1], 0)
        return np.concatenate([x, hidden], 1) @ self.state[:, :-1].T + self.state[:, -1]


@dataclass(frozen=True, slots=True)
class Problem:
    """What to fit, and to what.

    `embedding`: gives f32[n, D] for i64[n] ids. `head`, `head_ids`: see `Drafter`. `hidden_units`: M. `epochs`: how
    often each chain is trained on, if that is not too often.
    """

    examples: Examples
    embedding: Callable[[I64], F32]
    head: F32
    head_ids: I64
    hidden_units: int
    epochs: int


def fit(
    problem: Problem, *, threads: int = 1, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Drafter:
    """Fit the drafter for a problem; `progress` gets the number of steps done and their total.

    `threads`: how many compute, 4 at most; they do not change the result.
    """
    random = np.random.default_rng(0)
    data = _Data.of(problem)
    examples = problem.examples
    chains, held = np.intersect1d(examples.fitted(), examples.starts(CHAIN)), examples.choosing(CHAIN)
    with single_threaded_blas(), ThreadPoolExecutor(threads, thread_name_prefix="fit") as pool:
        network = _initial(data, problem, random)
        best, most = network.copy(), network.accepted(data, held, pool)
        batches = max(1, round(len(chains) / _BATCH))
        epochs = min(problem.epochs, max(1, _MOST_STEPS // batches)) if len(chains) else 0
        training = _Adam(network, pool, epochs * batches)
        for _ in range(epochs):
            for batch in np.array_split(random.permutation(chains), batches):
                progress(training.done, training.steps)
                training.step(data, batch)
            if (accepted := network.accepted(data, held, pool)) >= most:
                best, most = network.copy(), accepted
        progress(max(1, training.steps), max(1, training.steps))
    return best.drafter(data.scale, problem)


@dataclass(frozen=True, slots=True)
class _Data:
    """The examples, with inputs and states scaled to a mean square of about 1.

    Row r of the examples has the embedding `embeddings[places[r]]`, the state `states[at[r] - 1]` before it and
    `states[at[r]]` after it, and the token of row `classes[r]` of `head` after that, or if the head lacks it -1.
    """

    scale: F32
    embeddings: F32
    places: I64
    states: F32
    at: I64
    head: F32
    """f32[K, D], for scaled states"""
    classes: I64

    @classmethod
    def of(cls, problem: Problem) -> _Data:
        """Scale what a problem has."""
        examples = problem.examples
        used, places, counts = np.unique(examples.tokens, return_inverse=True, return_counts=True)
        embeddings = problem.embedding(used)
        shares = (counts / counts.sum()).astype(np.float32)
        moments = [
            np.einsum("t,td,td->d", shares, embeddings, embeddings),
            np.einsum("td,td->d", examples.states, examples.states) / len(examples.states),
        ]
        scales = [1 / np.maximum(np.sqrt(some), _LEAST_SCALE * np.sqrt(some).mean()) for some in moments]
        of_tokens, of_states = (some.astype(np.float32) for some in scales)
        place = np.full(int(max(problem.head_ids.max(), examples.following.max(initial=0))) + 1, -1)
        place[problem.head_ids] = np.arange(len(problem.head_ids))
        return cls(
            np.concatenate([of_tokens, of_states]),
            embeddings * of_tokens,
            places,
            examples.states * of_states,
            examples.at,
            problem.head / of_states,
            place[examples.following],
        )

    def linear(self, rows: I64) -> F32:
        """The inputs of rows and a 1, f32[n, 2 D + 1]."""
        states = self.states[self.at[rows] - 1]
        return np.concatenate([self.embeddings[self.places[rows]], states, np.ones((len(rows), 1), np.float32)], 1)


@dataclass(frozen=True, slots=True)
class _Network:
    """A drafter's matrices for scaled states. I is 2 D + 1: the inputs, of which the last is 1."""

    hidden: F32
    """f32[M, I]"""
    state: F32
    """f32[D, I + M]"""

    def copy(self) -> _Network:
        """One that does not change with this one."""
        return _Network(self.hidden.copy(), self.state.copy())

    def drafter(self, scale: F32, problem: Problem) -> Drafter:
        """The drafter that computes the same."""
        inputs = self.hidden.shape[1]
        order = [*range(inputs - 1), *range(inputs, self.state.shape[1]), inputs - 1]
        state = self.state[:, order] / scale[-len(self.state) :, None]
        return Drafter(scale, self.hidden, state, problem.head, problem.head_ids)

    def guesses(self, data: _Data, rows: I64) -> Iterator[tuple[F32, F32]]:
        """For each draft of the chains at some rows what `state` multiplies, f32[n, I + M], and the guess f32[n, D]."""
        guess, width, inputs = data.states[data.at[rows] - 1], len(self.state), self.hidden.shape[1]
        for step in range(CHAIN):
            features = np.empty((len(rows), self.state.shape[1]), np.float32)
            features[:, :width] = data.embeddings[data.places[rows + step]]
            features[:, width : 2 * width] = guess
            features[:, 2 * width] = 1
            np.maximum(features[:, :inputs] @ self.hidden.T, 0, out=features[:, inputs:])
            guess = features @ self.state.T
            yield features, guess

    def accepted(self, data: _Data, rows: I64, pool: ThreadPoolExecutor) -> int:
        """How many drafts would be accepted in the steps that begin at some rows."""

        def of_some(start: int) -> int:
            some, total = rows[start : start + _ROWS], 0
            right = np.ones(len(some), np.bool_)
            for step, (_, guess) in enumerate(self.guesses(data, some)):
                right &= np.argmax(guess @ data.head.T, 1) == data.classes[some + step]
                total += int(right.sum())
            return total

        return sum(pool.map(of_some, range(0, len(rows), _ROWS)))

    def gradients(self, data: _Data, rows: I64, weight: np.float32) -> tuple[F32, F32]:
        """The gradients in `hidden` and `state` of the sum of the losses of the chains at some rows, times `weight`."""
        inputs, width = self.hidden.shape[1], len(self.state)
        drafts = list(self.guesses(data, rows))
        of_guesses, of_hidden = (np.empty((CHAIN, len(rows), size), np.float32) for size in (width, len(self.hidden)))
        onwards = np.float32(0)  # the gradient in a guess of the losses of the drafts after it
        for step in reversed(range(CHAIN)):
            features, guess = drafts[step]
            wanted = data.states[data.at[rows + step]]
            slope = np.clip(guess - wanted, -1, 1) / np.float32(width)
            slope += _token_slopes(guess, data.head, data.classes[rows + step])
            slope *= weight
            slope += onwards
            back = slope @ self.state[:, width:]  # in the state before, the 1, and the hidden layer
            np.multiply(back[:, width + 1 :], features[:, inputs:] > 0, out=of_hidden[step])
            onwards = back[:, :width] + of_hidden[step] @ self.hidden[:, width : 2 * width]
            of_guesses[step] = slope
        features = np.concatenate([features for features, _ in drafts])
        return (
            of_hidden.reshape(len(features), len(self.hidden)).T @ features[:, :inputs],
            of_guesses.reshape(len(features), width).T @ features,
        )


def _token_slopes(guesses: F32, head: F32, classes: I64) -> F32:
    """The gradient of the tokens' cross-entropies in the guesses, f32[n, D]; 0 for tokens that the head lacks."""
    known = np.flatnonzero(classes >= 0)
    errors = guesses[known] @ head.T
    errors -= errors.max(1, keepdims=True)
    np.exp(errors, out=errors)
    errors /= errors.sum(1, keepdims=True)
    errors[np.arange(len(known)), classes[known]] -= 1
    slopes = np.zeros_like(guesses)
    slopes[known] = errors @ head
    return slopes


def _initial(data: _Data, problem: Problem, random: np.random.Generator) -> _Network:
    """The ridge regression of states, and a hidden layer with random inputs that nothing reads yet."""
    rows, width = problem.examples.fitted(), data.states.shape[1]
    inputs = 2 * width + 1
    gram, cross = np.zeros((inputs, inputs)), np.zeros((inputs, width))
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        x = data.linear(some)
        gram += x.T @ x
        cross += x.T @ data.states[data.at[some]]
    gram[np.diag_indices(inputs)] += _RIDGE * np.trace(gram) / inputs
    state = np.zeros((width, inputs + problem.hidden_units), np.float32)
    state[:, :inputs] = np.linalg.solve(gram, cross).T
    spread = inputs**-0.5
    return _Network(random.uniform(-spread, spread, (problem.hidden_units, inputs)).astype(np.float32), state)


class _Adam:
    """Steps of Adam, with a learning rate that rises at first and then falls to 0 at the last step."""

    def __init__(self, network: _Network, pool: ThreadPoolExecutor, steps: int) -> None:
        self._network, self._pool = network, pool
        self.steps, self.done = steps, 0
        self._trained = [_Moments.of(matrix) for matrix in (network.hidden, network.state)]

    def step(self, data: _Data, rows: I64) -> None:
        """Change the network by one step, for the chains that begin at some rows."""
        gradients = partial(self._network.gradients, data, weight=np.float32(1 / len(rows)))
        shards = list(self._pool.map(gradients, np.array_split(rows, _SHARDS)))
        rate = _LEARNING_RATE / len(data.scale) * min(1, (self.done + 1) / _WARM_UP) * (1 - self.done / self.steps)
        self.done += 1
        for trained, some in zip(self._trained, zip(*shards, strict=True), strict=True):
            change = partial(trained.step, some, rate, self.done)
            for _ in self._pool.map(change, range(0, len(trained.matrix), _BAND)):
                pass


@dataclass(frozen=True, slots=True)
class _Moments:
    """A matrix, and the running means of its gradients and of their squares."""

    matrix: F32
    mean: F32
    square: F32

    @classmethod
    def of(cls, matrix: F32) -> _Moments:
        """A matrix before its first step."""
        return cls(matrix, np.zeros_like(matrix), np.zeros_like(matrix))

    def step(self, gradients: Sequence[F32], rate: float, step: int, start: int) -> None:
        """Step number `step` of a few rows, from `start` on; the gradient is the sum of `gradients`."""
        some = slice(start, start + _BAND)
        gradient = sum((one[some] for one in gradients[1:]), gradients[0][some])
        for mean, value, kept in zip((self.mean, self.square), (gradient, np.square(gradient)), _BETAS, strict=True):
            mean[some] *= np.float32(kept)
            mean[some] += np.float32(1 - kept) * value
        means, squares = (1 - kept**step for kept in _BETAS)
        size = np.sqrt(self.square[some] / np.float32(squares))
        size += np.float32(1e-8)
        self.matrix[some] -= self.mean[some] / size * np.float32(rate / means)
