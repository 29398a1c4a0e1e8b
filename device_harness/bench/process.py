"""Runs the processes of one job: starts and samples them, reads their output, and makes sure that they end."""

from __future__ import annotations

import logging
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from device_harness.adb.shell import KILLED_EXIT_CODE, fault_signal
from device_harness.adb.transport import ConnectionLost, DeviceTimeout
from device_harness.bench.sampler import MachineReading, ProcessSample, Sampler, Watched
from device_harness.machines.machine import Machine
from device_harness.runners.interface import Job, Reading
from toolkit.base.errors import EnvironmentFault, ToolkitError
from toolkit.results.record import Delegation

ASK_S = 30.0
"""The time limit in seconds for a command that the machine answers at once."""

_TOKEN = "GEMMA_EDGE_BENCH"
"""The environment variable that marks all processes of a run, so that they can be ended."""
_BEGIN = re.compile(rb"^@@begin (\d{1,9}) (\d{1,12}\.\d{1,9}) ", re.MULTILINE)
_END = re.compile(r"^@@end (\d{1,9}) (\d{1,12}\.\d{1,9}) .*\n?", re.MULTILINE | re.ASCII)
_SAMPLES_WANTED = 3
"""A process that ends within this many intervals may have no sample."""
_RECOVER_S = 20.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """A process's time limit, its sampling interval, and the folder on the machine that the sampler may write to."""

    timeout_s: float
    interval_s: float
    folder: str
    watched: Watched = field(default_factory=Watched)


@dataclass(frozen=True, slots=True)
class ProcessRun:
    """The result of one process; times are the machine's uptime."""

    reading: Reading
    begin_s: float
    end_s: float
    samples: tuple[ProcessSample, ...]
    sampler_failed: bool
    readings: tuple[MachineReading, ...] = ()


class JobProcesses:
    """Runs a job's process, once for each call of `run`."""

    def __init__(self, machine: Machine, runner: str, job: Job, limits: ProcessLimits) -> None:
        self._machine = machine
        self._runner = runner
        self._job = job
        self._limits = limits
        token = secrets.token_hex(8)
        self._token = f"{_TOKEN}={token}"
        self._samples = f"{limits.folder}/samples-{token}.txt"

    def run(self) -> ProcessRun:
        """Run the process, sample it and parse its output; EnvironmentFault if it fails.

        After ConnectionLost it may continue on the machine until `end` is called.
        """
        environment = tuple(f"{name}={value}" for name, value in self._job.environment.items())
        words = (*environment, *self._job.argv)
        return self._sampled(words, self._job.read, of_child=self._job.works_in_child)

    def rest(self, seconds: float) -> ProcessRun:
        """Sample the machine as `run` does while a process of ours only waits."""
        return self._sampled(("sleep", f"{seconds:g}"), lambda output: Reading({}))

    def _sampled(self, words: tuple[str, ...], read: Callable[[str], Reading], *, of_child: bool = False) -> ProcessRun:
        output = bytearray()
        sampler: Sampler | None = None
        begin_s = 0.0
        started = time.monotonic()
        try:
            with self._machine.stream_shell(self._command(words), timeout=self._limits.timeout_s) as running:
                for _, data in running:
                    output += data
                    match = _BEGIN.search(output) if sampler is None else None
                    if match is not None:
                        begin_s = float(match[2])
                        sampler = self._sampler(int(match[1]), of_child=of_child).__enter__()
                code = running.exit_code
        except ConnectionLost:
            raise
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
        reading = read(_END.sub("", text))
        end_s = float(end[2]) if end is not None else begin_s
        is_long = end_s - begin_s > _SAMPLES_WANTED * self._limits.interval_s
        samples, readings = (sampler.samples, sampler.readings) if sampler is not None else ((), ())
        failed = sampler is None or (sampler.has_failed and is_long)
        return ProcessRun(reading, begin_s, end_s, samples, failed, readings)

    def count_nodes(self) -> Delegation | None:
        """Count delegated nodes in a separate process; None if the job has none.

        A failure there is not an error of the run, but recorded as the reason for missing counts.
        """
        read = self._job.read_nodes
        if read is None:
            return None
        words = " ".join(map(shlex.quote, ["env", self._token, *self._job.count_nodes]))
        try:
            result = self._machine.shell(f"{words} 2>&1", timeout=self._limits.timeout_s)
        except EnvironmentFault as error:
            return Delegation(None, None, f"counting failed: {error}"[:1000])
        except BaseException:
            self._recover()
            raise
        if result.exit_code:
            said = (_lines(result.stdout) or ["nothing"])[-1][:300]
            return Delegation(None, None, f"counting ended with exit code {result.exit_code}: {said}")
        try:
            return read(result.stdout.replace("\r\n", "\n"))
        except EnvironmentFault as error:
            return Delegation(None, None, f"counting failed: {error}"[:1000])

    def end(self) -> None:
        """End this job's processes on the machine and remove its files; EnvironmentFault if it is unreachable."""
        # Repeated while processes are found: a killed one takes a moment to end, and may have started another.
        script = (
            f"for i in 1 2 3 4 5; do found=; for f in $(grep -l {self._token} /proc/[0-9]*/environ); do "
            "found=1; p=${f%/environ}; kill -KILL ${p#/proc/}; done; [ $found ] || break; sleep 0.2; done 2>/dev/null; "
            f"rm -f {shlex.quote(self._samples)}"
        )
        if not self._machine.available:
            self._machine.recover(timeout=_RECOVER_S)
        self._machine.shell(script, timeout=ASK_S)

    def try_to_end(self) -> None:
        """Call `end`, and log a warning if it fails."""
        try:
            self.end()
        except EnvironmentFault as error:
            limit = f"{self._limits.timeout_s:.0f} s"
            _log.warning("%s may keep running for up to %s on %s: %s", self._runner, limit, self._machine.serial, error)

    def _recover(self) -> None:
        """Reconnect and end the processes: after an interrupt, the connection may be in the middle of a message."""
        try:
            self._machine.recover(timeout=_RECOVER_S)
        except EnvironmentFault as error:
            _log.info("%s", error)
        self.try_to_end()

    def _sampler(self, pid: int, *, of_child: bool) -> Sampler:
        limits = self._limits
        return Sampler(
            self._machine,
            pid,
            limit_s=limits.timeout_s,
            interval_s=limits.interval_s,
            file=self._samples,
            watched=limits.watched,
            of_child=of_child,
        )

    def _command(self, arguments: tuple[str, ...]) -> str:
        """The shell command; the process prints its id before it becomes the runner."""
        words = " ".join(map(shlex.quote, ["env", self._token, *arguments]))
        inner = 'echo "@@begin $$ $(cat /proc/uptime)"; exec "$@"'
        return (
            f"sh -c {shlex.quote(inner)} sh {words} 2>&1; code=$?; "
            'echo; echo "@@end $code $(cat /proc/uptime)"; exit $code'
        )

    def _failure(self, text: str, code: int, seconds: float) -> ToolkitError:
        what = f"{self._runner} on {self._machine.serial}"
        if code == KILLED_EXIT_CODE and seconds >= self._limits.timeout_s:
            found = f"it did not end within {self._limits.timeout_s:.0f} s"
            return DeviceTimeout(what, found=found, remedy="allow more time with --timeout")
        read = self._job.read_failure
        if read is not None and (told := read("\n".join(_lines(text)), code)) is not None:
            return told
        said = [line for line in _lines(text) if line]
        words = f": {said[-1][:300]}" if said else ""
        fault = fault_signal(code)
        meaning = "killed, most often for lack of memory" if code == KILLED_EXIT_CODE else fault
        return EnvironmentFault(what, found=f"exit code {code}{f' ({meaning})' if meaning else ''}{words}")


def _lines(text: str) -> Sequence[str]:
    return [line.strip() for line in text.splitlines() if not line.startswith(("@@begin", "@@end"))]
