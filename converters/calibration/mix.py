"""Chooses a type for each matrix, so that a token reads few bytes and the predictions diverge little.

To first order, the divergences that independent errors cause add up. So matrices are moved to coarser types one at a
time until the budget is met, always the one that saves its bytes for the least divergence. Only the types on the lower
convex hull of a matrix's bytes and divergences are considered: one above it is never worth its bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.base.errors import UsageError
from toolkit.quant.scheme import Scheme


@dataclass(frozen=True, slots=True)
class MixBudget:
    """A limit for a mix of types: bytes of weights that a token reads, or the mean KL divergence in nats."""

    amount: float
    unit: Literal["bytes", "nats"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to store a weight; `divergence` is what it adds to that of the model, in nats."""

    weight: str
    scheme: Scheme
    bytes: int
    divergence: float


@dataclass(frozen=True, slots=True)
class Mix:
    """A choice for each weight, the bytes that a token reads in all, and the divergence that is expected in all."""

    schemes: Mapping[str, Scheme]
    bytes: int
    divergence: float


class _Step:
    """A move of a weight to its next coarser type."""

    __slots__ = ("after", "before", "number")

    def __init__(self, before: Candidate, after: Candidate, number: int) -> None:
        self.before, self.after, self.number = before, after, number

    @property
    def saved(self) -> int:
        return self.before.bytes - self.after.bytes

    @property
    def added(self) -> float:
        return self.after.divergence - self.before.divergence

    @property
    def rank(self) -> tuple[float, str, int]:
        """The cheapest first; of a weight's own steps, which get dearer, the first one first."""
        return self.added / self.saved, self.after.weight, self.number


def choose_mix(candidates: Sequence[Candidate], budget: MixBudget, *, other_bytes: int = 0, floor: float = 0.0) -> Mix:
    """The mix within a budget: of least divergence within bytes, or of fewest bytes within a divergence.

    other_bytes: what a token reads of other weights. floor: the divergence that remains whatever types are chosen. The
    same candidates, in any order, give the same mix. UsageError, saying what can be reached, for a budget that nothing
    fits.

    >>> types = [Candidate("a", Scheme("int8"), 8, 0.0), Candidate("a", Scheme("int4"), 4, 0.1)]
    >>> choose_mix(types, MixBudget(5, "bytes")).schemes["a"].dtype
    'int4'
    >>> choose_mix(types, MixBudget(0.05, "nats")).bytes
    8
    """
    hulls = {
        weight: _hull(list(options))
        for weight, options in itertools.groupby(sorted(candidates, key=_place), key=lambda item: item.weight)
    }
    chosen = {weight: hull[0] for weight, hull in hulls.items()}
    steps = sorted(
        (
            _Step(before, after, number)
            for hull in hulls.values()
            for number, (before, after) in enumerate(_pairs(hull))
        ),
        key=lambda step: step.rank,
    )
    total = other_bytes + sum(item.bytes for item in chosen.values())
    added = floor + sum(item.divergence for item in chosen.values())
    if budget.unit == "bytes":
        _require_reachable(budget, total - sum(step.saved for step in steps), "bytes with every matrix in its coarsest")
        _within_bytes(chosen, steps, total - budget.amount)
    else:
        _require_reachable(budget, added, "nats with every matrix in its finest")
        _within_divergence(chosen, steps, budget.amount - added)
    return Mix(
        {weight: item.scheme for weight, item in chosen.items()},
        other_bytes + sum(item.bytes for item in chosen.values()),
        floor + sum(item.divergence for item in chosen.values()),
    )


def _require_reachable(budget: MixBudget, least: float, how: str) -> None:
    if budget.amount < least:
        number = f"{least:,.0f}" if budget.unit == "bytes" else f"{least:.2g}"
        found = f"{budget.amount:,.0f}" if budget.unit == "bytes" else f"{budget.amount:g}"
        place = "bytes per token" if budget.unit == "bytes" else "kl"
        raise UsageError(place, found=found, wanted=f"at least {number}, the {how} type")


def _within_bytes(chosen: dict[str, Candidate], steps: Sequence[_Step], missing: float) -> None:
    """Take the cheapest steps until `missing` bytes are saved, and undo the dearest that were not needed."""
    taken: list[_Step] = []
    for step in steps:
        if missing <= 0:
            break
        chosen[step.after.weight] = step.after
        missing -= step.saved
        taken.append(step)
    for step in reversed(taken):
        if missing + step.saved <= 0 and chosen[step.after.weight] is step.after:
            chosen[step.after.weight] = step.before
            missing += step.saved


def _within_divergence(chosen: dict[str, Candidate], steps: Sequence[_Step], left: float) -> None:
    """Take every step that fits what is left, the cheapest first; a weight's later steps need its earlier ones."""
    for step in steps:
        if step.added <= left and chosen[step.after.weight] is step.before:
            chosen[step.after.weight] = step.after
            left -= step.added


def _place(item: Candidate) -> tuple[str, int, float]:
    return item.weight, -item.bytes, item.divergence


def _pairs(hull: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    return itertools.pairwise(hull)


def _hull(options: Sequence[Candidate]) -> list[Candidate]:
    """Those of a weight, from the finest to the coarsest, on the lower convex hull of bytes and divergence."""
    hull: list[Candidate] = []
    for item in options:
        while hull and item.divergence <= hull[-1].divergence and item.bytes <= hull[-1].bytes:
            hull.pop()
        if hull and item.bytes == hull[-1].bytes:
            continue
        while len(hull) > 1 and _Step(hull[-2], hull[-1], 0).rank[0] >= _Step(hull[-1], item, 0).rank[0]:
            hull.pop()
        hull.append(item)
    return hull
