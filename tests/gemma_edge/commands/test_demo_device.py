"""`gemma-edge demo --device emulated`: the whole device side, from a checkpoint to a page."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from adbd import Adbd, fetch
from debian import Unavailable

from gemma_edge import device_demo
from gemma_edge.cli import main
from toolkit.results.json_lines import read_results


@pytest.mark.full
def test_the_tiny_model_is_pushed_measured_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    page, results = tmp_path / "demo.html", tmp_path / "results.jsonl"
    assert main(["demo", "--device", "emulated", "--report", str(page), "--results", str(results), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    records = read_results(results).records
    assert result["emulated"] and result["records"] == len(records)
    assert "session" not in result["left_out"]
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


@pytest.mark.full
def test_the_tiny_gemma_4_is_measured_and_a_runner_that_it_cannot_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends its answer at once in the benchmark of Google's engine, whose prompt is no text."""
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    page = tmp_path / "demo.html"
    assert main(["demo", "--model", "gemma4", "--device", "emulated", "--report", str(page), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["runners"][0] == "session" and page.exists()
    if find_spec("litert_lm") is not None:
        assert "128 and 0 tokens" in result["left_out"]["litert_lm_python"]


@pytest.mark.full
@pytest.mark.parametrize("has_compiler", [False, True])
def test_on_a_device_without_python_the_rest_is_measured_and_what_is_left_out_is_said(
    has_compiler: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    if has_compiler and find_spec("ziglang") is None:
        pytest.skip("needs ziglang (pip install 'gemma-edge[probe]')")
    if not has_compiler:
        monkeypatch.setattr(device_demo, "find_spec", lambda name: None if name == "ziglang" else find_spec(name))
    page = tmp_path / "demo.html"
    try:
        with Adbd(fetch()) as device:
            assert main(["demo", "--device", device.serial, "--report", str(page), "--json"]) == 0
            assert not list(device.path("/data/local/tmp/gemma-edge").glob("flash_probe-*"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert {"session", "litert_lm_python"} <= result["left_out"].keys()
    assert "not measured by session: the device has no python3" in captured.err
    if has_compiler:
        assert result["runners"] == ["native", "flash_probe"] and not result["emulated"]
        assert "Not measured by session: the device has no python3." in page.read_text()
    else:
        assert result["left_out"]["native"].startswith("ziglang is missing")
        assert result["report"] is None and result["records"] == 0 and not page.exists()


@pytest.mark.parametrize(
    "words",
    [
        "--prompt x",
        "--threads 1",
        "--weight-cache off",
        "--backend gpu",
        "--activations fp16",
        "--ple ram",
        "--ple-cache-mb 1",
    ],
)
def test_what_is_for_running_here_is_refused_with_a_device(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--device", "emulated", *words.split()]) == 2
    assert f"{words.split()[0]}: it cannot be used with --device; leave it out" in capsys.readouterr().err


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
        (
            ["--device", "no-such-device"],
            "device no-such-device: no device of this name (connected: none), and not HOST:PORT",
        ),
        (
            ["--device", "emulated", "--results", "no/such/folder/x.jsonl"],
            "no/such/folder/x.jsonl: there is no directory",
        ),
    ],
)
def test_what_cannot_be_written_or_reached_is_found_before_anything_takes_its_time(
    options: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and wanted in captured.err
