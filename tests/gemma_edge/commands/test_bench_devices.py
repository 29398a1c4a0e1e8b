"""`gemma-edge bench` on several devices at once: emulated ones of different speeds, and one that breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from result_records import record_of
from waiting import PATIENCE_S

import gemma_edge
from device_harness.adb.devices import Device
from device_harness.bench.run import BenchRequest, BenchSettings
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from device_harness.runners.spec import BenchListener, RunnerSpec
from gemma_edge.api import bench_devices
from gemma_edge.api import devices as api
from gemma_edge.api.report import report
from gemma_edge.cli import main
from toolkit.base.errors import EnvironmentFault, QualityError, ToolkitError, UsageError
from toolkit.report.devices_table import devices_table
from toolkit.report.numbered_record import NumberedRecord
from toolkit.results.json_lines import read_results

SMALL = ["-p", "16", "-n", "8", "-r", "2", "--interval", "0.05", "--cold"]


@pytest.fixture(scope="module")
def devices() -> Iterator[list[Emulator]]:
    settings = EmulatorSettings(isolation="folder")
    with Emulator(settings) as one, Emulator(settings) as two:
        yield [one, two]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def named(devices: list[Emulator]) -> list[str]:
    return [word for device in devices for word in ("--device", device.serial)]


@pytest.mark.slow
def test_one_that_breaks_does_not_end_the_others_and_one_file_makes_one_page(
    devices: list[Emulator], random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    devices[1].set_faults(Faults(thermal_status=2))
    try:
        gone = ["--device", "127.0.0.1:1"]
        options = ["--results", str(results), "--gate-timeout", "0.2"]
        assert main(["bench", str(random_bundle), *named(devices), *gone, *SMALL, *options]) == 3
    finally:
        devices[1].set_faults(Faults())
    captured = capsys.readouterr()
    assert "warning: 127.0.0.1:1 failed, the others continue: 127.0.0.1:1" in captured.err
    assert captured.err.splitlines()[-1].startswith("error: 127.0.0.1:1")
    records = {record.device_serial: record for record in read_results(results).records}
    assert set(records) == {device.serial for device in devices}
    assert "throttled" not in records[devices[0].serial].flags, "each has its own flags"
    assert {"throttled", "gate_timeout"} <= set(records[devices[1].serial].flags)
    for device in devices:
        assert captured.out.count(f"gemma-edge emulated device {device.serial}") >= 4
        assert f"{device.serial} session 2/2: pp16" in captured.err
    page = report([results], tmp_path / "report.html").path.read_text()
    assert "Devices compared" in page and page.count(f"gemma-edge emulated device {devices[1].serial}") > 4


@pytest.mark.full
def test_an_interrupt_ends_all_and_keeps_what_was_measured(
    devices: list[Emulator], random_bundle: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results.jsonl"
    argv = [sys.executable, "-m", "gemma_edge", "bench", str(random_bundle), *named(devices)]
    argv += ["-p", "16", "-n", "8", "-r", "500", "--cold", "--results", str(results)]
    waiting = {device.serial for device in devices}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            waiting -= {serial for serial in waiting if f"{serial} session 1/500: " in line}
            if not waiting:
                break
        os.kill(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130 and err.splitlines()[-1] == "interrupted"
    records = read_results(results).records
    assert {record.device_serial for record in records} == {device.serial for device in devices}
    assert all("interrupted" in record.flags and record.iterations for record in records)
    assert out.count("tg8") == 2


@pytest.mark.full
def test_a_trace_is_beside_the_results_and_on_the_page(
    devices: list[Emulator], random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "r.jsonl"
    argv = ["bench", str(random_bundle), "--device", devices[0].serial, *SMALL, "--results", str(results), "--trace"]
    assert main(argv) == 0
    (record,) = read_results(results).records
    assert record.trace is not None and record.trace.file is not None and len(record.iterations) == 2
    assert (tmp_path / "r.traces" / record.trace.file).stat().st_size == record.trace.bytes
    (tmp_path / "pages").mkdir()
    page = report([results], tmp_path / "pages/report.html").path.read_text()
    assert f'href="../r.traces/{record.trace.file}"' in page
    assert main([*argv[:-3], "--trace"]) == 2
    assert "--trace: no results file to store the trace next to; give --results FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_from_python_each_device_is_told_apart_with_the_runner_that_it_has(
    devices: list[Emulator], random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []

    def listener(device: str, spec: RunnerSpec) -> BenchListener:
        made.append((device, spec.name))
        return BenchListener()

    serial, gone = devices[0].serial, "127.0.0.1:1"
    sizes = {"prompt_tokens": 16, "generated_tokens": 8, "repetitions": 1, "cold": True}
    found = gemma_edge.bench_devices(random_bundle, [serial, gone], listener=listener, **sizes)  # type: ignore[arg-type]
    records = [item for item in found if not isinstance(item, gemma_edge.BenchFailure)]
    failures = [item for item in found if isinstance(item, gemma_edge.BenchFailure)]
    assert [(record.device_serial, record.runner) for record in records] == [(serial, "session")] == made[1:]
    assert [failure.device for failure in failures] == [gone]
    with pytest.raises(UsageError, match="no device"):
        gemma_edge.bench_devices(random_bundle, [])


def test_a_phone_is_told_of_with_the_runner_of_phones(monkeypatch: pytest.MonkeyPatch, random_bundle: Path) -> None:
    """The process of a device says which runner it has; nobody can know before it has been asked."""
    events = [("A", "warn", b'"slow"'), ("A", "runner", b'"native"'), ("A", "note", b'"x"')]
    monkeypatch.setattr(bench_devices._Children, "__enter__", lambda self: self)
    monkeypatch.setattr(bench_devices._Children, "events", lambda self: iter(events))
    told: list[str] = []

    class Listener(BenchListener):
        def note(self, text: str) -> None:
            told.append(text)

    def listener(device: str, spec: RunnerSpec) -> BenchListener:
        told.append(f"{device} {spec.name}")
        return Listener()

    assert list(bench_devices.bench_each(BenchRequest(random_bundle), BenchSettings(), ["A"], listener=listener)) == []
    assert told[1:] == ["A native", "A: x"], "the first listener tells how the model is read"


@pytest.mark.parametrize("kind", [QualityError, UsageError, EnvironmentFault])
def test_an_error_of_a_device_keeps_its_exit_code(kind: type[ToolkitError]) -> None:
    told = kind("memory", found="too little").to_json()
    error = bench_devices._error("R58M123", {**told, "exit_code": kind.exit_code})
    assert (type(error), str(error)) == (kind, "R58M123 memory: too little")


def test_a_warning_of_one_device_stays_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    class Noting(BenchListener):
        def note(self, text: str) -> None:
            notes.append(text)

    told = bench_devices._Told("R58M123", Noting())
    for word in ("note", "warn"):
        told.tell(word, f"a {word}")
    assert notes == ["R58M123: a note"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", "R58M123: a warn")]


def test_a_model_that_is_not_there_is_one_error_before_any_device_is_asked(
    devices: list[Emulator], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tmp_path / "none"), *named(devices)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_device_twice_and_all_beside_a_name_are_refused(
    random_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(random_bundle), "--device", "localhost:1", "--device", "localhost:1"]) == 2
    assert "--device: the same device twice" in capsys.readouterr().err
    for verb in ("bench", "push"):
        assert main([verb, str(random_bundle), "--device", "all", "--device", "localhost:1"]) == 2
        assert "--device: found all together with another device, wanted one or the other" in capsys.readouterr().err


def test_all_are_those_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        Device("A", "usb", "device"),
        Device("B", "usb", "unauthorized", "unlock it"),
        Device("C:5555", "tcp", "device"),
        Device("adb-A-vIqgVe._adb-tls-connect._tcp", "tcp", "device"),
    )
    monkeypatch.setattr(api, "devices", lambda: listed)
    warnings: list[str] = []
    assert api.chosen_devices(["all"], warnings.append) == ("A", "C:5555")
    assert len(warnings) == 2 and "B" in warnings[0] and "unlock it" in warnings[0]
    assert warnings[1] == "left out adb-A-vIqgVe._adb-tls-connect._tcp: the same device as A"
    assert api.chosen_devices([]) == () and api.chosen_devices(["X"]) == ("X",)
    monkeypatch.setattr(api, "devices", lambda: listed[1:2])
    with pytest.raises(EnvironmentFault, match="no device that can be used"):
        api.chosen_devices(["all"])


def test_devices_stand_beside_each_other_the_best_first() -> None:
    fast, slow, init = (
        record_of(values, device_serial=serial, **fields)
        for values, serial, fields in (
            ([20.0, 20.1, 19.9, 20.0, 20.2], "FAST", {}),
            ([10.0, 10.1, 9.9, 10.0, 10.2], "SLOW", {"flags": ("throttled",)}),
            ([1.0], "ELSE", {"backend": "gpu"}),
        )
    )
    table = devices_table([NumberedRecord(i, record) for i, record in enumerate((slow, fast, init), 1)])
    assert table is not None and len(table.rows) == 2, "a configuration of one device has nothing to compare"
    cells = [{heading: cell for heading, cell in zip(table.headings, row, strict=True)} for row in table.rows]
    assert [row["device"].text.rpartition(" ")[2] for row in cells] == ["FAST", "SLOW"]
    assert cells[0]["to the best"].text == "best" and cells[1]["to the best"].text == "0.50 x"
    assert cells[1]["95 % interval"].text == "0.49 to 0.51" and "throttled" in cells[1]["device"].flags
    assert devices_table([NumberedRecord(1, fast)]) is None


@pytest.mark.parametrize("restores", [True, False])
def test_an_error_interrupts_the_processes_so_that_they_put_settings_back(
    restores: bool, random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "import signal, time\n"
        f"if not {restores}: signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "try:\n    print('note 1', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.1)\n    open('restored', 'w').close()\n"
    )
    (tmp_path / "child_that_restores.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_devices, "_CHILD", "child_that_restores")
    if not restores:
        monkeypatch.setattr(bench_devices, "_END_S", 0.1)
    children = bench_devices._Children(BenchRequest(random_bundle), BenchSettings(), ["A"])
    with pytest.raises(EnvironmentFault), children:
        assert next(children.events()) == ("A", "note", b"1\n")
        raise EnvironmentFault("results", found="no space")
    assert (tmp_path / "restored").exists() is restores
    assert all(child.poll() is not None for child in children._running.values())
