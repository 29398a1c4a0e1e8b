"""What docs/calibration.md says of the recipe for the fewest bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import EXAMPLE

from benchmarks.bench_calibration import CONTEXT, Judge
from converters.calibration.text import CalibrationChoice
from converters.convert import convert
from converters.families import open_checkpoint
from converters.request import ConvertRequest


@pytest.mark.full
def test_int4_small_calibrated_diverges_less_than_int4_with_the_search(tmp_path: Path) -> None:
    bundles: dict[str, CalibrationChoice | None] = {"int4": None, "int4-small": "self"}
    means = {}
    with open_checkpoint(EXAMPLE) as checkpoint:
        judge = Judge(checkpoint, 1024)
        for recipe, calibration in bundles.items():
            recipes = {"text": recipe, "ple": "int8"}
            path = tmp_path / recipe
            convert(
                ConvertRequest(checkpoint, path, recipes, groups=("text",), context=CONTEXT, calibration=calibration),
                gate=None,
            )
            means[recipe] = {text: float(values.mean()) for text, values in judge.divergences(path).items()}
    assert all(means["int4-small"][text] < means["int4"][text] for text in ("books", "languages")), means
