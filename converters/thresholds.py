"""The bounds of the quality gate for a bundle's text decoder, by the types of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from toolkit.base.elements import ElementName, coarsest
from toolkit.base.errors import UsageError


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The bounds for a bundle. Divergences are in nats; the last two have a tolerance of two standard errors."""

    kl_divergence_mean: float
    kl_divergence_max: float
    top1_agreement: float
    perplexity_ratio: float
    """The bundle's perplexity divided by the checkpoint's."""


THRESHOLDS: Mapping[ElementName, Thresholds] = {
    # Only rounding: an error of 0.001 in every logit diverges by 5e-7. Tight enough to find a wrong graph: on the
    # example model a correct bundle diverges by 3e-13, one whose window is a token too long by 1e-4.
    "f32": Thresholds(1e-6, 1e-4, 0.99, 1.001),
    # float16 holds a bfloat16 weight exactly unless it is below 2^-14, where it loses bits.
    "f16": Thresholds(1e-4, 1e-2, 0.985, 1.002),
    # int8 should cost nearly nothing: 1 % of perplexity. Activations are int8 too, so single tokens may change.
    "int8": Thresholds(0.01, 0.5, 0.95, 1.01),
    # int4 costs more; with one scale for each 32 weights, 5 %.
    "int4": Thresholds(0.1, 3.0, 0.85, 1.05),
    # With every matrix in int2, the example model's perplexity rises by 12 %, and its predictions diverge by 0.14.
    "int2": Thresholds(0.3, 6.0, 0.75, 1.2),
}


def thresholds_for(dtypes: Iterable[str], shares: Mapping[str, float] | None = None) -> Thresholds:
    """The bounds for the coarsest element type among a bundle's weights.

    shares: what part of the weights each type has. A mix with int2 may diverge by what its types may, each by its
    part: divergences add. Without int2, the coarsest type decides alone.

    >>> thresholds_for(["f32", "int4", "int8"]) == THRESHOLDS["int4"]
    True
    >>> thresholds_for(["int4", "int2"], {"int4": 0.75, "int2": 0.25}).kl_divergence_mean
    0.15
    """
    used = set(dtypes)
    if not used or not used <= THRESHOLDS.keys():
        wanted = f"one or more of {', '.join(THRESHOLDS)}"
        raise UsageError("element types of a bundle", found=sorted(used), wanted=wanted)
    last = coarsest(used)
    part = 1.0 if shares is None else shares.get(last, 0.0)
    if last != "int2" or len(used) == 1 or part == 1.0:
        return THRESHOLDS[last]
    finer, coarse = THRESHOLDS[coarsest(used - {last})], THRESHOLDS[last]

    def between(of: Callable[[Thresholds], float]) -> float:
        return round((1 - part) * of(finer) + part * of(coarse), 6)

    return Thresholds(
        between(lambda bounds: bounds.kl_divergence_mean),
        between(lambda bounds: bounds.kl_divergence_max),
        between(lambda bounds: bounds.top1_agreement),
        between(lambda bounds: bounds.perplexity_ratio),
    )
