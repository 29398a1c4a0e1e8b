"""`gemma-edge demo --device emulated`: the whole device side, from a checkpoint to a page."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from gemma_edge.cli import main
from toolkit.results.json_lines import read_results


@pytest.mark.slow
def test_the_tiny_model_is_pushed_measured_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    page, results = tmp_path / "demo.html", tmp_path / "results.jsonl"
    assert main(["demo", "--device", "emulated", "--report", str(page), "--results", str(results), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    records = read_results(results).records
    assert result["emulated"] and result["records"] == len(records)
    assert all(record.device.emulated and "interrupted" not in record.flags for record in records)
    runs = [(record.runner, record.model.size, record.start) for record in records]
    assert runs[:4] == [
        ("session", "large", "warm"), ("session", "mid-narrow", "warm"), ("session", "small", "warm"),
        ("session", "large", "cold"),
    ]  # fmt: skip
    probed = find_spec("ziglang") is not None
    assert {runner for runner, _, _ in runs[4:]} == {
        *["flash_probe"] * probed, *["litert_lm_python"] * (find_spec("litert_lm") is not None)
    }  # fmt: skip
    for record in records:
        assert all(len(record.values(test)) == 3 and min(record.values(test)) > 0 for test in record.tests)
        assert record.memory.peak is not None or record.runner == "flash_probe"
    for record in records:
        dropped = ["model_resident_bytes" in item.figures for item in record.iterations]
        assert all(dropped) == any(dropped) == (record.start == "cold" and record.runner == "session" and probed)
    text = records[0].memory.groups["text"]
    assert text.mapped_bytes > 1_000_000
    html = page.read_text()
    assert "emulated" in html and "http://" not in html.replace("http://www.w3.org", "")


def test_a_page_needs_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--report", "x.html"]) == 2
    assert "--report: there is nothing to measure without --device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            ["--device", "emulated", "--report", "no/such/folder/x.html"],
            "no/such/folder/x.html, --report: there is no directory",
        ),
        (["--device", "emulated", "--results", "no/such/folder/x.jsonl"], "no/such/folder/x.jsonl: no such file"),
        (["--device", "no-such-device"], "device no-such-device: not HOST:PORT, and not on USB (there: none)"),
    ],
)
def test_what_cannot_be_written_or_reached_is_found_before_anything_takes_its_time(
    options: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and wanted in captured.err
