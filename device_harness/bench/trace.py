"""Takes a Perfetto trace of one more run of a job, with the device's own `perfetto`, and keeps it on this computer.

The run is not measured, because tracing slows it a little. If tracing fails, the record has the reason, and no error is
raised.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from device_harness.bench.power import trace_energy
from device_harness.bench.process import ProcessRun
from device_harness.machines.machine import Machine
from device_harness.parsers.perfetto import parse_power_rails
from toolkit.base.errors import EnvironmentFault
from toolkit.base.files import atomic_file, hash_file
from toolkit.base.printable import printable
from toolkit.results.record import TraceEnergy, TraceRecord

ENDING = ".perfetto-trace"
_ANDROID_FOLDER = "/data/misc/perfetto-traces"
"""Where SELinux lets Android's perfetto write, and adb's shell read (perfetto.dev/docs)."""
_MOST_BYTES = 192 * 2**20
"""Over the config's max_file_size_bytes, which perfetto passes by less than a buffer."""
_ASK_S = 30.0
_FINISH_S = 60
_SLACK_S = 30.0
_RECOVER_S = 20.0

_log = logging.getLogger(__name__)


class _NoTrace(Exception):
    """The reason why there is no trace."""


def take_trace(
    machine: Machine, run: Callable[[], ProcessRun], *, target: Path, limit_s: float, note: Callable[[str], None]
) -> TraceRecord:
    """Trace what `run` does and write the trace to `target`; with it, return the energy of that run by its power rails.

    limit_s: the run's own time limit.
    """
    try:
        if machine.shell("command -v perfetto", timeout=_ASK_S).exit_code:
            raise _NoTrace("the device has no perfetto")
        note(f"{machine.serial}: one more run is traced, unmeasured")
        folder = machine.cache_folder if machine.kind == "host" else _ANDROID_FOLDER
        with _recording(machine, f"{folder}/{target.name}", limit_s + _SLACK_S) as finish:
            traced = run()
            finish()
            _fetch(machine, f"{folder}/{target.name}", target)
    except _NoTrace as reason:
        found = str(reason)
    except EnvironmentFault as error:
        found = f"tracing failed: {error}"
    else:
        written, energy = hash_file(target), _energy(target, traced)
        if energy.unavailable is None:
            note(f"{machine.serial}: {energy.figures['energy_joules']:.3g} J in the traced run, by power rails")
        return TraceRecord(target.name, target.parent.name, written.sha256, written.size, None, energy)
    note(f"{machine.serial}: no trace: {found}")
    return TraceRecord(None, None, None, None, printable(found)[:1000])


def _energy(trace: Path, run: ProcessRun) -> TraceEnergy:
    try:
        return trace_energy(run, parse_power_rails(trace.read_bytes()))
    except EnvironmentFault as error:
        return TraceEnergy({}, {}, printable(str(error))[:1000])


@contextmanager
def _recording(machine: Machine, path: str, limit_s: float) -> Iterator[Callable[[], None]]:
    """Record until the function that this yields is called; perfetto is ended, and its file removed, in any case."""
    config = resources.files(__package__ or "").joinpath("trace_config.pbtx").read_text("utf-8")
    config = config.replace("@DURATION_MS@", str(round(1000 * limit_s)))
    # Its config comes on standard input, since its domain may not read files of the shell's.
    command = f"printf %s {shlex.quote(config)} | perfetto --background --txt -c - -o {shlex.quote(path)} 2>&1"
    started = machine.shell(command, timeout=_ASK_S)
    words = started.stdout.split()
    if started.exit_code or not words or not words[-1].isascii() or not words[-1].isdecimal():
        said = (started.stdout.strip().splitlines() or ["nothing"])[-1][:300]
        raise _NoTrace(f"perfetto does not start (exit code {started.exit_code}): {said}")
    pid = words[-1]

    def finish() -> None:
        # A process that nobody has waited for yet is a zombie, and has ended.
        runs = f"grep -qs '^State:.[^ZX]' /proc/{pid}/status"
        wait = f"i=0; while {runs} && [ $i -lt {5 * _FINISH_S} ]; do i=$((i + 1)); sleep 0.2; done"
        script = f"kill -TERM {pid}; {wait}; ! {runs}"
        if machine.shell(f"{{ {script}; }} 2>/dev/null", timeout=_FINISH_S + _ASK_S).exit_code:
            raise _NoTrace(f"perfetto did not end within {_FINISH_S} s")

    try:
        yield finish
    except BaseException:
        _clean_up(machine, pid, path, recover=True)
        raise
    _clean_up(machine, pid, path, recover=False)


def _clean_up(machine: Machine, pid: str, path: str, *, recover: bool) -> None:
    """End perfetto and remove its file; `recover`: an interrupt may have left the connection within a message."""
    command = f"kill -KILL {pid} 2>/dev/null; rm -f {shlex.quote(path)}"
    try:
        if recover:
            machine.recover(timeout=_RECOVER_S)
        machine.shell(command, timeout=_ASK_S)
    except EnvironmentFault as error:
        what = "perfetto ends by itself on %s, but its trace stays there (%s); to remove it, run this on it: rm -f %s"
        _log.warning(what, machine.serial, error, shlex.quote(path))


def _fetch(machine: Machine, remote: str, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with atomic_file(target) as partial:
        if not machine.fetch_file(remote, partial, most_bytes=_MOST_BYTES):
            raise _NoTrace("perfetto wrote an empty trace")
