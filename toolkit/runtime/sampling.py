"""Chooses the next token from a row of logits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.bundle.manifest import SamplingRecord
from toolkit.bundle.manifest_values import LEAST_PENALTY, MOST_PENALTY

USUAL_TOP_K, USUAL_TOP_P = 64, 0.95
"""From Gemma's own generation_config.json, for bundles whose checkpoint had none."""

# top_p first looks among this many tokens: sorting the whole vocabulary at each step takes longer.
_NUCLEUS_GUESS = 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """The settings for drawing tokens, applied in the order repeat_penalty, temperature, top_k, top_p, min_p.

    All of them mean the same as in transformers, but for equally likely tokens: of those at the limit of top_k or
    top_p, only the ones with the lowest ids may be drawn; transformers keeps all of them at the limit of top_k.
    """

    temperature: float = 0.0
    """0 means greedy: the most likely token; of equally likely tokens, the one with the lowest id."""
    top_k: int = 0
    """Draw only from the k most likely tokens; 0 for no limit."""
    top_p: float = 1.0
    """Draw only from the fewest most likely tokens whose probabilities add up to this."""
    seed: int = 0
    min_p: float = 0.0
    """Draw only tokens that are at least this many times as likely as the most likely one; 0 for no limit."""
    repeat_penalty: float = 1.0
    """Divide the logits of tokens of the prompt and the answer by this, or multiply those below 0; 1 for none."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError("temperature", found=self.temperature, wanted="a number of 0 or more")
        if self.top_k < 0:
            raise UsageError("top-k", found=self.top_k, wanted="a number of 1 or more, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise UsageError("top-p", found=self.top_p, wanted="a number above 0 and up to 1")
        if self.seed < 0:
            raise UsageError("seed", found=self.seed, wanted="a number of 0 or more")
        if not 0 <= self.min_p <= 1:
            raise UsageError("min-p", found=self.min_p, wanted="a number from 0 to 1")
        if not LEAST_PENALTY <= self.repeat_penalty <= MOST_PENALTY:
            wanted = f"a number from {LEAST_PENALTY:g} to {MOST_PENALTY:g}"
            raise UsageError("repeat-penalty", found=self.repeat_penalty, wanted=wanted)


def choose_sampling(
    stated: SamplingRecord | None,
    *,
    usual_temperature: float,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    min_p: float | None = None,
    repeat_penalty: float | None = None,
) -> Sampling:
    """The settings for one answer: for each value, the given one, else the bundle's, else the usual one.

    Of a bundle whose makers want the likeliest token each time, only the penalty counts.

    >>> choose_sampling(None, usual_temperature=0.0, temperature=None, top_k=8, top_p=None, seed=1)
    Sampling(temperature=0.0, top_k=8, top_p=0.95, seed=1, min_p=0.0, repeat_penalty=1.0)
    """
    drawn = SamplingRecord(usual_temperature, USUAL_TOP_K, USUAL_TOP_P)
    if stated is not None:
        drawn = stated if stated.top_k != 1 else replace(drawn, repeat_penalty=stated.repeat_penalty)
    return Sampling(
        drawn.temperature if temperature is None else temperature,
        drawn.top_k if top_k is None else top_k,
        drawn.top_p if top_p is None else top_p,
        seed,
        drawn.min_p if min_p is None else min_p,
        drawn.repeat_penalty if repeat_penalty is None else repeat_penalty,
    )


class Sampler:
    """Draws tokens; the same settings and the same logits give the same tokens."""

    def __init__(self, settings: Sampling, vocabulary: int) -> None:
        """`vocabulary`: this id and higher ones are never drawn."""
        self.settings = settings
        self.vocabulary = vocabulary
        self.drawn = 0
        """How many tokens were drawn at random so far, here or by another program that shares the sequence."""
        self._generator = np.random.default_rng(settings.seed)

    def draw(self, logits: NDArray[np.float32], seen: Collection[int] = ()) -> int:
        """Draw the next token. EnvironmentFault if the highest logit is not finite.

        `logits`: f32[vocabulary or more]. `seen`: the ids of the prompt and of the answer so far, which the repeat
        penalty makes less likely.
        """
        allowed = logits[: self.vocabulary]
        if self.settings.repeat_penalty != 1:
            allowed = penalised(allowed, seen, self.settings.repeat_penalty)
        best = int(np.argmax(allowed))
        # argmax returns the first NaN, so this check finds any; -inf marks an impossible token.
        if not np.isfinite(allowed[best]):
            raise EnvironmentFault(
                f"logit of token {best}", found=f"{allowed[best]}, not a finite number", remedy="run gemma-edge verify"
            )
        if self.settings.temperature == 0:
            return best
        ids, probabilities = distribution(allowed, self.settings)
        cumulative = np.cumsum(probabilities)
        self.drawn += 1
        drawn = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


def penalised(logits: NDArray[np.float32], seen: Collection[int], penalty: float) -> NDArray[np.float32]:
    """A copy of the logits with those of the ids `seen` divided by `penalty`, or multiplied by it if below 0.

    Source: N. S. Keskar et al., CTRL (2019), section 4.1, as in transformers' RepetitionPenaltyLogitsProcessor. Ids
    without a logit, which are those of images and sounds, are ignored.

    >>> penalised(np.array([2, -2, 2], np.float32), [0, 1, 9], 2.0).tolist()
    [1.0, -4.0, 2.0]
    """
    ids = np.fromiter(seen, np.int64, len(seen))
    ids = ids[ids < len(logits)]
    result = logits.copy()
    before = logits[ids]
    result[ids] = np.where(before < 0, before * np.float32(penalty), before / np.float32(penalty))
    return result


def distribution(logits: NDArray[np.float32], settings: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, and their probabilities, which sum to 1.

    The most likely token comes first; without top_k and top_p, they are in the order of their ids. `logits`:
    f32[vocabulary] with a finite maximum. The temperature must not be 0.
    """
    peak = float(logits.max())

    def weigh(some: NDArray[np.float32]) -> NDArray[np.float64]:
        # With a tiny temperature, everything except the maximum overflows to -inf, which is the right result.
        with np.errstate(over="ignore"):
            return np.exp((some.astype(np.float64) - peak) / settings.temperature)

    if not settings.top_k and settings.top_p == 1:
        # Without a limit, there is no need to sort, which would take longer than a small model's step.
        weights = weigh(logits)
        # The weight of the most likely token is 1.
        ids = np.flatnonzero(weights >= settings.min_p)
        return ids, weights[ids] / weights[ids].sum()
    limit = min(settings.top_k or len(logits), len(logits))
    guessing = limit == len(logits) and settings.top_p < 1
    total = float(weigh(logits).sum()) if guessing else None
    count = min(_NUCLEUS_GUESS, limit) if guessing else limit
    while True:
        ids = _largest(logits, count)
        weights = weigh(logits[ids])
        sums = np.cumsum(weights)
        mass = settings.top_p * (float(sums[-1]) if total is None else total)
        if sums[-1] >= mass or count == limit:
            break
        count = min(count * 8, limit)
    kept = len(ids) if settings.top_p == 1 else int(np.searchsorted(sums, mass, side="left")) + 1
    kept = min(kept, int(np.count_nonzero(weights >= settings.min_p)))
    return ids[:kept], weights[:kept] / weights[:kept].sum()


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """The indices of the `count` largest values, largest first; of equal values, the lower index.

    >>> _largest(np.array([1.0, 3.0, 2.0, 3.0]), 2)
    array([1, 3])
    """
    if count < len(values):
        bound = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= bound)
    else:
        candidates = np.arange(len(values))
    order = np.argsort(-values[candidates], kind="stable")
    return candidates[order][:count]
