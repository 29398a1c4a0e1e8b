"""`gemma-edge bench` from end to end: this computer, an emulated device, and stand-ins for Google's programs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bucket_server import BucketServer
from result_records import record_of
from stand_ins import benchmark_model, litert_lm_main
from waiting import PATIENCE_S

from device_harness.bench.run import BenchRequest
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from gemma_edge.cli import main
from toolkit.base.files import hash_file
from toolkit.results.json_lines import read_results
from toolkit.results.record import BenchRecord

SMALL = ["-p", "16", "-n", "8", "-r", "2", "--interval", "0.02"]


@pytest.fixture(scope="module")
def device() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(isolation="folder")) as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))


def rows(captured: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.splitlines()]


def measured(captured: str) -> list[str]:
    """The table's lines of the tests that `SMALL` asks for."""
    lines = [line for line in captured.splitlines() if "pp16" in line or "tg8" in line]
    assert lines, captured
    return lines


@pytest.mark.slow
def test_a_bundle_is_measured_on_an_emulated_device_that_is_called_so_everywhere(
    device: Emulator, random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    argv = ["bench", str(random_bundle), "--device", device.serial, *SMALL, "--results", str(results)]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("| model")
    assert all("emulated" in line for line in measured(captured.out))
    assert f"{device.serial} is emulated: speeds are this computer's" in captured.err
    (record,) = read_results(results).records
    assert record.device.emulated and record.runner == "session" and len(record.iterations) == 2
    assert set(record.tests) == {"pp16", "tg8", "ttft16", "init", "pp16:first"}
    assert record.iterations[0].figures["decode_tokens_count"] == 8
    for first_s, rate in zip(record.values("ttft16"), record.values("pp16:first"), strict=True):
        assert first_s > 15 / rate, "the prefill of all but the last token is part of the time to the first"
    assert record.memory.peak is not None and record.memory.groups["libraries"].mapped_bytes > 0
    assert record.arguments[:3] == ("python3", "-m", "device_harness.runners.session.child")
    assert record.delegation is not None and record.delegation.source.startswith("LiteRT's profiler, one run of decode")
    assert 0 < (record.delegation.delegated_nodes or 0) < (record.delegation.nodes or 0)


@pytest.mark.parametrize("options", [["-p", "30", "-n", "20"], ["--context", "32"], ["--backend", "gpu"]])
def test_what_a_runner_cannot_do_is_found_before_anything_is_pushed(
    device: Emulator, random_bundle: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "never-pushed"
    shutil.copytree(random_bundle, bundle)
    assert main(["bench", str(bundle), "--device", device.serial, *options]) == 2
    assert "error: -" in capsys.readouterr().err
    assert not device.path("/data/local/tmp/gemma-edge/never-pushed").exists()


@pytest.mark.slow
def test_this_computer_is_measured_too(random_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "bench", str(random_bundle), "--host", *SMALL, "--size", "small", "--cold"]) == 0
    captured = capsys.readouterr()
    found = rows(captured.out)
    assert [row["test"] for row in found] == ["pp16", "tg8", "ttft16", "init", "pp16:first"]
    assert all(row["start"] == "cold" and row["size"] == "small" and row["n"] == 2 for row in found)
    assert all(row["median"] > 0 for row in found)
    assert "emulated" not in captured.out


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_results_are_printed_in_other_forms(
    device: Emulator, random_bundle: Path, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = ["--runner", "benchmark_model", "--binary", str(benchmark_model(tmp_path / "bin"))]
    way = ["--format", form] if form == "json" else ["-o", form]
    argv = ["bench", str(random_bundle), "--device", device.serial, "-r", "1", *way, *binary]
    assert main([*argv, "--signature", "text_decoder:decode"]) == 0
    out, err = capsys.readouterr()
    assert ("former name of --format" in err) == (form != "json")
    found = json.loads(out) if form == "json" else rows(out) if form == "jsonl" else out.splitlines()[1:]
    assert len(found) == 2 and "text_decoder:decode" in str(found[0])


def test_each_length_of_a_list_is_measured_and_its_lines_come_when_it_is_done(
    random_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    def measured(request: BenchRequest, *_: object, **__: object) -> Iterator[BenchRecord]:
        printed.append(capsys.readouterr().out)
        yield record_of([float(request.workload.prompt_tokens)])

    monkeypatch.setattr("gemma_edge.commands.bench.bench_records", measured)
    argv = ["bench", str(random_bundle), "--host", "-p", "8,16", "-n", "4,6", "--format"]
    assert main([*argv, "jsonl"]) == 0
    lines = [*printed[1:], capsys.readouterr().out]
    assert [row["median"] for line in lines for row in rows(line)] == [8, 8, 16, 16]
    assert main([*argv, "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


@pytest.mark.parametrize("words", [["-p", "8,8"], ["-p", "8,"], ["-o", "out.jsonl"], ["-o", "md", "--format", "csv"]])
def test_wrong_lists_and_forms_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "b", "--host", *words]) == 2
    assert capsys.readouterr().err.startswith("error: -")


@pytest.mark.slow
def test_a_bundle_is_exported_for_google_s_program(
    device: Emulator, random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    argv = ["bench", str(random_bundle), "--device", device.serial, *SMALL, "--results", str(results)]
    argv += [
        "--runner",
        "litert_lm_advanced_main",
        "--binary",
        str(litert_lm_main(tmp_path / "bin")),
        "--size",
        "small",
    ]
    assert main(argv) == 0
    (record,) = read_results(results).records
    assert (record.model.kind, record.model.name) == ("litertlm", "bundle-small")
    assert record.values("tg8") == pytest.approx((32.07, 32.07), rel=0.01)
    assert "ttft16" not in record.tests
    assert device.path("/data/local/tmp/gemma-edge/bundle-small.litertlm").is_file()


@pytest.mark.full
def test_a_program_of_google_s_is_downloaded_for_the_device_and_its_hashes_are_recorded(
    device: Emulator, random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = litert_lm_main(tmp_path / "published")
    results = tmp_path / "results.jsonl"
    argv = ["bench", str(random_bundle), "--device", device.serial, *SMALL, "--results", str(results)]
    argv += ["--runner", "litert_lm_advanced_main", "--binary-version", "latest"]
    with BucketServer() as server:
        for platform in ("android_x86_64", "android_arm64"):
            server.publish(published.parent, f"binaries/latest/{platform}/litert_lm/")
        assert main([*argv, "--binary-server", server.url]) == 0
    first = capsys.readouterr().err
    assert "downloading litert_lm_advanced_main latest (3 files, " in first and "is trusted as it is now" in first
    # The server is gone: what was kept is enough.
    assert main([*argv, "--binary-server", server.url]) == 0
    assert "downloading" not in capsys.readouterr().err
    records = read_results(results).records
    assert records[0].binaries == records[1].binaries
    names = [(binary.name, binary.version) for binary in records[0].binaries]
    assert names == [("litert_lm_advanced_main", "latest"), ("libGpu.so", None), ("libLiteRt.so", None)]
    assert records[0].binaries[0].sha256 == hash_file(published).sha256
    kept = next((tmp_path / "cache/binaries/latest").glob("*/litert_lm_advanced_main/libGpu.so"))
    kept.write_bytes(b"tampered")
    assert main([*argv, "--binary-server", server.url]) == 3
    assert f"error: {kept}: found sha256 " in capsys.readouterr().err


def test_a_download_that_fails_is_one_error_before_anything_is_pushed(
    device: Emulator, random_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(random_bundle), "--device", device.serial, "--runner", "benchmark_model"]
    with BucketServer() as server:
        monkeypatch.setenv("GEMMA_EDGE_BINARY_SERVER", server.url)
        assert main([*argv, "--binary-version", "2.2.0"]) == 3
    captured = capsys.readouterr()
    assert captured.out == "" and "give --binary PATH instead" in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith(f"error: {server.url}/litert/binaries/2.2.0/android_")


@pytest.mark.slow
def test_a_program_that_lies_here_is_held_against_the_hash_that_is_given(
    device: Emulator, random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = benchmark_model(tmp_path / "bin")
    argv = ["bench", str(random_bundle), "--device", device.serial, "--runner", "benchmark_model", "-r", "1"]
    argv += ["--binary", str(binary), "--signature", "text_decoder:decode", "--binary-sha256"]
    assert main([*argv, hash_file(binary).sha256]) == 0
    assert main([*argv, "0" * 64]) == 3
    assert f"error: {binary}: found sha256 " in capsys.readouterr().err


@pytest.mark.lm
def test_google_s_engine_runs_where_python_has_it(
    device: Emulator, random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    argv = ["bench", str(random_bundle), "--device", device.serial, *SMALL, "--runner", "litert_lm_python", "--cold"]
    assert main([*argv, "--results", str(results)]) == 0
    (record,) = read_results(results).records
    assert set(record.tests) == {"pp16", "tg8", "ttft16", "init"} and min(record.values("tg8")) > 0
    assert [binary.name for binary in record.binaries] == ["python3", "liblitert-lm.so"]
    assert record.model.kind == "litertlm"
    assert record.delegation is not None and record.delegation.source == "the log"
    assert 0 < (record.delegation.delegated_nodes or 0) < (record.delegation.nodes or 0)
    assert record.context == 40 and "--context" in record.arguments


@pytest.mark.full
def test_a_low_battery_is_flagged_in_the_table_and_the_record_or_refused(
    device: Emulator, random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    argv = ["bench", str(random_bundle), "--device", device.serial, *SMALL, "--cold", "--results", str(results)]
    device.set_faults(Faults(battery_percent=30))
    try:
        assert main([*argv, "--min-battery", "50"]) == 0
        captured = capsys.readouterr()
        assert all("low battery" in line for line in measured(captured.out))
        assert captured.err.count("battery 30 %; the results are flagged") == 1
        assert main([*argv, "--min-battery", "50", "--on-low-power", "refuse"]) == 3
        assert "power: found battery 30 %, wanted a battery of at least 50 %" in capsys.readouterr().err
        assert main([*argv, "--on-low-power", "refuse"]) == 0
    finally:
        device.set_faults(Faults())
    assert [record.flags for record in read_results(results).records] == [("low_battery",), ()]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--runner", "benchmark_model"], "--binary: the runner needs the program benchmark_model"),
        (["--binary", "x"], "--binary: cannot be used with --runner session, only with "),
        (["--binary-server", "https://x"], "--binary-server: cannot be used with --runner session, only"),
        (["--runner", "benchmark_model", "--binary-version", "latest"], "--binary-version: cannot be used with --host"),
        (["--runner", "litert_lm_main", "--binary-version", "../x"], "--binary-version: found '../x'"),
        (["--runner", "litert_lm_main", "--binary-version", "1", "--binary-server", "http://x"], "wanted https://HOST"),
        (
            ["--runner", "litert_lm_main", "--binary", "x", "--binary-server", "https://x"],
            "--binary-server: cannot be used with --binary",
        ),
        (["--runner", "litert_lm_main", "--binary", "x", "--binary-sha256", "abc"], "--binary-sha256: found 'abc'"),
        (["-p", "30", "-n", "20"], "-p and -n: found 50 tokens, wanted at most 40"),
        (["--size", "huge"], "huge"),
        (["--backend", "npu"], "--backend: found npu, wanted cpu"),
        (["--results", "no/such/folder/x.jsonl"], "no/such/folder/x.jsonl: there is no directory"),
        (["--interval", "0"], "--interval: found 0, wanted at least 0.01 seconds"),
        (["--timeout", "0"], "--timeout: found 0, wanted a number above 0"),
        (["--timeout=-1"], "--timeout: found -1, wanted a number above 0"),
        (["--min-battery", "101"], "--min-battery: found 101, wanted 0 to 100"),
        (["--context", "0"], "--context"),
        (["--context", "32"], "--context: found 32, wanted 40, which the bundle's graphs are made for"),
        (["--runner", "flash_probe", "--context", "40"], "--context: cannot be used with flash_probe"),
        (["--runner", "flash_probe", "--threads", "4"], "--threads: cannot be used with flash_probe"),
        (["--runner", "flash_probe", "--backend", "gpu"], "--backend: cannot be used with flash_probe"),
        (["--runner", "flash_probe", "-p", "512"], "-p and -n: cannot be used with --runner flash_probe, which has no"),
        (["--runner", "benchmark_model", "-n", "64"], "-p and -n: cannot be used with --runner benchmark_model"),
        (["--stay-awake"], "--stay-awake: found this computer"),
    ],
)
def test_wrong_use_is_one_error(
    random_bundle: Path, options: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(random_bundle), "--host", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and wanted in captured.err.splitlines()[-1]


def test_every_length_of_a_list_is_judged_before_the_first_is_measured(
    random_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_harness.bench.run.run_job", None)
    assert main(["bench", str(random_bundle), "--host", "-p", "8,100000", "-n", "4", "--idle-seconds", "0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "found 100004 tokens, wanted at most" in captured.err


@pytest.mark.slow
def test_a_torn_results_file_is_an_error_before_anything_is_measured(
    random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text('{"format"')
    argv = ["bench", str(random_bundle), "--host", *SMALL, "--results", str(results)]
    assert main(argv) == 2
    assert "9 bytes without a line end" in capsys.readouterr().err
    assert main([*argv, "--drop-torn-line"]) == 0
    assert len(read_results(results).records) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupt_prints_and_keeps_what_was_measured(
    device: Emulator, random_bundle: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    results = tmp_path / "results.jsonl"
    argv = [sys.executable, "-m", "gemma_edge", "bench", str(random_bundle), "--device", device.serial]
    argv += ["-p", "16", "-n", "8", "-r", "500", "--results", str(results)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if " 2/500: " in line:
                break
        os.kill(running.pid, number)
        out, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == code and err.splitlines()[-1] == word
    assert "pp16" in out and "interrupted" in out
    (record,) = read_results(results).records
    assert "interrupted" in record.flags and len(record.iterations) >= 2
