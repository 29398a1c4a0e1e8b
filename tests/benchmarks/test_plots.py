"""Plots of benchmark records: the latest of each contender, and the same bytes from the same records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from result_records import RECORDS

from benchmarks import plot_results
from benchmarks.measure import RESULTS
from toolkit.report.plots import svg
from toolkit.results.json_lines import open_results
from toolkit.results.record import BenchRecord, Figures, Iteration, ScriptRecord

SVG = "{http://www.w3.org/2000/svg}"


def bandwidth(filled: int, rate: float, commit: str = "b", cpu: str = "one") -> BenchRecord:
    figures: Figures = {"decode_read_bytes_per_s": rate, "memory_read_bytes_per_s": 21e9}
    script = ScriptRecord(commit, {"filled": str(filled), "steps": "48"}, {})
    return changed(figures, script, cpu)


def changed(figures: Figures, script: ScriptRecord, cpu: str = "one") -> BenchRecord:
    record = RECORDS[0]
    return dataclasses.replace(
        record,
        runner="bench_bandwidth",
        tests={"read": "decode_read_bytes_per_s"},
        model=dataclasses.replace(record.model, name="e2b"),
        device=dataclasses.replace(record.device, model=cpu),
        iterations=(Iteration(None, None, 0, None, figures),),
        drift={},
        script=script,
    )


def write(path: Path, records: list[BenchRecord]) -> None:
    with open_results(path) as writer:
        for record in records:
            writer.append(record)


def test_the_latest_record_of_each_contender_is_drawn(tmp_path: Path) -> None:
    write(tmp_path / "bandwidth.jsonl", [bandwidth(512, 1e9), bandwidth(4096, 3e9), bandwidth(512, 2e9)])
    plot = plot_results.bandwidth(tmp_path)
    assert plot is not None
    assert [bar.label for bar in plot.bars] == ["memory, read by NumPy", "e2b at 512", "e2b at 4,096"]
    assert [sum(bar.parts.values()) for bar in plot.bars] == [21.0, 2.0, 3.0]
    assert plot_results.memory(tmp_path) is None


def test_records_of_another_commit_or_machine_are_not_drawn_beside_the_last(tmp_path: Path) -> None:
    others = [bandwidth(512, 1e9, commit="a"), bandwidth(2048, 1e9, cpu="other")]
    write(tmp_path / "bandwidth.jsonl", [*others, bandwidth(4096, 3e9)])
    plot = plot_results.bandwidth(tmp_path)
    assert plot is not None
    assert [bar.label for bar in plot.bars] == ["memory, read by NumPy", "e2b at 4,096"]


def test_rates_after_prompts_of_two_lengths_are_two_bars(tmp_path: Path) -> None:
    for prompts, wanted in ((["512"], ""), (["512", "3840"], " after 512")):
        scripts = [ScriptRecord("b", {"system": "ours", "runtime": "ours", "prompt": words}, {}) for words in prompts]
        write(tmp_path / "decode.jsonl", [changed({"decode_tokens_per_s": 9.0}, script) for script in scripts])
        plot = plot_results.decode(tmp_path)
        assert plot is not None and len(plot.bars) == len(prompts)
        assert plot.bars[0].label.partition("ours")[2] == wanted
        (tmp_path / "decode.jsonl").unlink()


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "bandwidth.jsonl", [bandwidth(512, 1e9), bandwidth(4096, 3e9)])
    plot_results.main(["--results", str(tmp_path)])
    first = (tmp_path / "bandwidth.svg").read_bytes()
    plot_results.main(["--results", str(tmp_path)])
    assert (tmp_path / "bandwidth.svg").read_bytes() == first
    assert [path.name for path in tmp_path.glob("*.svg")] == ["bandwidth.svg"]


def test_old_records_are_drawn_where_there_are_no_new_ones(tmp_path: Path) -> None:
    old = tmp_path / plot_results.OLD
    old.mkdir()
    line = (RESULTS / plot_results.OLD / "bandwidth.jsonl").read_text().splitlines()[-1]
    (old / "bandwidth.jsonl").write_text(f"{line}\n")
    plot = plot_results.bandwidth(tmp_path)
    assert plot is not None and len(plot.bars) == 2
    assert sum(plot.bars[1].parts.values()) == json.loads(line)["bytes_per_s"]["median"] / 1e9
    write(tmp_path / "bandwidth.jsonl", [bandwidth(512, 1e9)])
    plot = plot_results.bandwidth(tmp_path)
    assert plot is not None and plot.bars[1].label == "e2b at 512"


@pytest.mark.slow
def test_no_plot_of_the_benchmarks_is_stale(tmp_path: Path) -> None:
    """Only the texts are compared: another version of matplotlib draws the same plot in other bytes."""
    for name, plot in plot_results.plots(RESULTS).items():
        recorded = RESULTS / f"{name}.svg"
        assert _texts(recorded.read_bytes()) == _texts(svg(plot)), f"{name}: run python -m benchmarks.plot_results"


def _texts(drawn: bytes) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def test_divergences_are_drawn_over_the_bytes_that_a_token_reads(tmp_path: Path) -> None:
    def bundle(recipe: str, weights: str, size: float, divergence: float) -> BenchRecord:
        figures: Figures = {"weight_bytes": size, "books_kl_nats": divergence}
        script = ScriptRecord("b", {"recipe": recipe, "weights": weights}, {})
        record = changed(figures, script)
        return dataclasses.replace(record, runner="bench_calibration", tests={"books": "books_kl_nats"})

    records = [
        bundle("int4", "search", 5e6, 0.02),
        bundle("int2", "search", 3e6, 0.3),
        bundle("int4", "self", 5e6, 0.01),
        bundle("mix-4MB", "self", 4e6, 0.012),
    ]
    write(tmp_path / "calibration.jsonl", records)
    plot = plot_results.mixes(tmp_path)
    assert plot is not None
    every, fine = plot.panels
    assert list(every.lines) == ["search", "calibrated", "a type for each matrix"]
    assert (every.lines["search"].times_s, every.lines["search"].values) == ([3.0, 5.0], [0.3, 0.02])
    assert fine.lines["search"].values == [0.02], "the finer ones on a scale of their own"
    assert plot_results.mixes(tmp_path / "none") is None
