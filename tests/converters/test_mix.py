"""A mix of types: the best within a budget, what can be reached where nothing fits, and the same bytes again."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from toy_family import TOY, write_toy_checkpoint

from converters.calibration.budget import MixPlan, within_budget
from converters.calibration.calibrate import work_directory
from converters.calibration.divergence import BundleModel
from converters.calibration.mix import Candidate, Mix, MixBudget, choose_mix
from converters.calibration.sensitivity import Sensitivity
from converters.calibration.text import CalibrationText, built_in_calibration_text
from converters.convert import convert
from converters.family import Family
from converters.gemma3n.family import GEMMA3N
from converters.rebuild import rebuild
from converters.request import ConvertRequest
from toolkit.base.errors import UsageError
from toolkit.bundle.footprint import footprints
from toolkit.bundle.manifest_json import read_manifest
from toolkit.check import check
from toolkit.quant.scheme import Scheme

FAMILIES: tuple[Family, ...] = (GEMMA3N, TOY)
INT8, INT4, INT2 = Scheme("int8"), Scheme("int4"), Scheme("int2")
TEXT = CalibrationText(built_in_calibration_text().text[:3000])


def options(weight: str, size: int, int4: float, int2: float) -> list[Candidate]:
    return [
        Candidate(weight, INT8, size, 0.0),
        Candidate(weight, INT4, size // 2, int4),
        Candidate(weight, INT2, size // 4, int2),
    ]


THREE = [*options("a", 400, 0.1, 0.5), *options("b", 800, 0.1, 0.9), *options("c", 80, 0.3, 0.31)]


def every_mix() -> list[Mix]:
    by_weight = [[item for item in THREE if item.weight == name] for name in "abc"]
    return [
        Mix({c.weight: c.scheme for c in some}, sum(c.bytes for c in some), sum(c.divergence for c in some))
        for some in itertools.product(*by_weight)
    ]


@pytest.mark.parametrize("limit", [320, 340, 500, 640, 680, 720, 900, 1100, 1280, 5000])
def test_no_other_mix_within_the_bytes_diverges_less_by_more_than_a_step(limit: int) -> None:
    found = choose_mix(THREE, MixBudget(limit, "bytes"))
    best = min(mix.divergence for mix in every_mix() if mix.bytes <= limit)
    assert found.bytes <= limit and found.divergence <= best + 0.5
    assert found in every_mix()


@pytest.mark.parametrize("limit", [0.0, 0.05, 0.1, 0.2, 0.51, 0.6, 1.8])
def test_a_mix_within_a_divergence_takes_every_step_that_fits(limit: float) -> None:
    found = choose_mix(THREE, MixBudget(limit, "nats"))
    assert found.divergence <= limit
    chosen = {name: scheme.dtype for name, scheme in found.schemes.items()}
    if limit >= 0.1:
        assert chosen["b"] != "int8", "it saves the most for what it costs"
    if limit == 1.8:
        assert set(chosen.values()) == {"int2"}


def test_a_type_that_is_never_worth_its_bytes_is_skipped() -> None:
    found = choose_mix(options("c", 80, 0.3, 0.31), MixBudget(40, "bytes"))
    assert found.schemes == {"c": INT2}


def test_the_order_of_candidates_does_not_matter() -> None:
    for limit in (400, 700, 1000):
        budget = MixBudget(limit, "bytes")
        assert choose_mix(THREE, budget) == choose_mix(THREE[::-1], budget)


def test_bytes_besides_and_a_floor_count() -> None:
    found = choose_mix(THREE, MixBudget(1000 + 1280, "bytes"), other_bytes=1000, floor=0.25)
    assert (found.bytes, found.divergence) == (2280, 0.25)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (MixBudget(319, "bytes"), "bytes per token: found 319, wanted at least 320"),
        (MixBudget(0.01, "nats"), "kl: found 0.01, wanted at least 0.02"),
    ],
)
def test_what_can_be_reached_is_said_where_nothing_fits(budget: MixBudget, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_mix(THREE, budget, floor=0.02)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("toy") / "checkpoint", tokenizer_json)


def request(checkpoint: Path, output: Path, budget: MixBudget) -> ConvertRequest:
    return ConvertRequest(checkpoint, output, context=64, prefill_sizes=(4,), calibration=TEXT, mix=budget)


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def bytes_per_token(bundle: Path) -> int:
    (found,) = footprints(bundle, read_manifest(bundle)).values()
    return found.weight_bytes


@pytest.fixture(scope="module")
def int8_bytes(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    wanted = request(checkpoint, tmp_path_factory.mktemp("int8") / "b", MixBudget(1, "bytes"))
    return bytes_per_token(convert(replace(wanted, calibration=None, mix=None), families=FAMILIES, gate=None).path)


def test_a_bundle_reads_no_more_than_its_budget_and_is_rebuilt(
    checkpoint: Path, tmp_path: Path, int8_bytes: int
) -> None:
    limit = int(0.6 * int8_bytes)
    wanted = request(checkpoint, tmp_path / "b", MixBudget(limit, "bytes"))
    result = convert(wanted, families=FAMILIES, gate=None)
    assert 0.9 * limit < bytes_per_token(tmp_path / "b") <= limit
    assert check(tmp_path / "b") == []
    recipe = result.manifest.quant["text"]
    assert recipe.recipe.startswith("mix-") and len({rule.dtype for rule in recipe.rules}) > 1
    assert not work_directory(tmp_path / "b").exists()
    page = tmp_path / "page.txt"
    page.write_text(TEXT.text, encoding="utf-8")
    rebuild(tmp_path / "b", checkpoint, tmp_path / "again", calibration=page, families=FAMILIES)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "b")


def test_a_bundle_within_a_divergence_is_rebuilt_without_what_was_judged(checkpoint: Path, tmp_path: Path) -> None:
    convert(request(checkpoint, tmp_path / "b", MixBudget(0.1, "nats")), families=FAMILIES, gate=None)
    page = tmp_path / "page.txt"
    page.write_text(TEXT.text, encoding="utf-8")
    rebuild(tmp_path / "b", checkpoint, tmp_path / "again", calibration=page, families=FAMILIES)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "b")


def test_bytes_do_not_depend_on_threads_or_an_interrupt(checkpoint: Path, tmp_path: Path, int8_bytes: int) -> None:
    budget = MixBudget(int(0.5 * int8_bytes), "bytes")
    plain, stopped = request(checkpoint, tmp_path / "a", budget), request(checkpoint, tmp_path / "b", budget)
    convert(plain, families=FAMILIES, gate=None)
    work = work_directory(tmp_path / "b")

    def interrupt(done: int, total: int) -> None:
        if (work / "rounded").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(stopped, families=FAMILIES, gate=None, calibration_progress=interrupt)
    kept = work / "sensitivity.json"
    before = kept.stat().st_mtime_ns
    seen: list[int] = []

    def look(done: int, total: int) -> None:
        seen.append(kept.stat().st_mtime_ns)

    convert(replace(stopped, workers=5), families=FAMILIES, gate=None, calibration_progress=look)
    assert set(seen) == {before}, "what was measured is not measured again"
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_an_interrupted_second_mix_goes_on_where_it_was(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, work = request(checkpoint, tmp_path / "b", MixBudget(0.1, "nats")), work_directory(tmp_path / "b")
    found = iter((0.12, 0.05))
    judged: list[float] = []

    def divergence(*_: object) -> float:
        judged.append(next(found))
        return judged[-1]

    def interrupt(done: int, total: int) -> None:
        if judged and done > total / 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(BundleModel, "divergence", divergence)
    with pytest.raises(KeyboardInterrupt):
        convert(wanted, families=FAMILIES, gate=None, calibration_progress=interrupt)
    before = {path: path.stat().st_mtime_ns for path in (work / "rounded").glob("*.rows.npy")}
    assert len(before) > 5 and judged == [0.12]

    def look(done: int, total: int) -> None:
        assert {path: path.stat().st_mtime_ns for path in before} == before, "what was rounded is not rounded again"

    def write(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("converters.convert.write_bundle", write)
        convert(wanted, families=FAMILIES, gate=None, calibration_progress=look)
    assert judged == [0.12, 0.05]
    convert(wanted, families=FAMILIES, gate=None)
    assert judged == [0.12, 0.05], "what was judged is not judged again"


def test_bytes_that_cannot_be_reached_are_refused_before_anything_is_measured(
    checkpoint: Path, tmp_path: Path, int8_bytes: int
) -> None:
    wanted = request(checkpoint, tmp_path / "b", MixBudget(int8_bytes / 10, "bytes"))

    def never(done: int, total: int) -> None:
        raise AssertionError("measured")

    with pytest.raises(UsageError, match=r"bytes per token: found .* wanted at least .* coarsest type"):
        convert(wanted, families=FAMILIES, gate=None, calibration_progress=never)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_divergence_gets_fewer_bytes_the_larger_it_is(checkpoint: Path, tmp_path: Path, int8_bytes: int) -> None:
    sizes = []
    for name, amount in (("fine", 1e-3), ("coarse", 1e-1)):
        convert(request(checkpoint, tmp_path / name, MixBudget(amount, "nats")), families=FAMILIES, gate=None)
        sizes.append(bytes_per_token(tmp_path / name))
    assert sizes[1] < sizes[0] <= int8_bytes
    with pytest.raises(UsageError, match="kl: found 1e-12, wanted at least"):
        convert(request(checkpoint, tmp_path / "none", MixBudget(1e-12, "nats")), families=FAMILIES, gate=None)


ONE = MixPlan({}, {"a": (8, 8)}, 10)
COSTS = Sensitivity({"a": {"int8": 0.01, "int4": 0.05, "int2": 0.2}}, 0.0)


def test_a_divergence_that_no_mix_keeps_says_what_the_most_precise_one_has() -> None:
    with pytest.raises(UsageError, match=r"^kl: found 0\.1, wanted more: .* diverges by 0\.5 and reads 74 bytes"):
        within_budget(ONE, MixBudget(0.1, "nats"), COSTS, lambda mix: (None, 10 * mix.divergence + 0.4))


@pytest.mark.parametrize("found", [{42: 0.11, 74: 0.09}, {42: 9.0, 74: 0.1}], ids=["a little", "far"])
def test_the_most_precise_mix_is_tried_before_a_divergence_is_refused(found: dict[int, float]) -> None:
    tried: list[int] = []

    def make(mix: Mix) -> tuple[int, float]:
        tried.append(mix.bytes)
        return mix.bytes, found[mix.bytes]

    assert within_budget(ONE, MixBudget(0.1, "nats"), COSTS, make) == 74
    assert tried == [42, 74], "each once"


def test_a_mix_needs_a_calibration_and_one_size(checkpoint: Path, tmp_path: Path) -> None:
    wanted = request(checkpoint, tmp_path / "b", MixBudget(0.1, "nats"))
    with pytest.raises(UsageError, match="measures what each type costs"):
        convert(replace(wanted, calibration=None), families=FAMILIES, gate=None)
    with pytest.raises(UsageError, match="without quantised matrices"):
        convert(replace(wanted, recipes={"text": "f32"}), families=FAMILIES, gate=None)
