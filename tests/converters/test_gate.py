"""The gate over a whole bundle: which sizes it judges, what it tells on the way, and that it prints nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from converters.families import open_checkpoint
from converters.gate import ShortGate, bounds_of, judge, judge_towers
from converters.thresholds import THRESHOLDS
from converters.verify_towers import tower_type
from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.manifest import MANIFEST_NAME, RuleRecord
from toolkit.bundle.manifest_json import dump_manifest, read_manifest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import TOWERS
from toolkit.runtime.session import SessionSettings

SETTINGS = SessionSettings(threads=1, weight_cache="memory")


@pytest.mark.slow
def test_every_size_is_judged_in_turn_and_told_in_percent(
    random_bundle: Path, random_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int]] = []
    with open_checkpoint(random_checkpoint) as checkpoint:
        gate = ShortGate(SETTINGS, tokens=24, progress=lambda *step: told.append(step))
        report = gate(random_bundle, checkpoint)
    assert report.passed and list(report.sizes) == sorted(read_manifest(random_bundle).sizes)
    assert list(dict.fromkeys(name for name, _, _ in told)) == list(report.sizes)
    for name in report.sizes:
        done = [done for size, done, of in told if size == name and of == 100]
        assert done == sorted(done) and done[-1] == 100
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_some_sizes_can_be_judged_alone_on_a_text_of_ones_own(random_bundle: Path, random_checkpoint: Path) -> None:
    with open_checkpoint(random_checkpoint) as checkpoint:
        report = judge(random_bundle, checkpoint, SETTINGS, text="the cat " * 20, sizes=["small"])
        assert list(report.sizes) == ["small"] and report.sizes["small"].quality.tokens > 10
        with pytest.raises(BundleError, match="found huge, wanted full or small"):
            judge(random_bundle, checkpoint, SETTINGS, sizes=["huge"])
        with pytest.raises(UsageError, match="text to verify with"):
            judge(random_bundle, checkpoint, SETTINGS, text="")


def test_a_bundle_without_towers_has_none_to_judge(random_bundle: Path, random_checkpoint: Path) -> None:
    with open_checkpoint(random_checkpoint) as checkpoint:
        assert judge_towers(random_bundle, checkpoint, SETTINGS) == {}


def test_the_types_of_the_weights_set_the_bounds_and_not_the_rules(
    multimodal_bundle: Path, random_bundle: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(multimodal_bundle, tmp_path / "bundle"))
    manifest, coarse = read_manifest(path), RuleRecord("no.weight", "int2", None, "mse")
    quant = {role: replace(item, rules=(coarse, *item.rules)) for role, item in manifest.quant.items()}
    (path / MANIFEST_NAME).write_bytes(dump_manifest(replace(manifest, quant=quant)))
    bundle, floats = Bundle(path), Bundle(random_bundle)
    assert bounds_of(bundle) == {bundle.manifest.default_size: THRESHOLDS["int8"]}
    assert bounds_of(floats) == {"full": THRESHOLDS["f32"], "small": THRESHOLDS["f32"]}
    assert [tower_type(bundle, group) for group in TOWERS] == ["int8", "int8"]
