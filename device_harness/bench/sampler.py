"""Samples memory, page faults, temperature, frequencies and power while a process runs, by a shell loop beside it."""

from __future__ import annotations

import logging
import re
import shlex
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from device_harness.adb.transport import quote
from device_harness.bench.state import device_temperature
from device_harness.machines.machine import Machine
from device_harness.parsers.android import parse_thermal
from device_harness.parsers.cpu import (
    CpuTicks,
    ThreadTicks,
    parse_cpu_ticks,
    parse_frequencies,
    parse_threads,
)
from device_harness.parsers.power import (
    BatteryReading,
    parse_battery_service,
    parse_energy_meter,
    parse_files,
    parse_rails,
    parse_supply,
)
from toolkit.base.errors import EnvironmentFault
from toolkit.base.procfs import (
    MemoryMapping,
    ProcessIo,
    ProcessStat,
    ProcessStatus,
    SmapsRollup,
    parse_io,
    parse_smaps,
    parse_smaps_rollup,
    parse_stat,
    parse_status,
)

DEFAULT_INTERVAL_S = 0.2
_MAPPINGS_EVERY, _METER_EVERY, _THERMAL_EVERY = 2, 2, 10
"""One in this many samples also reads all mappings, a power meter, or the temperature, which takes longer."""
_MARK = "@@ "
_LAST = f"{_MARK}last"
_STARTS = {
    "uptime": re.compile(r"\d+\.\d+ \d+\.\d+$", re.ASCII),
    "stat": re.compile(r"\d+ \(", re.ASCII),
    "status": re.compile(r"Name:"),
    "rollup": re.compile(r"[0-9a-f]+-[0-9a-f]+ .*\[rollup\]$", re.ASCII),
    "io": re.compile(r"rchar:"),
}
_FREQUENCIES = "/sys/devices/system/cpu/cpufreq/policy[0-9]*/scaling_cur_freq"
_LINES = "^[^ibps]"
"""Omits the lines of /proc/stat about interrupts, boot, processes and softirqs, which are long."""
_NAMED = ("files", "meter", "smaps", "thermal", "end")
"""The parts of a sample that begin with a line with their name."""
_STOP_S = 15.0
"""How long the loop may take to end after the process, in addition to the interval that it sleeps."""
_LOOK_S = 0.2
_FETCH_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a sampler reads about power, on this machine: files with each sample, and a command's output with some."""

    files: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True, slots=True)
class MachineReading:
    """What the whole machine reported at one moment; `uptime_s` is its /proc/uptime. Counters count from its boot."""

    uptime_s: float
    rails: dict[str, float] = field(default_factory=dict)
    """Joules used so far, by power rail."""
    battery: BatteryReading | None = None
    frequencies: dict[str, int] = field(default_factory=dict)
    """In hertz, by cluster."""
    ticks: dict[int, CpuTicks] = field(default_factory=dict)
    """By CPU."""


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """One sample; `uptime_s` is the machine's /proc/uptime."""

    uptime_s: float
    stat: ProcessStat
    status: ProcessStatus
    rollup: SmapsRollup | None
    io: ProcessIo | None
    mappings: tuple[MemoryMapping, ...] | None
    temperature: tuple[str, float] | None
    frequencies: dict[str, int]
    """In hertz, by cluster."""
    threads: dict[int, ThreadTicks]


def sampling_script(pid: int, interval_s: float, watched: Watched | None = None, *, of_child: bool = False) -> str:
    """A shell loop that ends with the process; most samples start two programs, to disturb the run little.

    `of_child`: the samples are of the process's oldest child, and of the machine alone while there is none.
    After the process has ended, the machine alone is read once more, so that the process's last moments lie between two
    readings.
    """
    watched = watched or Watched()
    choose = f"set -- $(cat /proc/{pid}/task/{pid}/children) 0; " if of_child else ""
    sampled = "$1" if of_child else str(pid)
    process = " ".join(f"/proc/{sampled}/{name}" for name in ("stat", "status", "smaps_rollup", "io"))
    files = " ".join(["/proc/stat", _FREQUENCIES, *map(shlex.quote, watched.files)])
    meter = f"echo '{_MARK}meter'; {watched.command}; " if watched.command else ""
    read = f"echo '{_MARK}files'; grep -sH '{_LINES}' {files}"
    return (
        f"i=0; while [ -e /proc/{pid}/stat ]; do {choose}echo '{_MARK}sample'; cat /proc/uptime {process}; "
        f"{read} /proc/{sampled}/task/[0-9]*/stat; "
        + (f"[ $((i % {_METER_EVERY})) != 0 ] || {{ {meter}}}; " if meter else "")
        + f"[ $((i % {_MAPPINGS_EVERY})) != 1 ] || {{ echo '{_MARK}smaps'; cat /proc/{sampled}/smaps; }}; "
        f"[ $((i % {_THERMAL_EVERY})) != 0 ] || {{ echo '{_MARK}thermal'; dumpsys thermalservice; }}; "
        f"echo '{_MARK}end'; i=$((i + 1)); sleep {interval_s}; done 2>/dev/null; "
        f"{{ echo '{_MARK}sample'; cat /proc/uptime; {read}; {meter}}} 2>/dev/null; echo '{_MARK}end'; echo '{_LAST}'"
    )


class Sampler:
    """Collects samples from `__enter__` to `__exit__`; they are then in `samples`.

    Over a network, and on this computer, they arrive on a second connection. USB has only one connection, on which
    samples would wait for the run's own output: there the loop writes a file, which is fetched at the end.
    """

    def __init__(
        self,
        machine: Machine,
        pid: int,
        *,
        limit_s: float,
        interval_s: float = DEFAULT_INTERVAL_S,
        file: str,
        watched: Watched | None = None,
        of_child: bool = False,
    ) -> None:
        """`limit_s`: the loop's time limit; `file`: a path on the machine, to be removed if the connection is lost.

        `of_child`: sample the process's oldest child in its place, until the process ends.
        """
        self._machine = machine
        self._pid = pid
        self._limit_s = limit_s
        self._script = sampling_script(pid, interval_s, watched, of_child=of_child)
        self._stop_s = _STOP_S + interval_s
        self._file = None if machine.has_second_connection else file
        self._output: list[bytes] = []
        self._thread: threading.Thread | None = None
        self._fault: EnvironmentFault | None = None
        self.samples: tuple[ProcessSample, ...] = ()
        self.readings: tuple[MachineReading, ...] = ()

    def __enter__(self) -> Sampler:
        if self._file is None:
            self._thread = threading.Thread(target=self._stream, name="sampler", daemon=True)
            self._thread.start()
        else:
            loop = f"exec timeout -s KILL {self._limit_s:.0f} sh -c {shlex.quote(self._script)}"
            # Without exec the shell would keep running, with our connection open in one of its file descriptors.
            command = f"(trap '' HUP; {loop} </dev/null >{quote(self._file)} 2>/dev/null) &"
            self._machine.shell(command, timeout=_STOP_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Collect the samples; the loop ends because the process has ended."""
        try:
            if self._thread is not None:
                self._thread.join(self._stop_s)
            elif self._file is not None:
                self._fetch(self._file)
        except EnvironmentFault as fault:
            self._fault = fault
        text = b"".join(self._output).decode("utf-8", "replace")
        self.samples, self.readings = parse_samples(text), parse_readings(text)
        if self._fault is None and not text.rstrip().endswith(_LAST):
            self._fault = EnvironmentFault(f"{self._machine.serial} sampler", found="no end of its output")
        if self._fault is not None:
            _log.warning("memory was not sampled to the end: %s", self._fault)

    @property
    def has_failed(self) -> bool:
        """Whether sampling failed, or ended before the process, or there is no sample."""
        return self._fault is not None or not self.samples

    def _stream(self) -> None:
        """Collect the samples over a second connection, in a separate thread."""
        try:
            with (
                self._machine.second_connection() as machine,
                machine.stream_shell(self._script, timeout=self._limit_s) as running,
            ):
                self._output.extend(data for name, data in running if name == "stdout")
        except EnvironmentFault as fault:
            self._fault = fault

    def _fetch(self, file: str) -> None:
        path = quote(file)
        tries = round(self._stop_s / _LOOK_S)
        wait = f"i=0; until grep -q '^{_LAST}' {path} || [ $i = {tries} ]; do i=$((i + 1)); sleep {_LOOK_S}; done"
        found = self._machine.shell(f"{wait}; cat {path}; rm -f {path}", timeout=self._stop_s + _FETCH_S)
        self._output.append(found.stdout.encode())


def parse_samples(text: str) -> tuple[ProcessSample, ...]:
    """Parse the complete samples of one process, without those of a later process with the same id.

    A sample during which the process ended is dropped.
    """
    found: list[ProcessSample] = []
    for parts in _blocks(text):
        sample = _sample(parts)
        if sample is not None and (not found or found[0].stat.start_ticks == sample.stat.start_ticks):
            found.append(sample)
    return tuple(found)


def parse_readings(text: str) -> tuple[MachineReading, ...]:
    """Parse what the samples say about the machine as a whole, in order of time."""
    found = []
    for parts in _blocks(text):
        match = _STARTS["uptime"].match(parts.get("uptime", "").strip())
        if match is None:
            continue
        files, meter = parse_files(parts.get("files", "")), parts.get("meter", "")
        folder = next((path.rpartition("/")[0] for path in files if path.endswith("/status")), None)
        found.append(
            MachineReading(
                uptime_s=float(match[0].split()[0]),
                rails=parse_rails(files) or parse_energy_meter(meter),
                battery=parse_battery_service(meter) if folder is None else parse_supply(files, folder),
                frequencies=parse_frequencies(files),
                ticks=parse_cpu_ticks(files),
            )
        )
    return tuple(found)


def _blocks(text: str) -> Iterator[dict[str, str]]:
    """The parts of each complete block."""
    for block in text.replace("\r\n", "\n").split(f"{_MARK}sample\n")[1:]:
        parts = _parts(block)
        if "end" in parts:
            yield parts


def _parts(block: str) -> dict[str, str]:
    """Split a sample into its parts: the files from one `cat`, recognised by their first lines, and the rest."""
    parts: dict[str, list[str]] = {}
    name = ""
    for line in block.split("\n"):
        if line.startswith(_MARK):
            name = line[len(_MARK) :]
            parts[name] = []
            continue
        # A process with a GPU may have thousands of mappings, and so a hundred thousand lines here.
        if name not in _NAMED:
            name = next((part for part, pattern in _STARTS.items() if pattern.match(line)), name)
        parts.setdefault(name, []).append(line)
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in parts.items()}


def _sample(parts: Mapping[str, str]) -> ProcessSample | None:
    try:
        status = parse_status(parts.get("status", ""))
        if status.rss_bytes is None:
            return None
        stat, files = parse_stat(parts.get("stat", "")), parse_files(parts.get("files", ""))
        return ProcessSample(
            uptime_s=float(parts["uptime"].split()[0]),
            stat=stat,
            status=status,
            rollup=parse_smaps_rollup(parts["rollup"]) if "rollup" in parts else None,
            io=parse_io(parts["io"]) if "io" in parts else None,
            mappings=parse_smaps(parts["smaps"]) if parts.get("smaps", "").strip() else None,
            temperature=device_temperature(parse_thermal(parts["thermal"])) if "thermal" in parts else None,
            frequencies=parse_frequencies(files),
            threads=parse_threads(files, stat.pid),
        )
    except (EnvironmentFault, ValueError, KeyError):
        return None
