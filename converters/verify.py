"""The quality gate: compares a bundle's predictions with its checkpoint's, token by token.

A bundle that runs but predicts something else is hard to notice, so it is measured: the Kullback-Leibler divergence of
each prediction, how often the most likely token is the same, and the perplexity of both on the same text. All three
use only the ids that stand for text; the ids after them stand for images and sound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from converters.family import ReferenceModel, StageProgress
from converters.intervals import Interval, exponential, finite_or_none, ratio_interval, wilson_interval
from converters.thresholds import Thresholds
from converters.verify_towers import TowerReport
from toolkit.base.errors import BundleError, CheckpointError, QualityError, UsageError

SHORT_TOKENS = 256
"""How many predictions the gate of `convert` judges: the perplexity ratio of int4 is then known to about 3 %."""
LONG_TOKENS = 1024
"""How many predictions `verify` judges by default: the ratio is then known to about 1.5 %."""
LONGEST_SEQUENCE = 1024
"""Twice the sliding window of Google's models, so that the window moves; the logits of half of it take 512 MiB."""
SHORT_SEQUENCE = 64
"""The length of sequences if few predictions are judged: with more sequences, more of the text's languages count."""

_ROWS = 64  # predictions of the checkpoint at a time: 64 MiB of logits for 262,144 ids
_FLOAT64_ROWS = 8
_SHORTEST = 3  # ids; the second half of a shorter sequence has no prediction whose next token is known
_STANDARD_ERRORS = 2.0  # so that a good bundle does not fail by chance on a few tokens


class LogitsProvider(Protocol):
    """A loaded bundle, such as `toolkit.runtime.session.Session`."""

    def logits_for(self, ids: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """A first position, and the logits for each id from there on: f32[len(ids) - first, vocabulary]."""
        ...


# --- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures over `tokens` predictions; those of the bundle are None if any of its logits was not finite."""

    tokens: int
    kl_divergence_mean: float | None
    kl_divergence_max: float | None
    top1_agreement: float | None
    perplexity_checkpoint: float
    perplexity_bundle: float | None
    perplexity_ratio_error: float | None
    """The standard error of the logarithm of the perplexity ratio."""
    non_finite_tokens: int = 0
    top1_interval: Interval | None = None
    ratio_interval: Interval | None = None
    divergences: tuple[float, ...] = ()
    """The divergence of each prediction in nats, in the order of the text."""

    @property
    def perplexity_ratio(self) -> float | None:
        """The bundle's perplexity divided by the checkpoint's."""
        return None if self.perplexity_bundle is None else self.perplexity_bundle / self.perplexity_checkpoint


@dataclass(frozen=True, slots=True)
class Failure:
    """A measure that is out of bounds.

    >>> str(Failure("top-1 agreement", 0.5, "at least 0.9"))
    'top-1 agreement 0.5, wanted at least 0.9'
    """

    measure: str
    found: float
    wanted: str

    def __str__(self) -> str:
        return f"{self.measure} {self.found:.4g}, wanted {self.wanted}"


@dataclass(frozen=True, slots=True)
class SizeReport:
    """The result for one size of a bundle."""

    quality: Quality
    failures: tuple[Failure, ...]
    limits: Thresholds | None = None

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, object]:
        """The object of one size in `verify --json`; numbers that are not finite are null."""
        quality = self.quality
        return {
            "kl_divergence_mean": finite_or_none(quality.kl_divergence_mean),
            "kl_divergence_max": finite_or_none(quality.kl_divergence_max),
            "top1_agreement": quality.top1_agreement,
            "perplexity_checkpoint": finite_or_none(quality.perplexity_checkpoint),
            "perplexity_bundle": finite_or_none(quality.perplexity_bundle),
            "perplexity_ratio": finite_or_none(quality.perplexity_ratio),
            "perplexity_ratio_interval": _bounds(quality.ratio_interval),
            "top1_agreement_interval": _bounds(quality.top1_interval),
            "tokens": quality.tokens,
            "non_finite_tokens": quality.non_finite_tokens,
            "failures": [str(failure) for failure in self.failures],
            "limits": None if self.limits is None else dataclasses.asdict(self.limits),
        }


def _bounds(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [finite_or_none(interval.low), finite_or_none(interval.high)]


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of the text whose tokens were predicted, and the number of predictions."""

    text: str
    predictions: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The results for all sizes of a bundle, and for those of its towers that were compared."""

    sizes: Mapping[str, SizeReport]
    towers: Mapping[str, TowerReport] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    """How its prompts differ from those that transformers makes from the same conversations (behaviour.py)."""
    passages: tuple[Passage, ...] = ()
    """The parts of the text that the sizes were judged on, in order."""

    @property
    def passed(self) -> bool:
        sizes, towers = self.sizes.values(), self.towers.values()
        return all(size.passed for size in sizes) and all(tower.passed for tower in towers) and not self.prompts

    def to_json(self) -> dict[str, object]:
        sizes = {name: size.to_json() for name, size in self.sizes.items()}
        towers = {name: tower.to_json() for name, tower in self.towers.items()}
        return {"passed": self.passed, "sizes": sizes, "towers": towers, "prompts": list(self.prompts)}

    def require_passed(self, bundle: Path | str) -> None:
        """Raise QualityError, naming all measures that are out of bounds, unless the bundle has passed."""
        parts: list[tuple[str, SizeReport | TowerReport]] = [*self.sizes.items(), *self.towers.items()]
        faults = [f"{name}: {failure}" for name, part in parts for failure in part.failures]
        if faults or self.prompts:
            # No type of weights changes a prompt.
            remedy = "choose a more precise --quant" if faults else "please report it with the chat template"
            raise QualityError(file=bundle, found="; ".join([*faults, *self.prompts]), remedy=remedy)


# --- text ------------------------------------------------------------------------------------------------------------


def built_in_text() -> str:
    """The built-in text: paragraphs of prose in 18 languages, every few of them in English, of code and of numbers."""
    return (resources.files("converters") / "data" / "verify_text.txt").read_text(encoding="utf-8")


def judged_in(length: int) -> int:
    """The number of predictions that are judged in a sequence of this length: those after the first half, except the
    last, whose next token is not known.

    >>> [judged_in(length) for length in (2, 3, 4, 5, 64)]
    [0, 1, 1, 2, 31]
    """
    return length - length // 2 - 1


def sequences_of(ids: Sequence[int], bos_token_id: int, *, context: int, tokens: int = LONG_TOKENS) -> list[list[int]]:
    """Cut a text into sequences, each after a bos token, in which `tokens` predictions are judged in all.

    For many predictions, sequences are as long as context and memory allow; for few, they are short, and spread over
    the text if it is longer than needed. A text that is too short gives fewer predictions; UsageError if it gives none.
    """
    text = list(ids[1:] if ids and ids[0] == bos_token_id else ids)
    longest = min(context, LONGEST_SEQUENCE if 2 * tokens >= LONGEST_SEQUENCE else SHORT_SEQUENCE)
    lengths: list[int] = []
    missing, left = tokens, len(text)
    while missing > 0 and (length := min(longest, 2 * missing + 1, left + 1)) >= _SHORTEST:
        lengths.append(length)
        missing -= judged_in(length)
        left -= length - 1
    if not lengths:
        found = f"{len(text)} tokens in a context of {context}"
        raise UsageError("text to verify with", found=found, wanted=f"at least {_SHORTEST} in one context")
    sequences, place = [], 0
    for index, length in enumerate(lengths):
        gap = left * index // max(1, len(lengths) - 1)
        sequences.append([bos_token_id, *text[place + gap : place + gap + length - 1]])
        place += length - 1
    return sequences


# --- measuring -------------------------------------------------------------------------------------------------------


def verify(
    bundle: LogitsProvider,
    model: ReferenceModel,
    sequences: Sequence[Sequence[int]],
    thresholds: Thresholds,
    *,
    text_ids: int | None = None,
    progress: StageProgress | None = None,
) -> SizeReport:
    """Compare one size of a bundle with the checkpoint, or slice of it, that it was made from.

    `text_ids`: ids below this stand for text, added tokens included; None for those that the model knows to do so.

    Every token counts for which the bundle gives logits and the sequence has a next token. A bundle with non-finite
    logits fails; BundleError if its logits do not fit the checkpoint, CheckpointError if the checkpoint's own logits
    are not finite, or all equal. `progress` gets "checkpoint" with layers, then "bundle" with sequences.
    """
    text_ids = model.text_vocab_size if text_ids is None else text_ids
    _check_sequences(sequences, text_ids)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are found in the logits
        hidden = model.hidden_states(
            [np.array(ids, np.int32) for ids in sequences],
            progress=None if progress is None else lambda done, of: progress("checkpoint", done, of),
        )
    parts: list[_Predictions] = []
    for done, (ids, states) in enumerate(zip(sequences, hidden, strict=True), start=1):
        parts.extend(_compare_sequence(bundle, model, ids, states, text_ids))
        if progress is not None:
            progress("bundle", done, len(sequences))
    quality = _summary(_Predictions.join(parts))
    return SizeReport(quality, failures_of(quality, thresholds), thresholds)


def failures_of(quality: Quality, bounds: Thresholds) -> tuple[Failure, ...]:
    """All measures that are out of bounds or NaN."""
    if quality.non_finite_tokens:
        return (Failure("tokens with NaN or infinite logits", quality.non_finite_tokens, "0"),)
    assert quality.kl_divergence_mean is not None and quality.kl_divergence_max is not None
    assert quality.top1_agreement is not None
    assert quality.perplexity_bundle is not None and quality.perplexity_ratio_error is not None
    ratio = quality.perplexity_ratio
    assert ratio is not None
    allowed = bounds.perplexity_ratio * exponential(_STANDARD_ERRORS * quality.perplexity_ratio_error)
    spread = math.sqrt(bounds.top1_agreement * (1 - bounds.top1_agreement) / quality.tokens)
    wanted = bounds.top1_agreement - _STANDARD_ERRORS * spread
    at_most = (
        ("KL divergence mean", quality.kl_divergence_mean, bounds.kl_divergence_mean),
        ("KL divergence max", quality.kl_divergence_max, bounds.kl_divergence_max),
        ("perplexity ratio", ratio, allowed),
    )
    failures = [Failure(name, found, f"at most {bound:.4g}") for name, found, bound in at_most if not found <= bound]
    if not quality.top1_agreement >= wanted:
        failures.append(Failure("top-1 agreement", quality.top1_agreement, f"at least {wanted:.4g}"))
    return tuple(failures)


@dataclass(frozen=True, slots=True)
class _Predictions:
    """Measures with one entry per prediction; losses f64[n] are -log p of the next token."""

    divergence: NDArray[np.float64]
    same_top1: NDArray[np.bool_]
    loss_checkpoint: NDArray[np.float64]
    loss_bundle: NDArray[np.float64]
    finite: NDArray[np.bool_]

    @classmethod
    def join(cls, parts: Sequence[_Predictions]) -> _Predictions:
        return cls(
            np.concatenate([part.divergence for part in parts]),
            np.concatenate([part.same_top1 for part in parts]),
            np.concatenate([part.loss_checkpoint for part in parts]),
            np.concatenate([part.loss_bundle for part in parts]),
            np.concatenate([part.finite for part in parts]),
        )


def _compare_sequence(
    bundle: LogitsProvider, model: ReferenceModel, ids: Sequence[int], states: NDArray[np.float32], text_ids: int
) -> Iterator[_Predictions]:
    first, rows = bundle.logits_for(ids)
    _check_logits(first, rows, len(ids), model)
    for start in range(first, len(ids) - 1, _ROWS):
        end = min(start + _ROWS, len(ids) - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = model.logits(states[start:end])
        if not np.isfinite(expected).all():
            raise CheckpointError("checkpoint", found="NaN or infinite logits")
        if not np.ptp(expected[:, :text_ids], axis=1).any():
            wanted = "logits that tell tokens apart: from these, no mistake in a bundle can be seen"
            raise CheckpointError("checkpoint", found="the same logit for every token", wanted=wanted)
        found, following = rows[start - first : end - first], np.array(ids[start + 1 : end + 1])
        for row in range(0, end - start, _FLOAT64_ROWS):
            some = slice(row, row + _FLOAT64_ROWS)
            yield compare(expected[some], found[some], following[some], text_ids)


def compare(
    expected: NDArray[np.float32], found: NDArray[np.float32], following: NDArray[np.int64], vocabulary: int
) -> _Predictions:
    """Compare logits of the checkpoint and the bundle, both f32[n, vocab], over the first `vocabulary` ids."""
    finite = np.asarray(np.isfinite(found).all(axis=1))
    log_p = log_softmax(expected[:, :vocabulary])
    log_q = log_softmax(np.where(finite[:, None], found[:, :vocabulary], 0))
    places = np.arange(len(following))
    return _Predictions(
        # Rounding may make a divergence of 0 slightly negative.
        divergence=np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=-1), 0),
        same_top1=log_p.argmax(axis=-1) == log_q.argmax(axis=-1),
        loss_checkpoint=-log_p[places, following],
        loss_bundle=-log_q[places, following],
        finite=finite,
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of softmax over the last axis, in float64.

    >>> np.exp(log_softmax(np.float32([1000, 1000]))).round(12).tolist()
    [0.5, 0.5]
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _summary(predictions: _Predictions) -> Quality:
    tokens = len(predictions.finite)
    perplexity_checkpoint = exponential(predictions.loss_checkpoint.mean())
    bad = int((~predictions.finite).sum())
    if bad:
        return Quality(tokens, None, None, None, perplexity_checkpoint, None, None, bad)
    excess = predictions.loss_bundle - predictions.loss_checkpoint
    agreeing = int(predictions.same_top1.sum())
    return Quality(
        tokens,
        kl_divergence_mean=float(predictions.divergence.mean()),
        kl_divergence_max=float(predictions.divergence.max()),
        top1_agreement=float(predictions.same_top1.mean()),
        perplexity_checkpoint=perplexity_checkpoint,
        perplexity_bundle=exponential(predictions.loss_bundle.mean()),
        perplexity_ratio_error=float(excess.std() / math.sqrt(tokens)),
        top1_interval=wilson_interval(agreeing, tokens),
        ratio_interval=ratio_interval(excess),
        divergences=tuple(map(float, predictions.divergence)),
    )


def _check_sequences(sequences: Sequence[Sequence[int]], text_ids: int) -> None:
    if not sequences:
        raise UsageError(found="no sequences to verify with")
    for ids in sequences:
        if len(ids) < _SHORTEST:
            raise UsageError("sequence to verify with", found=f"{len(ids)} tokens", wanted=f"at least {_SHORTEST}")
        for token in ids:
            if not 0 <= token < text_ids:
                raise UsageError("token id", found=token, wanted=f"text: 0 to {text_ids - 1}")


def _check_logits(first: int, rows: NDArray[np.float32], length: int, model: ReferenceModel) -> None:
    if not 0 <= first < length - 1 or len(rows) != length - first:
        found = f"{len(rows)} predictions from position {first}"
        raise BundleError("bundle", found=found, wanted=f"all from some position to the end of {length} tokens")
    if rows.shape[1:] != (model.vocab_size,):
        raise BundleError(
            "bundle",
            found=f"logits of shape {list(rows.shape[1:])}",
            wanted=f"[{model.vocab_size}], the checkpoint's vocabulary",
            remedy="name the checkpoint that the bundle was made from",
        )
