"""The gate over a whole bundle: which sizes it judges, what it tells on the way, and that it prints nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.families import open_checkpoint
from converters.gate import ShortGate, judge, judge_towers, used_dtypes
from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.manifest_json import read_manifest
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


def test_the_towers_recipes_do_not_loosen_the_bounds_of_text(multimodal_bundle: Path) -> None:
    manifest = read_manifest(multimodal_bundle)
    assert used_dtypes(manifest) == {"f32", "int8"}
    assert "f16" in {rule.dtype for rule in manifest.quant["vision"].rules}
