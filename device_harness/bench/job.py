"""Measures one job of a runner: a process for each iteration, after its gates, with memory samples; one record."""

from __future__ import annotations

import logging
import re
import secrets
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from device_harness.adb.transport import ConnectionLost, DeviceFault
from device_harness.bench.cores import cluster_records, read_clusters
from device_harness.bench.memory import memory_record, series
from device_harness.bench.power import NO_SOURCE, EnergyMeter, PowerSource, energy_tests
from device_harness.bench.process import ASK_S, JobProcesses, ProcessLimits, ProcessRun
from device_harness.bench.readiness import GateWait, PowerGate, ReadinessSettings, ThermalGate
from device_harness.bench.sampler import DEFAULT_INTERVAL_S
from device_harness.bench.state import read_state, read_thermal, state_flags
from device_harness.bench.trace import ENDING, take_trace
from device_harness.flash.page_cache import DroppedFiles, PageCache
from device_harness.machines.machine import Machine
from device_harness.parsers.cpu import Cluster
from device_harness.runners.interface import Job, Workload
from toolkit import __version__
from toolkit.base.errors import EnvironmentFault, ToolkitError
from toolkit.base.printable import printable
from toolkit.base.strict_json import shorten
from toolkit.results.figures import known_figure, known_figures
from toolkit.results.record import (
    BenchRecord,
    Delegation,
    DeviceRecord,
    DriftRecord,
    EnergyRecord,
    Figures,
    Flag,
    Iteration,
    StateRecord,
    TraceRecord,
)
from toolkit.results.statistics import MIN_VALUES, Drift, drift

IterationProgress = Callable[[int, int, Figures | None], None]
"""Called with the iterations done, the total, and the figures of the last."""

_MOST_CUTS = 3
"""How many lost connections in a row during one iteration end the run."""
_PATIENCE_S = 60.0
"""How long a device may take to come back after a lost connection: a phone boots in that time."""
_CLOCKS_S = 5.0
"""How far a machine's uptime may be from the uptime that our own clock predicts."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """The job to measure, and the machine to measure it on."""

    machine: Machine
    device: DeviceRecord
    runner: str
    job: Job


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The settings for measuring a job."""

    repetitions: int = 5
    readiness: ReadinessSettings = field(default_factory=ReadinessSettings)
    cool_down_s: float = 0.0
    interval_s: float = DEFAULT_INTERVAL_S
    folder: str = "/data/local/tmp"
    """A folder on the machine that the sampler may write to."""
    page_cache: PageCache | None = None
    """The page cache from which to drop the model's files before each iteration; None to keep them."""
    power: PowerSource = NO_SOURCE
    trace_folder: Path | None = None
    """A folder on this computer for a trace of one more run; None for no trace."""
    idle_s: float = 0.0
    """For how long the power of the machine at rest is measured first, if there is a source; 0: not at all."""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The record of all iterations measured, None if there are none; and the interrupt or error that ended the job."""

    record: BenchRecord | None
    ended_by: BaseException | None


def run_job(
    subject: Subject,
    workload: Workload,
    settings: JobSettings,
    *,
    progress: IterationProgress,
    note: Callable[[str], None],
) -> JobOutcome:
    """Run all iterations of a job. Iterations before an interrupt or an error are kept and flagged."""
    bench = _Bench(subject, workload, settings, note)
    ended_by: BaseException | None = None
    try:
        bench.measure(progress)
    except (KeyboardInterrupt, SystemExit, ToolkitError) as error:  # SystemExit: a SIGTERM
        ended_by = error
    finally:
        bench.end()
    return JobOutcome(bench.record(ended_by), ended_by)


class _Bench:
    """The state of one job's measurement."""

    def __init__(
        self, subject: Subject, workload: Workload, settings: JobSettings, note: Callable[[str], None]
    ) -> None:
        self._machine = subject.machine
        self._device = subject.device
        self._runner = subject.runner
        self._job = subject.job
        self._workload = workload
        self._settings = settings
        self._note = note
        self._power_gate = PowerGate(subject.machine, settings.readiness, note)
        self._thermal_gate = ThermalGate(subject.machine, settings.readiness, note)
        self._tests = {**subject.job.tests, **energy_tests(subject.job.tests)}
        self._energy = EnergyMeter(settings.power)
        limits = ProcessLimits(workload.timeout_s, settings.interval_s, settings.folder, settings.power.watched)
        self._processes = JobProcesses(subject.machine, subject.runner, subject.job, limits)
        self._started_utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._started = time.monotonic()
        self._begin_s = 0.0
        self._clusters: tuple[Cluster, ...] = ()
        self._before: StateRecord | None = None
        self._runs: list[ProcessRun] = []
        self._iterations: list[Iteration] = []
        self._waits: list[GateWait] = []
        self._after: StateRecord | None = None
        self._counted: Delegation | None = None
        self._trace: TraceRecord | None = None
        self._was_cut = False

    def measure(self, progress: IterationProgress) -> None:
        """Run all iterations; one that a lost connection interrupts starts again."""
        for figure in self._job.tests.values():
            known_figure(figure, self._runner)
        self._begin_s = self._uptime()
        if self._settings.idle_s and self._settings.power.kind != "none":
            self._note(f"{self._machine.serial}: measuring the power at rest for {self._settings.idle_s:g} s")
            self._lasting("the measurement of idle power", self._rest)
        if self._workload.start == "warm":
            self._note(f"{self._machine.serial}: {self._runner} runs once unmeasured, to warm up")
            self._lasting("the unmeasured run", self._warm_up)
        self._before, self._clusters = read_state(self._machine), read_clusters(self._machine)
        total = self._settings.repetitions
        progress(0, total, None)
        for index in range(total):
            if index and self._settings.cool_down_s:
                time.sleep(self._settings.cool_down_s)
            self._lasting(f"iteration {index + 1}", self._iterate)
            progress(index + 1, total, self._iterations[-1].figures)
        self._note_untold_tests()
        self._note_unkept_weights()
        self._after = self._state_after()
        self._counted = self._processes.count_nodes()
        self._trace = self._traced()

    def _traced(self) -> TraceRecord | None:
        folder = self._settings.trace_folder
        if folder is None:
            return None
        when = self._started_utc.replace(":", "").replace("-", "")
        target = folder / f"{when}-{self._runner}-{secrets.token_hex(4)}{ENDING}"
        limit_s = self._workload.timeout_s
        return take_trace(self._machine, self._processes.run, target=target, limit_s=limit_s, note=self._note)

    def _note_untold_tests(self) -> None:
        """Tell the user which tests are left out of the record because no iteration has their figure."""
        told = {name for item in self._iterations for name in item.figures}
        untold = [test for test, figure in self._job.tests.items() if figure not in told]
        if untold:
            self._note(f"{self._machine.serial}: {self._runner} does not report {', '.join(untold)}")

    def _note_unkept_weights(self) -> None:
        """Tell the user why each start has packed the weights again."""
        faults = [run.reading.weight_cache_fault for run in self._runs if run.reading.weight_cache_fault]
        if faults:
            words = f"weights were packed in memory, because they cannot be kept: {faults[0]}"
            self._note(f"{self._machine.serial}: {words}")

    def end(self) -> None:
        """End everything that this job started on the machine."""
        self._processes.try_to_end()

    def _rest(self) -> None:
        self._energy.take_idle(self._processes.rest(self._settings.idle_s))

    def _warm_up(self) -> None:
        self._waits.append(self._power_gate.wait())
        if self._was_cut:
            self._remove_caches()  # the run that was cut off may have left them incomplete
        self._processes.run()

    def _iterate(self) -> None:
        gates = [self._power_gate.wait(), self._thermal_gate.wait()]
        self._waits += gates
        if self._workload.start == "cold":
            self._remove_caches()
        dropped = self._drop_pages()
        run = self._processes.run()
        iteration = self._iteration(run, sum(gate.waited_s for gate in gates), dropped)
        self._runs.append(run)
        self._iterations.append(iteration)

    def _lasting(self, what: str, step: Callable[[], None]) -> None:
        """Run the step, repeating it after a lost connection; ConnectionLost if that happens too often.

        EnvironmentFault if the device does not come back, or has restarted.
        """
        lost: ConnectionLost | None = None
        for cut in range(1, _MOST_CUTS + 1):
            try:
                if lost is not None:
                    self._begin_again(what, lost)
                return step()
            except ConnectionLost as error:
                lost = error
                if cut == _MOST_CUTS:
                    break
                _log.info("%s", error)
                self._was_cut = True
                self._machine.recover(timeout=_PATIENCE_S)
        assert lost is not None
        found = f"{what} cut off {_MOST_CUTS} times, the last time by {lost.found}"
        remedy = "try another cable, port or network, and run it again; what was measured is kept"
        raise ConnectionLost(lost.place, file=lost.file, found=found, remedy=remedy) from lost

    def _begin_again(self, what: str, lost: ConnectionLost) -> None:
        """End what still runs after a lost connection, which would disturb the next measurement."""
        expected = self._begin_s + time.monotonic() - self._started
        if self._uptime() < expected - _CLOCKS_S:
            found, wanted = f"a restart during {what}", "no restart between iterations"
            remedy = "run it again; what was measured is kept"
            raise DeviceFault(self._machine.serial, found=found, wanted=wanted, remedy=remedy) from lost
        self._processes.end()
        self._note(f"{self._machine.serial}: the connection was lost; {what} begins again")

    def record(self, ended_by: BaseException | None) -> BenchRecord | None:
        """The record of the iterations so far; None if there are none. Tests without any value are left out."""
        if not self._iterations:
            return None
        told = {name for item in self._iterations for name in item.figures}
        tests = {test: figure for test, figure in self._tests.items() if figure in told}
        after = self._after or self._state_after()
        drifts, energy = self._drifts(), self._energy.record()
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
            flags=self._flags(after, drifts, energy, is_whole=ended_by is None),
            energy=energy,
            clusters=cluster_records(self._clusters, self._runs),
            trace=self._trace,
            fault=printable(str(ended_by))[:1000] if isinstance(ended_by, ToolkitError) else None,
        )

    def _iteration(self, run: ProcessRun, gate_wait_s: float, dropped: DroppedFiles | None) -> Iteration:
        thermal = read_thermal(self._machine)
        begin, end = run.reading.begin_s or run.begin_s, run.reading.end_s or run.end_s
        figures = known_figures(run.reading.figures, self._runner) | self._energy.figures(run)
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
            # The measurements are still valid.
            _log.warning("the state after the run could not be read: %s", error)
            return None

    def _delegation(self) -> Delegation | None:
        found = [run.reading.delegation for run in self._runs if run.reading.delegation is not None]
        if found:
            return found[-1]
        if self._counted is not None:
            return self._counted
        return None if self._job.no_delegation is None else Delegation(None, None, self._job.no_delegation)

    def _drifts(self) -> dict[str, Drift]:
        drifts = {}
        for test, figure in self._tests.items():
            values = [item.figures[figure] for item in self._iterations if figure in item.figures]
            if len(values) >= MIN_VALUES:
                drifts[test] = drift(values)
        return drifts

    def _flags(
        self, after: StateRecord | None, drifts: dict[str, Drift], energy: EnergyRecord, *, is_whole: bool
    ) -> tuple[Flag, ...]:
        flags: set[Flag] = set() if is_whole else {"interrupted"}
        if energy.check is not None and not energy.check.agrees:
            flags.add("energy_disagrees")
        if self._was_cut:
            flags.add("reconnected")
        if self._before is not None:
            low = self._settings.readiness.low_battery_percent
            flags |= state_flags(self._before, after or self._before, low_battery_percent=low)
        if any((item.thermal_status or 0) > 0 for item in self._iterations):
            flags.add("throttled")
        if any(found.shown for found in drifts.values()):
            flags.add("drifted")
        for gate in self._waits:
            flags |= gate.flags | ({"gate_timeout"} if gate.timed_out else set())
        if any(run.sampler_failed for run in self._runs):
            flags.add("sampler_failed")
        if any(run.reading.weight_cache_fault for run in self._runs):
            flags.add("weights_in_memory")
        return tuple(sorted(flags))

    def _remove_caches(self) -> None:
        for pattern in self._job.weight_caches:
            folder, _, name = pattern.rpartition("/")
            command = f"cd {shlex.quote(folder)} 2>/dev/null && rm -f ./{name}; true"
            self._machine.shell(command, timeout=ASK_S).require(f"{self._machine.serial} {pattern}")

    def _drop_pages(self) -> DroppedFiles | None:
        """Drop the model's files from the page cache; the user is told once if a part stays in memory."""
        if self._settings.page_cache is None:
            return None
        paths = list(dict.fromkeys(part.path for parts in self._job.groups.values() for part in parts))
        dropped = self._settings.page_cache.drop(self._machine, paths)
        if dropped.resident_bytes and not self._iterations:
            found = f"{dropped.resident_bytes:,} of {dropped.bytes:,} bytes"
            self._note(f"{self._machine.serial}: {found} of the model stay in memory: no start is cold to the kernel")
        return dropped

    def _uptime(self) -> float:
        what = f"{self._machine.serial} /proc/uptime"
        text = self._machine.shell("cat /proc/uptime", timeout=ASK_S).require(what)
        match = re.match(r"\d{1,12}\.\d{1,9} ", text, re.ASCII)
        if match is None:
            raise EnvironmentFault(what, found=shorten(text), wanted="seconds since the start")
        return float(match[0])
