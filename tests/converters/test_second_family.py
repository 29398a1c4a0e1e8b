"""A second family, which nothing outside `toy_family.py` knows of, goes the whole way through the same functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_family import TOY, ToyReference, write_toy_checkpoint

from converters.convert import Conversion, convert
from converters.families import open_checkpoint
from converters.gate import ShortGate, judge
from converters.gemma3n.family import GEMMA3N
from converters.request import ConvertRequest
from toolkit.base.errors import CheckpointError, QualityError
from toolkit.check import check
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

FAMILIES = (GEMMA3N, TOY)
SETTINGS = SessionSettings(threads=1, weight_cache="memory")
GATE = ShortGate(SETTINGS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("toy") / "checkpoint", tokenizer_json)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Conversion:
    request = ConvertRequest(
        checkpoint, tmp_path_factory.mktemp("toy") / "bundle", {"text": "f32"}, context=200, prefill_sizes=(4, 16)
    )
    return convert(request, families=FAMILIES, gate=GATE)


def test_it_converts_and_passes_the_strictest_bounds(converted: Conversion) -> None:
    assert converted.manifest.architecture == "ToyForCausalLM"
    assert converted.report is not None and converted.report.passed
    assert converted.report.sizes.keys() == {"full"}
    assert check(converted.path) == []


def test_it_runs_as_its_reference_in_numpy(converted: Conversion, checkpoint: Path) -> None:
    ids = [2, *np.random.default_rng(1).integers(0, 320, 90).tolist()]
    with open_checkpoint(checkpoint, FAMILIES) as opened, Session(Bundle(converted.path), SETTINGS) as session:
        model = opened.reference(opened.default_slice)
        (hidden,) = model.hidden_states([np.array(ids, np.int32)])
        first, found = session.logits_for(ids)
        np.testing.assert_allclose(found, model.logits(hidden)[first:], rtol=0, atol=1e-4)


def test_its_own_recipes_are_used(checkpoint: Path, tmp_path: Path) -> None:
    request = ConvertRequest(checkpoint, tmp_path / "bundle", context=200)
    manifest = convert(request, families=FAMILIES, gate=None).manifest
    assert {role: quant.recipe for role, quant in manifest.quant.items()} == {"text": "int8", "ple": "int8"}
    with open_checkpoint(checkpoint, FAMILIES) as opened:
        report = judge(tmp_path / "bundle", opened, SETTINGS, tokens=64)
    agreement = report.sizes["full"].quality.top1_agreement
    assert agreement is not None and agreement > 0.8, "random weights leave the likeliest token to chance"


def test_a_bundle_that_is_not_its_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyReference, "logits", lambda self, hidden: -hidden @ self.checkpoint.read("head").T)
    with pytest.raises(QualityError, match="full: "):
        convert(ConvertRequest(checkpoint, tmp_path / "bundle", context=200), families=FAMILIES, gate=GATE)
    assert not (tmp_path / "bundle").exists()


def test_a_tuple_without_it_does_not_know_it(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found \['ToyForCausalLM'\], wanted Gemma3n"):
        convert(ConvertRequest(checkpoint, tmp_path / "bundle"), families=(GEMMA3N,))
