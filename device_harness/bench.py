"""Measures one job of a runner: a process for each iteration, gates between, samples beside; one record in the end."""

from __future__ import annotations

import logging
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from device_harness.gates import GateResult, GateSettings, PowerGate, ThermalGate
from device_harness.machine import Machine
from device_harness.page_cache import DroppedFiles, PageCache
from device_harness.runners.interface import Job, Reading, Workload
from device_harness.sampler import DEFAULT_INTERVAL_S, ProcessSample, Sampler, memory_record, series
from device_harness.state import read_state, read_thermal, state_flags
from device_harness.transport import DeviceTimeout, Transport
from device_harness.transport_shell import KILLED_EXIT_CODE
from toolkit import __version__
from toolkit.errors import EnvironmentFault, ToolkitError
from toolkit.report.statistics import MIN_VALUES, Drift, drift
from toolkit.results.record import (
    BenchRecord,
    Delegation,
    DeviceRecord,
    DriftRecord,
    Figures,
    Flag,
    Iteration,
    StateRecord,
)

Progress = Callable[[int, int, Figures | None], None]
"""Called with the iterations done, those in all, and the figures of the last."""

_ASK_S = 30.0
_TOKEN = "GEMMA_EDGE_BENCH"
"""In the environment of everything that a run starts, so that nothing of it is left."""
_BEGIN = re.compile(rb"^@@begin (\d+) (\d+\.\d+) ", re.MULTILINE)
_END = re.compile(r"^@@end (\d+) (\d+\.\d+) .*\n?", re.MULTILINE)
_SAMPLES_WANTED = 3
"""A process that ended within so many intervals may well have none."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and where."""

    machine: Machine
    device: DeviceRecord
    runner: str
    job: Job


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How a job is measured."""

    repetitions: int = 5
    gate: GateSettings = field(default_factory=GateSettings)
    cool_down_s: float = 0.0
    interval_s: float = DEFAULT_INTERVAL_S
    folder: str = "/data/local/tmp"
    """On the machine; where a sampler may write."""
    page_cache: PageCache | None = None
    """To take the model's files out of before each iteration."""


@dataclass(frozen=True, slots=True)
class BenchOutcome:
    """What was measured until the end, or until something ended it: an interrupt, a fault; None if that was nothing."""

    record: BenchRecord | None
    ended_by: BaseException | None


@dataclass(frozen=True, slots=True)
class _Run:
    """One process."""

    reading: Reading
    begin_s: float
    end_s: float
    samples: tuple[ProcessSample, ...]
    sampler_failed: bool


def run_job(
    subject: Subject,
    workload: Workload,
    settings: BenchSettings,
    *,
    progress: Progress,
    note: Callable[[str], None],
) -> BenchOutcome:
    """All iterations of a job. What was measured before an interrupt or a fault is kept and flagged."""
    bench = _Bench(subject, workload, settings, note)
    ended_by: BaseException | None = None
    try:
        bench.measure(progress)
    except (KeyboardInterrupt, SystemExit, ToolkitError) as error:  # SystemExit: a SIGTERM
        ended_by = error
    finally:
        bench.end_processes()
    return BenchOutcome(bench.record(is_whole=ended_by is None), ended_by)


class _Bench:
    """The state of one job's measurement."""

    def __init__(
        self, subject: Subject, workload: Workload, settings: BenchSettings, note: Callable[[str], None]
    ) -> None:
        self._machine = subject.machine
        self._device = subject.device
        self._runner = subject.runner
        self._job = subject.job
        self._workload = workload
        self._settings = settings
        self._note = note
        self._power_gate = PowerGate(subject.machine, settings.gate, note)
        self._thermal_gate = ThermalGate(subject.machine, settings.gate, note)
        self._token = f"{_TOKEN}={secrets.token_hex(8)}"
        self._started_utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._started = time.monotonic()
        self._begin_s = 0.0
        self._before: StateRecord | None = None
        self._runs: list[_Run] = []
        self._iterations: list[Iteration] = []
        self._gates: list[GateResult] = []
        self._after: StateRecord | None = None
        self._counted: Delegation | None = None

    def measure(self, progress: Progress) -> None:
        """Until all iterations are done."""
        self._begin_s = self._uptime()
        self._gates.append(self._power_gate.wait())
        if self._workload.start == "warm":
            self._note(f"{self._machine.serial}: {self._runner} runs once unmeasured, to warm up")
            self._run()
        self._before = read_state(self._machine)
        total = self._settings.repetitions
        progress(0, total, None)
        for index in range(total):
            if index and self._settings.cool_down_s:
                time.sleep(self._settings.cool_down_s)
            gates = [self._power_gate.wait(), self._thermal_gate.wait()]
            self._gates += gates
            if self._workload.start == "cold":
                self._remove_caches()
            dropped = self._drop_pages()
            run = self._run()
            self._runs.append(run)
            self._iterations.append(self._iteration(run, sum(gate.waited_s for gate in gates), dropped))
            progress(index + 1, total, self._iterations[-1].figures)
        self._after = self._state_after()
        self._count_nodes()

    def end_processes(self) -> None:
        """Nothing that this job started goes on on the machine."""
        script = (
            f"for f in $(grep -l {self._token} /proc/[0-9]*/environ 2>/dev/null); do "
            "p=${f%/environ}; kill -KILL ${p#/proc/}; done 2>/dev/null; true"
        )
        try:
            if isinstance(self._machine, Transport) and not self._machine.available:
                self._machine.reconnect(timeout=20.0)
            self._machine.shell(script, timeout=_ASK_S)
        except EnvironmentFault as error:
            limit = f"{self._workload.timeout_s:.0f} s"
            _log.warning("%s may go on for %s at most on %s: %s", self._runner, limit, self._machine.serial, error)

    def record(self, *, is_whole: bool) -> BenchRecord | None:
        """Of the iterations so far; None if there are none. Tests that the runner said nothing of are left out."""
        if not self._iterations:
            return None
        told = {name for item in self._iterations for name in item.figures}
        tests = {test: figure for test, figure in self._job.tests.items() if figure in told}
        after = self._after or self._state_after()
        drifts = self._drifts()
        environment = tuple(f"{name}={value}" for name, value in self._job.environment.items())
        runs = [run.samples for run in self._runs]
        return BenchRecord(
            tool=f"gemma-edge {__version__}",
            started_utc=self._started_utc,
            seconds=round(time.monotonic() - self._started, 3),
            runner=self._runner,
            backend=self._workload.backend,
            start=self._workload.start,
            threads=self._workload.threads,
            context=self._job.context,
            arguments=(("env", *environment) if environment else ()) + self._job.argv,
            tests=tests,
            model=self._job.model,
            binaries=self._job.binaries,
            device=self._device,
            delegation=self._delegation(),
            iterations=tuple(self._iterations),
            memory=memory_record(runs, self._job.groups, self._job.weight_caches),
            samples=series(runs, self._begin_s),
            drift={test: DriftRecord("mann-kendall", found.p_value, found.change) for test, found in drifts.items()},
            state_before=self._before,
            state_after=after,
            flags=self._flags(after, drifts, is_whole=is_whole),
        )

    def _iteration(self, run: _Run, gate_wait_s: float, dropped: DroppedFiles | None) -> Iteration:
        thermal = read_thermal(self._machine)
        begin, end = run.reading.begin_s or run.begin_s, run.reading.end_s or run.end_s
        figures = dict(run.reading.figures)
        if dropped is not None:
            figures["model_resident_bytes"] = dropped.resident_bytes
        if run.samples:
            last = run.samples[-1]
            figures.setdefault("major_faults_count", last.stat.major_faults)
            figures.setdefault("minor_faults_count", last.stat.minor_faults)
            if last.io is not None and last.io.read_bytes is not None:
                figures.setdefault("read_bytes", last.io.read_bytes)
        return Iteration(
            begin_s=round(max(0.0, begin - self._begin_s), 3),
            end_s=round(max(0.0, end - self._begin_s), 3),
            gate_wait_s=round(gate_wait_s, 3),
            thermal_status=None if thermal is None else thermal.status,
            figures=figures,
        )

    def _state_after(self) -> StateRecord | None:
        try:
            return read_state(self._machine)
        except EnvironmentFault as error:
            # What was measured counts all the same.
            _log.warning("the state after the run could not be read: %s", error)
            return None

    def _delegation(self) -> Delegation | None:
        found = [run.reading.delegation for run in self._runs if run.reading.delegation is not None]
        if found:
            return found[-1]
        if self._counted is not None:
            return self._counted
        return None if self._job.no_delegation is None else Delegation(None, None, self._job.no_delegation)

    def _count_nodes(self) -> None:
        """In a process of its own: what fails there is a reason, and no fault of the run."""
        read = self._job.read_nodes
        if read is None:
            return
        words = " ".join(map(shlex.quote, ["env", self._token, *self._job.count_nodes]))
        try:
            result = self._machine.shell(f"{words} 2>&1", timeout=self._workload.timeout_s)
            if result.exit_code:
                said = (_lines(result.stdout) or ["nothing"])[-1][:300]
                self._counted = Delegation(None, None, f"counting ended with exit code {result.exit_code}: {said}")
            else:
                self._counted = read(result.stdout.replace("\r\n", "\n"))
        except EnvironmentFault as error:
            self._counted = Delegation(None, None, f"counting failed: {error}"[:1000])
        except BaseException:
            self._recover()
            raise

    def _drifts(self) -> dict[str, Drift]:
        drifts = {}
        for test, figure in self._job.tests.items():
            values = [item.figures[figure] for item in self._iterations if figure in item.figures]
            if len(values) >= MIN_VALUES:
                drifts[test] = drift(values)
        return drifts

    def _flags(self, after: StateRecord | None, drifts: dict[str, Drift], *, is_whole: bool) -> tuple[Flag, ...]:
        flags: set[Flag] = set() if is_whole else {"interrupted"}
        if self._before is not None:
            low = self._settings.gate.low_battery_percent
            flags |= state_flags(self._before, after or self._before, low_battery_percent=low)
        if any((item.thermal_status or 0) > 0 for item in self._iterations):
            flags.add("throttled")
        if any(found.shown for found in drifts.values()):
            flags.add("drifted")
        for gate in self._gates:
            flags |= gate.flags | ({"gate_timeout"} if gate.timed_out else set())
        if any(run.sampler_failed for run in self._runs):
            flags.add("sampler_failed")
        return tuple(sorted(flags))

    def _remove_caches(self) -> None:
        for pattern in self._job.weight_caches:
            folder, _, name = pattern.rpartition("/")
            command = f"cd {shlex.quote(folder)} 2>/dev/null && rm -f ./{name}; true"
            self._machine.shell(command, timeout=_ASK_S).require(f"{self._machine.serial} {pattern}")

    def _drop_pages(self) -> DroppedFiles | None:
        """What stayed in memory is recorded with each iteration, and said once."""
        if self._settings.page_cache is None:
            return None
        paths = list(dict.fromkeys(part.path for parts in self._job.groups.values() for part in parts))
        dropped = self._settings.page_cache.drop(self._machine, paths)
        if dropped.resident_bytes and not self._iterations:
            found = f"{dropped.resident_bytes:,} of {dropped.bytes:,} bytes"
            self._note(f"{self._machine.serial}: {found} of the model stay in memory; to the kernel no start is cold")
        return dropped

    def _uptime(self) -> float:
        text = self._machine.shell("cat /proc/uptime", timeout=_ASK_S).require(f"{self._machine.serial} /proc/uptime")
        return float(text.split()[0])

    # --- one process ------------------------------------------------------------------------------------------------

    def _run(self) -> _Run:
        """Start it, sample it, read what it printed; EnvironmentFault if it failed."""
        limit = self._workload.timeout_s
        output = bytearray()
        sampler: Sampler | None = None
        begin_s = 0.0
        started = time.monotonic()
        try:
            with self._machine.stream_shell(self._command(), timeout=limit) as running:
                for _, data in running:
                    output += data
                    match = _BEGIN.search(output) if sampler is None else None
                    if match is not None:
                        begin_s = float(match[2])
                        sampler = self._sampler(int(match[1])).__enter__()
                code = running.exit_code
        except BaseException:
            self._recover()
            raise
        finally:
            if sampler is not None:
                sampler.__exit__(None, None, None)
        text = output.decode("utf-8", "replace").replace("\r\n", "\n")
        if code:
            raise self._failure(text, code, time.monotonic() - started)
        end = _END.search(text)
        reading = self._job.read(_END.sub("", text))
        end_s = float(end[2]) if end is not None else begin_s
        is_long = end_s - begin_s > _SAMPLES_WANTED * self._settings.interval_s
        samples = sampler.samples if sampler is not None else ()
        return _Run(reading, begin_s, end_s, samples, sampler is None or (sampler.has_failed and is_long))

    def _recover(self) -> None:
        """After an interrupt the connection may be in the midst of a message; what runs there has to end."""
        try:
            if isinstance(self._machine, Transport):
                self._machine.reconnect(timeout=20.0)
        except EnvironmentFault as error:
            _log.info("%s", error)
        self.end_processes()

    def _sampler(self, pid: int) -> Sampler:
        settings = self._settings
        return Sampler(
            self._machine,
            pid,
            limit_s=self._workload.timeout_s,
            interval_s=settings.interval_s,
            folder=settings.folder,
        )

    def _command(self) -> str:
        """The process tells its id before it becomes the runner."""
        environment = [self._token, *(f"{name}={value}" for name, value in self._job.environment.items())]
        words = " ".join(map(shlex.quote, ["env", *environment, *self._job.argv]))
        inner = 'echo "@@begin $$ $(cat /proc/uptime)"; exec "$@"'
        return (
            f"sh -c {shlex.quote(inner)} sh {words} 2>&1; code=$?; "
            'echo; echo "@@end $code $(cat /proc/uptime)"; exit $code'
        )

    def _failure(self, text: str, code: int, seconds: float) -> EnvironmentFault:
        what = f"{self._runner} on {self._machine.serial}"
        if code == KILLED_EXIT_CODE and seconds >= self._workload.timeout_s:
            found = f"no end after {self._workload.timeout_s:.0f} s"
            return DeviceTimeout(what, found=found, wanted="a result", remedy="allow more with --timeout")
        said = [line for line in _lines(text) if line]
        words = f": {said[-1][:300]}" if said else ""
        killed = " (killed, most often for lack of memory)" if code == KILLED_EXIT_CODE else ""
        return EnvironmentFault(what, found=f"exit code {code}{killed}{words}", wanted="a result")


def _lines(text: str) -> Sequence[str]:
    return [line.strip() for line in text.splitlines() if not line.startswith(("@@begin", "@@end"))]
