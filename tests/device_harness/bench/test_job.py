"""The measurement of a job, with small programs in place of runners, on an emulated device and on this computer."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from adbd import Adbd, Peer
from stand_ins import SAMPLED
from waiting import wait_until, when

from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import ConnectionLost, Transport
from device_harness.bench.job import JobOutcome, JobSettings, Subject, run_job
from device_harness.bench.readiness import ReadinessSettings
from device_harness.bench.state import read_device
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from device_harness.machines.device import AdbDevice, connected_device
from device_harness.machines.host import Host
from device_harness.machines.machine import Machine
from device_harness.runners.interface import Job, Reading, Workload
from toolkit.base.errors import EnvironmentFault, ResultsError
from toolkit.results.json_lines import dump_record, parse_record
from toolkit.results.record import BenchRecord, Figures, ModelRecord

MODEL = ModelRecord("stand-in", "bundle", None, "0" * 64, 1, None)
QUICK = ReadinessSettings(timeout_s=0.3, poll_s=0.1)


def rate(output: str) -> Reading:
    found = re.findall(r"rate ([\d.]+)", output)
    if len(found) != 1:
        raise EnvironmentFault("stand-in", found=f"{len(found)} rates", wanted="one")
    return Reading({"decode_tokens_per_s": float(found[0])})


def job(script: str, **changes: Any) -> Job:
    plain: dict[str, Any] = {"tests": {"tg8": "decode_tokens_per_s"}, "read": rate, "model": MODEL, "binaries": ()}
    return Job(argv=("sh", "-c", script), **{**plain, **changes})


def bench(
    machine: Machine,
    what: Job,
    *,
    repetitions: int = 3,
    progress: Callable[..., None] | None = None,
    note: Callable[[str], None] = lambda text: None,
    **workload: Any,
) -> JobOutcome:
    settings = JobSettings(repetitions=repetitions, readiness=QUICK, interval_s=0.05)
    subject = Subject(machine, read_device(machine), "stand_in", what)
    tell = progress or (lambda done, total, figures: None)
    return run_job(subject, Workload(**workload), settings, progress=tell, note=note)


def whole(outcome: JobOutcome) -> BenchRecord:
    assert outcome.ended_by is None and outcome.record is not None
    assert parse_record(dump_record(outcome.record), "record") == outcome.record
    return outcome.record


def is_running(mark: str, *, begins: bool = False) -> bool:
    """Whether any process of this computer has the mark among its arguments; `begins`: is that command itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" "))
    return any(line.startswith(mark.encode()) if begins else mark.encode() in line for line in found)


@pytest.fixture
def counter(folder_device: Emulator) -> Path:
    """A file that stand-ins count in."""
    path = folder_device.path(COUNTER)
    path.unlink(missing_ok=True)
    folder_device.set_faults(Faults())
    return path


COUNTER = "/data/local/tmp/counter"
COUNT = f"c={COUNTER}; echo $$ >> $c; n=$(wc -l < $c); "
"""Writes the process's id, so that the file has a line for each process that has begun."""


def is_sampled(device: Peer, number: int) -> bool:
    """Whether so many processes have begun, and the sampler watches the last of them."""
    counter = device.path(COUNTER)
    begun = counter.read_text().split() if counter.exists() else []
    return len(begun) >= number and is_running(f"/proc/{begun[-1]}/smaps_rollup")


@pytest.mark.slow
def test_each_iteration_is_a_process_of_its_own_after_an_unmeasured_one(machine: AdbDevice, counter: Path) -> None:
    record = whole(bench(machine, job(COUNT + f'echo "rate $n"; {SAMPLED}')))
    assert record.values("tg8") == (2, 3, 4)
    assert (record.runner, record.start, record.device.emulated) == ("stand_in", "warm", True)
    assert record.arguments[:2] == ("sh", "-c")
    times = [(item.begin_s or 0.0, item.end_s or 0.0) for item in record.iterations]
    flat = [moment for both in times for moment in both]
    assert flat == sorted(flat) and flat[0] > 0, "one after the other, and after the unmeasured one"
    assert record.memory.peak is not None and record.samples.columns["rss_bytes"]
    assert record.state_before is not None and record.state_after is not None


@pytest.mark.slow
def test_a_cold_start_goes_without_the_weight_cache_and_a_warm_one_keeps_it(
    folder_device: Emulator, machine: AdbDevice, counter: Path
) -> None:
    cache = folder_device.path("/data/local/tmp/m.xnnpack_cache")
    script = (
        "f=/data/local/tmp/m.xnnpack_cache; if [ -e $f ]; then echo 'rate 1'; else echo x > $f; echo 'rate 100'; fi"
    )
    what = job(script, weight_caches=("/data/local/tmp/m.xnnpack*",))
    cache.unlink(missing_ok=True)
    assert whole(bench(machine, what)).values("tg8") == (1, 1, 1)
    assert whole(bench(machine, what, start="cold")).values("tg8") == (100, 100, 100)


def test_the_environment_of_a_job_reaches_its_process_and_the_record(machine: AdbDevice) -> None:
    record = whole(bench(machine, job("echo rate $SPEED", environment={"SPEED": "17"}), repetitions=1))
    assert record.values("tg8") == (17,)
    assert record.arguments[:2] == ("env", "SPEED=17")


def test_weights_that_were_packed_in_memory_are_flagged_and_the_reason_is_told(machine: AdbDevice) -> None:
    def read(output: str) -> Reading:
        return replace(rate(output), weight_cache_fault="no room")

    notes: list[str] = []
    record = whole(bench(machine, job("echo rate 5", read=read), repetitions=1, note=notes.append))
    assert "weights_in_memory" in record.flags and notes[-1].endswith("because they cannot be kept: no room")


def test_figures_that_fall_steadily_are_flagged_as_drift(machine: AdbDevice, counter: Path) -> None:
    record = whole(bench(machine, job(COUNT + 'echo "rate $((100 - 5 * n))"'), repetitions=6))
    assert "drifted" in record.flags
    assert record.drift["tg8"].p_value < 0.01 and record.drift["tg8"].change_fraction < -0.2


@pytest.mark.slow
def test_a_device_that_begins_to_throttle_is_flagged(folder_device: Emulator, machine: AdbDevice) -> None:
    def heat(done: int, total: int, figures: object) -> None:
        if done == 1:
            folder_device.set_faults(Faults(thermal_status=2))

    record = whole(bench(machine, job("echo rate 5"), progress=heat))
    folder_device.set_faults(Faults())
    assert {"throttled", "gate_timeout"} <= set(record.flags)
    assert [item.thermal_status for item in record.iterations] == [0, 2, 2]
    assert record.iterations[1].gate_wait_s > 0


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_measured_and_leaves_nothing_running(
    folder_device: Emulator, machine: AdbDevice, counter: Path
) -> None:
    mark = f"sleep 7200.{time.monotonic_ns()}"
    script = COUNT + f'echo "rate $n"; [ $n -lt 4 ] || {{ {mark} & {mark}; }}'

    def interrupt(done: int, total: int, figures: object) -> None:
        if done == 2:
            # To this thread, which waits for the device: as a terminal's Ctrl-C does.
            main = threading.main_thread().ident
            assert main is not None
            when(lambda: is_sampled(folder_device, 4), lambda: signal.pthread_kill(main, signal.SIGINT))

    outcome = bench(machine, job(script), repetitions=5, progress=interrupt)
    assert isinstance(outcome.ended_by, KeyboardInterrupt)
    assert outcome.record is not None and outcome.record.values("tg8") == (2, 3)
    assert "interrupted" in outcome.record.flags
    wait_until(lambda: not is_running(mark))  # a process that was killed takes a moment to go


@pytest.mark.slow
def test_a_program_that_fails_is_one_error_with_its_last_words(machine: AdbDevice) -> None:
    outcome = bench(machine, job("echo starting; echo 'no such model' >&2; exit 4"))
    assert outcome.record is None
    assert str(outcome.ended_by).endswith(": exit code 4: no such model")


@pytest.mark.slow
def test_a_program_that_fails_later_keeps_the_iterations_before(machine: AdbDevice, counter: Path) -> None:
    outcome = bench(machine, job(COUNT + '[ $n != 4 ] || exit 9; echo "rate $n"'), repetitions=5)
    assert outcome.record is not None and outcome.record.values("tg8") == (2, 3)
    assert "exit code 9" in str(outcome.ended_by) and "interrupted" in outcome.record.flags


def test_a_program_that_says_nothing_useful_is_an_error(machine: AdbDevice) -> None:
    assert "found 0 rates" in str(bench(machine, job("echo hello")).ended_by)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["device", "host"])
def test_a_program_that_does_not_end_is_killed(machine: AdbDevice, where: str) -> None:
    mark = f"sleep 7200.{time.monotonic_ns()}"
    subject: Machine = machine if where == "device" else Host()
    outcome = bench(subject, job(f"{mark} & {mark}"), timeout_s=1.0)
    assert "--timeout" in str(outcome.ended_by)
    wait_until(lambda: not is_running(mark))  # a process that was killed takes a moment to go


def test_a_killed_program_says_that_memory_may_be_short(machine: AdbDevice) -> None:
    assert "exit code 137 (killed, most often for lack of memory)" in str(bench(machine, job("kill -KILL $$")).ended_by)


CUT = Faults(reboot_at_byte=0)
"""All connections end at the next byte; the emulated device's clock is this computer's, and shows no restart."""


@pytest.fixture
def own_device() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(isolation="folder")) as device:
        yield device


@pytest.fixture(params=["emulator", pytest.param("adbd", marks=pytest.mark.full)])
def cut_device(request: pytest.FixtureRequest) -> Peer:
    """One whose connections are cut as by a pulled cable."""
    device: Peer = request.getfixturevalue("own_device" if request.param == "emulator" else "adbd")
    device.path(COUNTER).unlink(missing_ok=True)
    return device


def cutting(device: Peer, fault: Faults = CUT) -> Callable[..., None]:
    """Cuts the connection in the second iteration, while its process runs."""

    def cut(done: int, total: int, figures: object) -> None:
        if done == 1:
            when(lambda: is_sampled(device, 3), device.cut if isinstance(device, Adbd) else fail)

    def fail() -> None:
        device.set_faults(fault)

    return cut


@pytest.mark.slow
def test_an_iteration_that_a_lost_connection_cuts_off_begins_again_and_the_record_says_so(cut_device: Peer) -> None:
    mark = f"sleep 30.{time.monotonic_ns()}"
    notes: list[str] = []
    with connected_device(cut_device.serial) as machine:
        script = COUNT + f'echo "rate $n"; [ $n != 3 ] || {mark}'
        record = whole(bench(machine, job(script), progress=cutting(cut_device), note=notes.append))
        assert not is_running(mark, begins=True)  # a hangup makes mksh, which waits for it, sleep for a second
    # The first is the unmeasured one; the third was cut off.
    assert record.values("tg8") == (2, 4, 5)
    assert "reconnected" in record.flags and "interrupted" not in record.flags
    assert notes[-1].endswith("the connection was lost; iteration 2 begins again")


@pytest.mark.slow
def test_what_a_cut_left_running_has_ended_before_the_iteration_begins_again(
    own_device: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device lets its programs go on, as after a pulled cable."""
    monkeypatch.setattr(own_device.userland, "end_programs", lambda: None)
    mark = f"sleep 30.{time.monotonic_ns()}"
    left: list[bool] = []

    def look(text: str) -> None:
        if "begins again" in text:
            left.append(is_running(mark, begins=True))  # the shell that waits for it ends after it

    with connected_device(own_device.serial) as machine:
        script = COUNT + f'echo "rate $n"; [ $n != 3 ] || {{ {mark} & {mark}; }}'
        record = whole(bench(machine, job(script), progress=cutting(own_device), note=look))
    assert record.values("tg8") == (2, 4, 5) and left == [False]


class OverUsb(Transport):
    """Has one connection only, so that samples go to a file on the device."""

    @property
    def kind(self) -> Literal["usb"]:
        return "usb"


@pytest.mark.full
def test_after_a_cut_no_file_of_samples_stays(own_device: Emulator) -> None:
    seen: list[int] = []

    def files() -> int:
        return len(list(own_device.path("/data/local/tmp").glob("samples-*")))

    def look(text: str) -> None:
        if "begins again" in text:
            seen.append(files())

    def count_and_cut() -> None:
        seen.append(files())
        own_device.set_faults(CUT)

    def second(done: int, total: int, figures: object) -> None:
        if done == 1:
            when(lambda: is_sampled(own_device, 3) and files(), count_and_cut)

    with OverUsb(tcp_endpoint(own_device.serial)).connect() as transport:
        machine = AdbDevice(transport)
        script = COUNT + 'echo "rate $n"; [ $n != 3 ] || sleep 30'
        record = whole(bench(machine, job(script), progress=second, note=look))
    assert record.values("tg8") == (2, 4, 5)
    assert seen == [1, 0], "there while it is sampled, gone after the cut"


@pytest.mark.slow
def test_an_unmeasured_run_that_is_cut_off_begins_again_without_a_part_of_a_cache(own_device: Emulator) -> None:
    with connected_device(own_device.serial) as machine:
        cache = "/data/local/tmp/m.xnnpack_cache"
        when(own_device.path(cache).exists, lambda: own_device.set_faults(CUT))
        script = f'[ $n != 2 ] || [ ! -e {cache} ] || exit 7; echo x > {cache}; [ $n != 1 ] || sleep 30; echo "rate $n"'
        what = job(COUNT + script, weight_caches=(f"{cache}*",))
        record = whole(bench(machine, what, repetitions=2))
    assert record.values("tg8") == (3, 4) and "reconnected" in record.flags


@pytest.mark.slow
def test_an_iteration_that_is_cut_off_again_and_again_ends_the_run_and_keeps_the_others(own_device: Emulator) -> None:
    begun: list[str] = []

    def cut_again(text: str) -> None:
        if "begins again" in text:
            begun.append(text)
            when(lambda: is_sampled(own_device, 3 + len(begun)), lambda: own_device.set_faults(CUT))

    with connected_device(own_device.serial) as machine:
        script = COUNT + 'echo "rate $n"; [ $n -lt 3 ] || sleep 30'
        outcome = bench(machine, job(script), progress=cutting(own_device), note=cut_again)
    assert isinstance(outcome.ended_by, ConnectionLost)
    assert "iteration 2 cut off 3 times" in str(outcome.ended_by) and "what was measured is kept" in str(
        outcome.ended_by
    )
    assert outcome.record is not None and outcome.record.values("tg8") == (2,)
    assert {"interrupted", "reconnected"} <= set(outcome.record.flags)


@pytest.mark.slow
def test_a_device_that_has_restarted_ends_the_run(own_device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    uptimes = iter([5_000.0, 30.0])
    monkeypatch.setattr("device_harness.bench.job._Bench._uptime", lambda bench: next(uptimes))
    with connected_device(own_device.serial) as machine:
        script = COUNT + 'echo "rate $n"; [ $n -lt 3 ] || sleep 30'
        outcome = bench(machine, job(script), progress=cutting(own_device))
    assert "found a restart during iteration 2" in str(outcome.ended_by)
    assert outcome.record is not None and outcome.record.values("tg8") == (2,)


@pytest.mark.slow
def test_a_device_that_does_not_come_back_ends_the_run(own_device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_harness.bench.job._PATIENCE_S", 0.3)
    monkeypatch.setattr("device_harness.bench.process._RECOVER_S", 0.3)
    gone = Faults(reboot_at_byte=0, is_silent=True)
    with connected_device(own_device.serial) as machine:
        script = COUNT + 'echo "rate $n"; [ $n -lt 3 ] || sleep 30'
        outcome = bench(machine, job(script), progress=cutting(own_device, gone))
    assert isinstance(outcome.ended_by, EnvironmentFault)
    assert outcome.record is not None and outcome.record.values("tg8") == (2,)
    assert "interrupted" in outcome.record.flags


@pytest.mark.slow
def test_a_cut_of_the_samplers_connection_alone_costs_samples_and_no_iteration(own_device: Emulator) -> None:
    def cut() -> None:
        own_device.set_faults(Faults(drop_at_byte=0))
        own_device.path(f"{COUNTER}.go").touch()

    def cut_of_the_sampler(done: int, total: int, figures: object) -> None:
        if done == 1:
            when(lambda: is_sampled(own_device, 3), cut)

    with connected_device(own_device.serial) as machine:
        script = COUNT + 'echo "rate $n"; [ $n != 3 ] || { until [ -e $c.go ]; do sleep 0.05; done; sleep 2; }'
        outcome = bench(machine, job(script), progress=cut_of_the_sampler)
    record = whole(outcome)
    assert len(record.iterations) == 3 and {"reconnected", "sampler_failed"} & set(record.flags)


@pytest.mark.slow
def test_the_host_runs_jobs_by_the_same_commands() -> None:
    record = whole(bench(Host(), job("echo 'rate 3'; sleep 0.3"), repetitions=2))
    assert (record.device.kind, record.device.emulated, record.values("tg8")) == ("host", False, (3, 3))


@pytest.mark.slow
def test_tests_that_the_runner_says_nothing_of_are_left_out_and_named(machine: AdbDevice) -> None:
    tests = {"tg8": "decode_tokens_per_s", "ttft8": "time_to_first_token_s"}
    notes: list[str] = []
    record = whole(bench(machine, job("echo rate 1", tests=tests), repetitions=1, note=notes.append))
    assert record.tests == {"tg8": "decode_tokens_per_s"}
    assert notes[-1] == f"{machine.serial}: stand_in does not report ttft8"


def test_a_test_of_a_figure_that_no_one_knows_is_an_error_before_anything_runs(machine: AdbDevice) -> None:
    outcome = bench(machine, job("exit 9", tests={"tg8": "decode_token_per_s"}))
    assert outcome.record is None and isinstance(outcome.ended_by, ResultsError)
    assert "decode_token_per_s" in str(outcome.ended_by) and "wanted decode_tokens_per_s" in str(outcome.ended_by)


@pytest.mark.slow
def test_a_figure_that_no_one_knows_is_an_error_and_not_a_test_less(machine: AdbDevice) -> None:
    outcome = bench(machine, job("echo", read=lambda output: Reading(cast(Figures, {"decode_rate_per_s": 1.0}))))
    assert outcome.record is None and isinstance(outcome.ended_by, ResultsError)
    assert "stand_in figure: found decode_rate_per_s" in str(outcome.ended_by)
