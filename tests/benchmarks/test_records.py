"""What the scripts write is a results file like any other, and two commits of it compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measure import ENCODE_TESTS, Measured, Recorder, Series, encoder_figures, model_record
from toolkit.base.errors import UsageError
from toolkit.results.comparison import compare_results
from toolkit.results.json_lines import read_results


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def record(path: Path, checkpoint: Path, seconds: tuple[float, ...], system: str) -> None:
    model = model_record(checkpoint, "vision tower", quantization="int8")
    runs = encoder_figures(Series(seconds, 1_000_000), error=0.01)
    Recorder("vision", ("numpy",)).append(path, Measured(model, ENCODE_TESTS, runs, {"system": system}, threads=2))


def test_a_script_s_record_says_what_was_measured_of_what_and_by_which_commit(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "vision.jsonl"
    record(path, checkpoint, (1.0, 2.0), "ours")
    (found,) = read_results(path).records
    assert (found.runner, found.model.kind, found.threads) == ("bench_vision", "checkpoint", 2)
    assert found.values("encode") == (1.0, 2.0) and found.values("peak") == (1_000_000, 1_000_000)
    assert found.script is not None and found.script.conditions == {"system": "ours"}
    assert found.script.commit and set(found.script.versions) == {"numpy"}
    assert found.device.kind == "host" and found.state_before is not None


def test_two_files_of_a_script_compare_contender_by_contender(tmp_path: Path, checkpoint: Path) -> None:
    for name, factor in (("base", 1.0), ("new", 2.0)):
        for system in ("ours", "peer"):
            seconds = tuple(factor * (1 + 0.01 * number) for number in range(6))
            record(tmp_path / f"{name}.jsonl", checkpoint, seconds, system)
    base, new = (read_results(tmp_path / f"{name}.jsonl").records for name in ("base", "new"))
    found = [item for item in compare_results(base, new).tests if item.test == "encode"]
    assert [item.verdict for item in found] == ["slower", "slower"]
    assert ["system ours" in item.configuration for item in found] == [True, False]
    with pytest.raises(UsageError, match="no configuration is in both"):
        compare_results(base[:1], new[1:2])
