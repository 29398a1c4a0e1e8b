"""Traces by the emulated device's perfetto, and what happens if there can be none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from device_harness.adb.devices import connect
from device_harness.adb.faults import ConnectionLost
from device_harness.adb.shell import ShellResult
from device_harness.bench.power import find_power_source
from device_harness.bench.process import ProcessRun
from device_harness.bench.trace import take_trace
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from device_harness.emulator.power import RAILS
from device_harness.emulator.userland import Isolation
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host
from device_harness.runners.interface import Reading
from toolkit.base.errors import EnvironmentFault
from toolkit.base.files import hash_file
from toolkit.results.figures import known_figures
from toolkit.results.record import TraceEnergy, TraceRecord

CONFIG = Path(__file__).parents[3] / "device_harness/bench/trace_config.pbtx"
FOLDER = "/data/misc/perfetto-traces"


@pytest.fixture
def device(isolation: Isolation) -> Iterator[Emulator]:
    """In both kinds of userland: in a sandbox a process that has ended may stay as a zombie."""
    with Emulator(EmulatorSettings(isolation=isolation)) as running:
        yield running


@pytest.fixture
def there(device: Emulator) -> Iterator[AdbDevice]:
    with connect(device.serial) as transport:
        yield AdbDevice(transport)


RUN = ProcessRun(Reading({}), 0.0, 1.0, (), sampler_failed=False)
NO_RAILS = TraceEnergy({}, {}, "the trace has no power rails")


def traced(
    machine: AdbDevice, target: Path, notes: list[str] | None = None, run: Callable[[], ProcessRun] = lambda: RUN
) -> TraceRecord:
    told = [] if notes is None else notes
    return take_trace(machine, run, target=target, limit_s=60, note=told.append)


def running(machine: AdbDevice) -> str:
    return machine.shell(
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\000' ' ' | grep -o 'perfett[o] --back'", timeout=20
    ).stdout


@pytest.mark.slow
def test_a_trace_is_kept_beside_the_results_and_nowhere_else(
    device: Emulator, there: AdbDevice, tmp_path: Path
) -> None:
    target = tmp_path / "r.traces" / "a.perfetto-trace"
    during: list[str] = []
    notes: list[str] = []

    def run() -> ProcessRun:
        during.append(running(there))
        return RUN

    record = traced(there, target, notes, run)
    assert set(during[0].splitlines()) == {"perfetto --back"}, "it records while the run lasts"
    assert target.read_bytes() == b"\n\0"
    assert record == TraceRecord("a.perfetto-trace", "r.traces", hash_file(target).sha256, 2, None, NO_RAILS)
    assert notes == [f"{there.serial}: one more run is traced, unmeasured"]
    assert list(device.path(FOLDER).iterdir()) == [] and running(there) == ""


@pytest.mark.slow
def test_power_rails_that_only_perfetto_may_read_give_joules(
    device: Emulator, there: AdbDevice, tmp_path: Path
) -> None:
    device.set_faults(Faults(power="hidden"))
    assert find_power_source(there).kind == "none"

    def uptime() -> float:
        return float(there.shell("cat /proc/uptime", timeout=20).stdout.split()[0])

    def run(seconds: float) -> ProcessRun:
        reads = [uptime()]
        while reads[-1] < reads[0] + seconds:
            reads.append(uptime())
        begin, end = reads[0] + 0.3, reads[-1] - 0.3
        figures = known_figures({"prefill_tokens_count": 8.0, "decode_tokens_count": 4.0}, "test")
        middle = (begin + end) / 2
        phases = {"prompt": (begin, middle), "decode": (middle, end)}
        return ProcessRun(Reading(figures, None, begin, end, phases), begin, end, (), sampler_failed=False)

    notes: list[str] = []
    for seconds in (1.5, 6.0, 24.0):  # a busy computer plays fewer readings in a second
        energy = traced(there, tmp_path / f"r.traces/{seconds}", notes, partial(run, seconds)).energy
        assert energy is not None
        if energy.unavailable is None:
            break
        assert energy.unavailable.startswith("too short")
    assert energy is not None and energy.unavailable is None, energy
    parts = energy.figures["prompt_joules"], energy.figures["decode_joules"]
    assert sum(parts) == pytest.approx(energy.figures["energy_joules"]) and min(parts) > 0
    assert energy.figures["decode_joules_per_token"] == pytest.approx(parts[1] / 4)
    assert set(energy.rails_joules) == set(RAILS)
    assert "J in the traced run, by power rails" in notes[-1]


def test_a_trace_that_is_none_is_kept_with_the_reason(device: Emulator, there: AdbDevice, tmp_path: Path) -> None:
    program = "(trap 'echo x > $6; exit' TERM; while :; do sleep 0.1; done) </dev/null >/dev/null 2>&1 & echo $!"
    device.path("/system/bin/perfetto").write_text(f"#!/bin/sh\n{program}\n")
    record = traced(there, tmp_path / "x.traces" / "a")
    assert record.energy is not None and record.energy.unavailable is not None
    assert "Perfetto's format" in record.energy.unavailable or "no power rails" in record.energy.unavailable


def test_a_device_without_perfetto_says_so(device: Emulator, there: AdbDevice, tmp_path: Path) -> None:
    device.path("/system/bin/perfetto").unlink()
    notes: list[str] = []
    record = traced(there, tmp_path / "x.traces/a", notes)
    assert record == TraceRecord(None, None, None, None, "the device has no perfetto")
    assert notes == [f"{there.serial}: no trace: the device has no perfetto"]
    assert not (tmp_path / "x.traces").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo 'no permission' >&2; exit 1", "perfetto does not start (exit code 1): no permission"),
        ("echo started", "perfetto does not start (exit code 0): started"),
        (
            "(trap ': > $6; exit' TERM; while :; do sleep 0.1; done) </dev/null >/dev/null 2>&1 & echo $!",
            "an empty trace",
        ),
        ("(trap 'exit' TERM; while :; do sleep 0.1; done) </dev/null >/dev/null 2>&1 & echo $!", "tracing failed: "),
    ],
)
def test_a_perfetto_that_fails_is_a_reason_and_no_error(
    device: Emulator, there: AdbDevice, tmp_path: Path, program: str, reason: str
) -> None:
    device.path("/system/bin/perfetto").write_text(f"#!/bin/sh\n{program}\n")
    record = traced(there, tmp_path / "x.traces" / "a")
    assert record.file is None and reason in (record.unavailable or "")
    assert not list(tmp_path.rglob("a*"))


def test_a_run_that_fails_or_is_interrupted_ends_perfetto(there: AdbDevice, tmp_path: Path) -> None:
    def fail() -> ProcessRun:
        raise EnvironmentFault("runner", found="exit code 1")

    def interrupt() -> ProcessRun:
        raise KeyboardInterrupt

    record = traced(there, tmp_path / "x.traces" / "a", run=fail)
    assert record.unavailable == "tracing failed: runner: exit code 1" and running(there) == ""
    with pytest.raises(KeyboardInterrupt):
        traced(there, tmp_path / "x.traces" / "a", run=interrupt)
    assert running(there) == ""


def test_this_computer_has_no_perfetto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = take_trace(Host(), lambda: RUN, target=tmp_path / "t" / "a", limit_s=1, note=lambda text: None)
    assert record.unavailable == "the device has no perfetto"


def test_the_config_names_what_is_promised_and_is_balanced() -> None:
    text = CONFIG.read_text()
    for name in ("sched/sched_switch", "power/cpu_frequency", "android.power", "collect_power_rails: true", "meminfo"):
        assert name in text
    assert text.count("{") == text.count("}") and re.search(r"duration_ms: @DURATION_MS@\n", text)


class Midway(AdbDevice):
    """Ctrl-C comes while the trace is fetched: until it is recovered, its connection can do nothing."""

    broken = recovers = False

    def fetch_file(self, path: str, target: Path, *, most_bytes: int) -> int:
        self.broken = True
        raise KeyboardInterrupt

    def recover(self, *, timeout: float) -> None:
        if not self.recovers:
            raise EnvironmentFault("adb", found="no answer")
        super().recover(timeout=timeout)
        self.broken = False

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        if self.broken:
            raise ConnectionLost("adb", found="in the middle of a message")
        return super().shell(command, timeout=timeout)


@pytest.mark.parametrize("recovers", [True, False])
def test_an_interrupt_while_the_trace_is_fetched_leaves_nothing_or_says_where(
    recovers: bool, folder_device: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(folder_device.serial) as transport:
        machine = Midway(transport)
        machine.recovers = recovers
        with pytest.raises(KeyboardInterrupt):
            traced(machine, tmp_path / "x.traces" / "interrupted")
        left = folder_device.path(f"{FOLDER}/interrupted")
        assert left.exists() is not recovers
        assert (f"run this on it: rm -f {FOLDER}/interrupted" in caplog.text) is not recovers
        left.unlink(missing_ok=True)
