"""The quality gate: its measures against formulas written out, its verdicts, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import CONFIGS, checkpoint_of, hf_logits, make_checkpoint
from paths import EXAMPLE

from converters.convert import convert
from converters.family import ReferenceModel
from converters.gate import judge
from converters.gemma3n.config.text import TextConfig, TextModel
from converters.gemma3n.family import Gemma3nCheckpoint, open_gemma3n
from converters.gemma3n.reference import Reference, forward
from converters.intervals import Interval, ratio_interval, wilson_interval
from converters.request import ConvertRequest
from converters.thresholds import THRESHOLDS, Thresholds, thresholds_for
from converters.verify import (
    LONG_TOKENS,
    Failure,
    Quality,
    SizeReport,
    VerifyReport,
    built_in_text,
    compare,
    failures_of,
    judged_in,
    log_softmax,
    sequences_of,
    verify,
)
from gemma_edge.words.quality import report_text
from toolkit.base.errors import BundleError, CheckpointError, QualityError, UsageError

Array = NDArray[np.float32]

MODEL = next(config for config in CONFIGS if config.name == "large_vocabulary")  # 1280 ids, 1024 of them text
TEXT = [[2, 17, 900, 5, 1023, 0, 44, 3], [2, 8, 9, 10, 11]]
F32 = THRESHOLDS["f32"]


def f32(rows: Sequence[Sequence[float]]) -> Array:
    return np.array(rows, np.float32)


def softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


# --- measures --------------------------------------------------------------------------------------------------------


def test_measures_equal_formulas_written_out() -> None:
    random = np.random.default_rng(0)
    expected, found = random.normal(size=(2, 5, 11)).astype(np.float32) * 3
    following = random.integers(0, 11, 5)
    result = compare(expected, found, following, 11)
    for row in range(5):
        p, q = softmax(expected[row].tolist()), softmax(found[row].tolist())
        divergence = sum(p[i] * math.log(p[i] / q[i]) for i in range(11))
        assert result.divergence[row] == pytest.approx(divergence, rel=1e-12)
        assert result.same_top1[row] == (p.index(max(p)) == q.index(max(q)))
        assert result.loss_checkpoint[row] == pytest.approx(-math.log(p[following[row]]), rel=1e-12)
        assert result.loss_bundle[row] == pytest.approx(-math.log(q[following[row]]), rel=1e-12)


def test_the_divergence_of_a_coin_is_known() -> None:
    fair, biased = f32([[0, 0]]), np.log(f32([[0.25, 0.75]]))
    result = compare(fair, biased, np.array([0]), 2)
    assert result.divergence[0] == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), rel=1e-7)
    back = compare(biased, fair, np.array([0]), 2)
    assert back.divergence[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-7)


def test_equal_logits_diverge_by_exactly_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 1000)).astype(np.float32) * 30
    assert compare(logits, logits, np.zeros(3, int), 1000).divergence.tolist() == [0, 0, 0]
    assert compare(logits, logits + np.float32(1), np.zeros(3, int), 1000).divergence.max() < 1e-9


def test_huge_and_far_apart_logits_stay_finite() -> None:
    logits = f32([[3e38, -3e38, 0]])
    assert log_softmax(logits).tolist() == [[0, pytest.approx(-6e38), pytest.approx(-3e38)]]
    result = compare(f32([[100, 0, 0]]), f32([[0, 100, 0]]), np.array([0]), 3)
    assert result.divergence[0] == pytest.approx(100)


def test_ids_behind_the_text_vocabulary_do_not_count() -> None:
    expected, found = f32([[1, 2, 0]]), f32([[1, 2, 30]])
    assert compare(expected, found, np.array([0]), 2).divergence[0] == 0
    assert compare(expected, found, np.array([0]), 2).same_top1[0]
    assert not compare(expected, found, np.array([0]), 3).same_top1[0]


# --- verdicts --------------------------------------------------------------------------------------------------------


QUALITY = Quality(
    tokens=400,
    kl_divergence_mean=0.001,
    kl_divergence_max=0.1,
    top1_agreement=0.97,
    perplexity_checkpoint=20.0,
    perplexity_bundle=20.1,
    perplexity_ratio_error=0.001,
)


def test_a_bundle_in_bounds_passes() -> None:
    assert failures_of(QUALITY, THRESHOLDS["int8"]) == ()


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"kl_divergence_mean": 0.011}, "KL divergence mean 0.011, wanted at most 0.01"),
        ({"kl_divergence_max": 0.75}, "KL divergence max 0.75, wanted at most 0.5"),
        ({"top1_agreement": 0.92}, "top-1 agreement 0.92, wanted at least 0.9282"),
        ({"perplexity_bundle": 21.0}, "perplexity ratio 1.05, wanted at most 1.012"),
        ({"kl_divergence_mean": math.nan}, "KL divergence mean nan, wanted at most 0.01"),
        ({"top1_agreement": math.nan}, "top-1 agreement nan, wanted at least 0.9282"),
    ],
    ids=lambda value: str(value),
)
def test_each_measure_out_of_bounds_fails_by_name(change: dict[str, float], failure: str) -> None:
    found = failures_of(replace(QUALITY, **change), THRESHOLDS["int8"])  # type: ignore[arg-type]
    assert [str(item) for item in found] == [failure]


def test_a_worse_perplexity_within_two_standard_errors_is_chance() -> None:
    quality = replace(QUALITY, perplexity_bundle=20.6, perplexity_ratio_error=0.011)
    assert failures_of(quality, THRESHOLDS["int8"]) == ()
    assert failures_of(replace(quality, perplexity_ratio_error=0.009), THRESHOLDS["int8"])


def test_few_tokens_may_disagree_by_chance() -> None:
    few = replace(QUALITY, tokens=63, top1_agreement=57 / 63)
    assert failures_of(few, THRESHOLDS["int8"]) == ()
    assert failures_of(replace(few, tokens=630), THRESHOLDS["int8"])
    assert failures_of(replace(few, top1_agreement=56 / 63), THRESHOLDS["int8"])


def test_bounds_can_be_overridden() -> None:
    strict = replace(THRESHOLDS["int8"], kl_divergence_mean=1e-6)
    assert [item.measure for item in failures_of(QUALITY, strict)] == ["KL divergence mean"]


def test_the_coarsest_element_type_sets_the_bounds() -> None:
    assert thresholds_for(["f32"]) == THRESHOLDS["f32"]
    assert thresholds_for(["int8", "f32", "int8"]) == THRESHOLDS["int8"]
    with pytest.raises(UsageError, match=r"found \['int3'\], wanted one or more of f32, f16, int8, int4, int2"):
        thresholds_for(["int3"])


def test_the_bounds_of_a_mix_with_int2_lie_between_those_of_its_types_by_their_parts() -> None:
    mixed = thresholds_for(["f32", "int8", "int4", "int2"], {"int8": 0.5, "int4": 0.4, "int2": 0.1})
    assert (mixed.kl_divergence_mean, mixed.kl_divergence_max) == pytest.approx((0.12, 3.3))
    assert (mixed.top1_agreement, mixed.perplexity_ratio) == pytest.approx((0.84, 1.065))
    assert thresholds_for(["int4", "int2"], {"int2": 1.0}) == THRESHOLDS["int2"] == thresholds_for(["int4", "int2"])
    assert thresholds_for(["int4", "int2"], {"int4": 1.0}) == THRESHOLDS["int4"], "a rule that no weight has"
    assert thresholds_for(["int8", "int4"], {"int8": 0.9, "int4": 0.1}) == THRESHOLDS["int4"]


def test_bounds_widen_with_coarser_types() -> None:
    for finer, coarser in itertools.pairwise(THRESHOLDS.values()):
        assert finer.kl_divergence_mean < coarser.kl_divergence_mean
        assert finer.kl_divergence_max < coarser.kl_divergence_max
        assert finer.top1_agreement > coarser.top1_agreement
        assert finer.perplexity_ratio < coarser.perplexity_ratio


def test_a_report_becomes_the_json_of_the_command_line() -> None:
    bad = SizeReport(QUALITY, (Failure("top-1 agreement", 0.5, "at least 0.9"),))
    report = VerifyReport({"small": SizeReport(QUALITY, ()), "large": bad})
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["passed"] is False
    assert written["sizes"]["small"] == {
        "kl_divergence_mean": 0.001,
        "kl_divergence_max": 0.1,
        "top1_agreement": 0.97,
        "perplexity_checkpoint": 20.0,
        "perplexity_bundle": 20.1,
        "perplexity_ratio": pytest.approx(1.005),
        "perplexity_ratio_interval": None,
        "top1_agreement_interval": None,
        "tokens": 400,
        "non_finite_tokens": 0,
        "failures": [],
        "limits": None,
    }
    assert written["sizes"]["large"]["failures"] == ["top-1 agreement 0.5, wanted at least 0.9"]
    with pytest.raises(QualityError, match=r"^tiny: large: top-1 agreement 0\.5, wanted at least 0\.9; choose"):
        report.require_passed("tiny")
    VerifyReport({"small": SizeReport(QUALITY, ())}).require_passed("tiny")
    with pytest.raises(QualityError, match=r"^tiny: other prompts; please report it with the chat template$"):
        VerifyReport({"small": SizeReport(QUALITY, ())}, prompts=("other prompts",)).require_passed("tiny")


# --- the whole gate --------------------------------------------------------------------------------------------------


class Bundle:
    """Logits of transformers from the middle of each sequence on, spoilt on demand."""

    def __init__(self, directory: Path, spoil: Callable[[Array], Array] = np.copy) -> None:
        self.directory, self.spoil = directory, spoil

    def logits_for(self, ids: Sequence[int]) -> tuple[int, Array]:
        first = len(ids) // 2
        return first, self.spoil(hf_logits(self.directory, ids)[first:])


@pytest.fixture(scope="module")
def checkpoint() -> Gemma3nCheckpoint:
    return open_gemma3n(checkpoint_of(MODEL))


@pytest.mark.reference
def test_a_faithful_bundle_passes_the_strictest_bounds(checkpoint: Gemma3nCheckpoint) -> None:
    seen: list[tuple[str, int, int]] = []
    report = verify(Bundle(checkpoint.path), Reference(checkpoint), TEXT, F32, progress=lambda *step: seen.append(step))
    quality = report.quality
    assert report.passed
    assert quality.tokens == 3 + 2
    assert quality.kl_divergence_max is not None and quality.kl_divergence_max < 1e-8
    assert quality.top1_agreement == 1
    losses = []
    for ids in TEXT:
        for position in range(len(ids) // 2, len(ids) - 1):
            p = softmax(hf_logits(checkpoint.path, ids)[position, :1024].tolist())
            losses.append(-math.log(p[ids[position + 1]]))
    assert quality.perplexity_checkpoint == pytest.approx(math.exp(sum(losses) / 5), rel=1e-5)
    assert quality.perplexity_bundle == pytest.approx(math.exp(sum(losses) / 5), rel=1e-9)
    assert seen == [*(("checkpoint", done, 4) for done in range(1, 5)), ("bundle", 1, 2), ("bundle", 2, 2)]


@pytest.mark.reference
def test_a_bundle_of_other_weights_fails(tmp_path: Path, checkpoint: Gemma3nCheckpoint) -> None:
    other = make_checkpoint(tmp_path, seed=99, **MODEL.overrides)  # type: ignore[arg-type]
    report = verify(Bundle(other), Reference(checkpoint), TEXT, THRESHOLDS["int4"])
    assert not report.passed
    assert {failure.measure for failure in report.failures} >= {"KL divergence mean", "top-1 agreement"}


class Mistaken:
    """The checkpoint under another config: a bundle whose graph has a mistake."""

    def __init__(self, model: TextModel, config: TextConfig) -> None:
        self.model, self.config = model, config

    def shape(self, name: str) -> tuple[int, ...]:
        return self.model.shape(name)

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> Array:
        return self.model.read(name, rows, columns)

    def logits_for(self, ids: Sequence[int]) -> tuple[int, Array]:
        first = len(ids) // 2
        return first, forward(self, [np.array(ids, np.int32)])[0][first:]


MISTAKES: dict[str, Callable[[TextConfig], TextConfig]] = {
    "a window one token longer": lambda config: replace(config, sliding_window=config.sliding_window + 1),
    "no window": lambda config: replace(config, sliding_window=1000),
    "one theta for all": lambda config: replace(config, rope_theta_full=config.rope_theta_sliding),
    "a tenth more theta": lambda config: replace(config, rope_theta_sliding=1.1 * config.rope_theta_sliding),
    "no soft-cap": lambda config: replace(config, final_logit_softcap=None),
    "no output scale": lambda config: replace(config, altup_correct_scale=False),
    "a large epsilon": lambda config: replace(config, rms_norm_eps=1e-3),
    "dense": lambda config: replace(config, layers=tuple(replace(layer, sparsity=0.0) for layer in config.layers)),
    "a little sparser": lambda config: replace(
        config, layers=tuple(replace(layer, sparsity=layer.sparsity and 0.96) for layer in config.layers)
    ),
    "keys of another layer": lambda config: replace(
        config, layers=tuple(replace(layer, kv_source=layer.kv_source and 0) for layer in config.layers)
    ),
}


@pytest.mark.reference
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_float_graph_fails(checkpoint: Gemma3nCheckpoint, mistake: str) -> None:
    ids = [2, *np.random.default_rng(4).integers(0, 1024, 60).tolist()]
    assert verify(Mistaken(checkpoint, checkpoint.config), Reference(checkpoint), [ids], F32).passed
    mistaken = Mistaken(checkpoint, MISTAKES[mistake](checkpoint.config))
    assert not verify(mistaken, Reference(checkpoint), [ids], F32).passed


@pytest.mark.reference
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_fail_and_say_so(checkpoint: Gemma3nCheckpoint, bad: float) -> None:
    def spoil(logits: Array) -> Array:
        logits = logits.copy()
        logits[1, 7] = bad
        return logits

    report = verify(Bundle(checkpoint.path, spoil), Reference(checkpoint), TEXT, THRESHOLDS["int4"])
    assert [str(failure) for failure in report.failures] == ["tokens with NaN or infinite logits 2, wanted 0"]
    assert report.quality.kl_divergence_mean is None
    json.dumps(report.to_json(), allow_nan=False)


class Certain:
    """A model and a bundle of four tokens with the same logits at each position, whatever came before."""

    vocab_size = text_vocab_size = 4

    def __init__(self, *row: float) -> None:
        self.row = row

    def hidden_states(self, sequences: Sequence[Array], **_: object) -> list[Array]:
        return [np.zeros((len(ids), 1), np.float32) for ids in sequences]

    def logits(self, hidden: Array) -> Array:
        return np.array([self.row] * len(hidden), np.float32)

    def logits_for(self, ids: Sequence[int]) -> tuple[int, Array]:
        return len(ids) // 2, self.logits(np.zeros((len(ids) - len(ids) // 2, 1), np.float32))


def test_a_perplexity_that_no_float_holds_fails() -> None:
    model, bundle = Certain(0, 1, 0, 0), Certain(0, 5000, 0, 0)
    report = verify(bundle, cast(ReferenceModel, model), [[0, 2, 3, 2, 3]], THRESHOLDS["int2"])
    assert report.quality.perplexity_bundle == math.inf
    assert "perplexity ratio inf, wanted at most 1.2" in map(str, report.failures)
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["perplexity_bundle"] is None and written["perplexity_ratio_interval"] == [None, None]
    assert "inf" in report_text(VerifyReport({"full": report}))


@pytest.mark.reference
def test_many_rows_are_compared_in_pieces_without_a_gap(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Gemma3nCheckpoint
) -> None:
    ids = [2, *np.random.default_rng(3).integers(0, 1024, 40).tolist()]
    whole = verify(Bundle(checkpoint.path), Reference(checkpoint), [ids], F32)
    monkeypatch.setattr("converters.verify._ROWS", 7)
    monkeypatch.setattr("converters.verify._FLOAT64_ROWS", 3)
    pieces = verify(Bundle(checkpoint.path), Reference(checkpoint), [ids], F32)
    assert pieces.quality.tokens == whole.quality.tokens == 20
    assert pieces.quality.perplexity_bundle == pytest.approx(whole.quality.perplexity_bundle, rel=1e-12)
    assert pieces.quality.perplexity_checkpoint == pytest.approx(whole.quality.perplexity_checkpoint, rel=1e-6)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no sequences to verify with"),
        ([[2, 3]], "found 2 tokens, wanted at least 3"),
        ([[2, 3, 1024]], "found 1024, wanted text: 0 to 1023"),
        ([[2, -3, 4]], "found -3, wanted text: 0 to 1023"),
    ],
    ids=str,
)
def test_sequences_that_cannot_be_judged_are_refused(
    checkpoint: Gemma3nCheckpoint, sequences: list[list[int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        verify(Bundle(checkpoint.path), Reference(checkpoint), sequences, F32)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda logits: logits[:, :1024], r"found logits of shape \[1024\], wanted \[1280\], the checkpoint's vocab"),
        (lambda logits: logits[1:], "found 3 predictions from position 4, wanted all"),
        (lambda logits: logits[:0], "found 0 predictions from position 4, wanted all"),
    ],
    ids=["another vocabulary", "one too few", "none"],
)
def test_logits_that_do_not_fit_the_checkpoint_are_refused(
    checkpoint: Gemma3nCheckpoint, spoil: Callable[[Array], Array], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        verify(Bundle(checkpoint.path, spoil), Reference(checkpoint), TEXT, F32)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("changed", "value", "fault"),
    [(slice(3, 5), 3e38, "NaN or infinite logits"), (slice(None), 0.0, "the same logit for every token")],
)
def test_a_checkpoint_whose_own_logits_tell_nothing_is_refused(
    changed: slice, value: float, fault: str, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    make_checkpoint(tmp_path, seed=0, **MODEL.overrides)  # type: ignore[arg-type]
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][changed] = value
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    with open_gemma3n(tmp_path) as broken, pytest.raises(CheckpointError, match=fault):
        verify(Bundle(checkpoint_of(MODEL)), Reference(broken), TEXT, F32)


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_into_sequences_that_start_with_bos() -> None:
    ids = list(range(100, 130))
    assert sequences_of(ids, 2, context=64) == [[2, *ids]]
    assert sequences_of([2, *ids], 2, context=64) == [[2, *ids]]
    assert sequences_of(ids, 2, context=11) == [[2, *ids[:10]], [2, *ids[10:20]], [2, *ids[20:]]]
    assert sequences_of(ids, 2, context=30) == [[2, *ids[:29]]]
    many = sequences_of(list(range(3, 1000)) * 3, 2, context=4096, tokens=2500)
    assert [len(sequence) for sequence in many] == [1024, 1024, 3 * 997 - 2 * 1023 + 1]


@pytest.mark.parametrize("tokens", [1, 2, 12, 31, 32, 200, 256, 511, 512, 1000, 1024])
@pytest.mark.parametrize("context", [17, 64, 500, 4096])
def test_as_many_predictions_are_judged_as_are_asked_for(tokens: int, context: int) -> None:
    text = list(range(10_000, 14_000))
    sequences = sequences_of(text, 2, context=context, tokens=tokens)
    assert sum(judged_in(len(sequence)) for sequence in sequences) == tokens
    assert all(sequence[0] == 2 and len(sequence) <= context for sequence in sequences)
    used = [token for sequence in sequences for token in sequence[1:]]
    assert used == sorted(set(used))  # no part of the text twice


def test_few_predictions_are_spread_over_the_text() -> None:
    text = list(range(10_000, 14_000))
    sequences = sequences_of(text, 2, context=4096, tokens=256)
    assert (sequences[0][1], sequences[-1][-1]) == (text[0], text[-1])
    gaps = [b[1] - a[-1] for a, b in itertools.pairwise(sequences)]
    assert max(gaps) - min(gaps) <= 1


def test_many_predictions_are_judged_in_sequences_in_which_the_window_moves() -> None:
    sequences = sequences_of(list(range(10_000, 14_000)), 2, context=4096, tokens=LONG_TOKENS)
    assert [len(sequence) for sequence in sequences[:2]] == [1024, 1024]


@pytest.mark.parametrize(("count", "context"), [(0, 64), (1, 64), (30, 2), (30, 1)])
def test_too_little_text_or_context_is_refused(count: int, context: int) -> None:
    with pytest.raises(UsageError, match=f"found {count} tokens in a context of {context}, wanted at least 3"):
        sequences_of(list(range(100, 100 + count)), 2, context=context)


def test_the_built_in_text_has_many_scripts_and_fills_the_long_form() -> None:
    text = built_in_text()
    scripts = {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}
    assert {"LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "DEVANAGARI", "THAI", "CJK", "HANGUL"} <= scripts
    # 2,204 tokens of the published models' tokenizer (tests/test_real_tokenizer.py), of which half are judged.
    assert len(text) == 8263


@pytest.mark.slow
def test_text_that_is_too_short_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert(ConvertRequest(EXAMPLE, tmp_path / "bundle", groups=("text",), sizes=("small",), context=64), gate=None)
    with open_gemma3n(EXAMPLE) as checkpoint:
        report = judge(tmp_path / "bundle", checkpoint, text="the cat sat on the wall", tokens=200)
    judged = report.sizes["small"].quality.tokens
    assert f"the text has {judged} predictions to judge, fewer than the 200 wanted" in caplog.text


# --- certainty --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "scale"), [(64, 0.3), (256, 0.3), (1024, 0.02)])
def test_the_interval_of_the_ratio_holds_in_19_of_20_cases(count: int, scale: float) -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        interval = ratio_interval(generator.normal(0.03, scale, count))
        hits += interval.low <= math.exp(0.03) <= interval.high
    assert 178 <= hits <= 199


def test_the_interval_of_predictions_that_are_alike_is_wider() -> None:
    draws = np.random.default_rng(2).normal(0, 0.3, 64)
    alone, alike = ratio_interval(np.repeat(draws, 1)), ratio_interval(np.repeat(draws, 8))
    assert (alike.high - alike.low) > 0.7 * (alone.high - alone.low)  # though there are 8 times as many


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Brown, Cai and DasGupta 2001, and R's prop.test(correct = FALSE).
    for successes, trials, low, high in ((0, 10, 0.0, 0.2775), (9, 10, 0.5958, 0.9821), (81, 263, 0.2553, 0.3662)):
        found = wilson_interval(successes, trials)
        assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)


def test_a_limit_within_an_interval_is_said() -> None:
    limits = Thresholds(0.1, 3.0, 0.85, 1.05)
    quality = Quality(64, 0.01, 0.1, 0.9, 10.0, 10.2, 0.02, 0, Interval(0.8, 0.95), Interval(0.98, 1.07))
    text = report_text(VerifyReport({"small": SizeReport(quality, (), limits)}))
    assert "ratio 0.980 to 1.070 (limit 1.05), top-1 80.0% to 95.0% (limit 85.0%)" in text
    assert "a limit is within an interval" in text
    sure = replace(quality, top1_interval=Interval(0.86, 0.95), ratio_interval=Interval(0.98, 1.04))
    assert "within an interval" not in report_text(VerifyReport({"small": SizeReport(sure, (), limits)}))
    value = SizeReport(quality, (), limits).to_json()
    assert value["perplexity_ratio"] == 1.02 and value["perplexity_ratio_interval"] == [0.98, 1.07]
    assert value["tokens"] == 64 and value["top1_agreement_interval"] == [0.8, 0.95]
