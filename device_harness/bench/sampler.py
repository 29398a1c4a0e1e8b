"""Samples memory, page faults and temperature while a process runs, by a shell loop on its machine."""

from __future__ import annotations

import fnmatch
import logging
import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType

from device_harness.adb.transport import quote
from device_harness.bench.state import device_temperature
from device_harness.machines.machine import Machine
from device_harness.parsers.android import parse_thermal
from device_harness.runners.interface import FileRange
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
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures, MappedMemory, MemoryRecord, Samples

DEFAULT_INTERVAL_S = 0.2
_MAPPINGS_EVERY, _THERMAL_EVERY = 2, 10
"""One in this many samples also reads all mappings, or the temperature, which takes longer."""
_MARK = "@@ "
_STARTS = {
    "uptime": re.compile(r"\d+\.\d+ \d+\.\d+$", re.ASCII),
    "stat": re.compile(r"\d+ \(", re.ASCII),
    "status": re.compile(r"Name:"),
    "rollup": re.compile(r"[0-9a-f]+-[0-9a-f]+ .*\[rollup\]$", re.ASCII),
    "io": re.compile(r"rchar:"),
    "clock": re.compile(r"\d+$", re.ASCII),
}
_STOP_S = 15.0
_LIBRARY = ".so"

_log = logging.getLogger(__name__)


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
    frequency_hz: int | None


def sampling_script(pid: int, interval_s: float) -> str:
    """A shell loop that ends with the process; most samples start a single program, to disturb the run little."""
    process = " ".join(f"/proc/{pid}/{name}" for name in ("stat", "status", "smaps_rollup", "io"))
    clocks = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
    return (
        f"i=0; while [ -e /proc/{pid}/stat ]; do echo '{_MARK}sample'; cat /proc/uptime {process} {clocks}; "
        f"[ $((i % {_MAPPINGS_EVERY})) != 1 ] || {{ echo '{_MARK}smaps'; cat /proc/{pid}/smaps; }}; "
        f"[ $((i % {_THERMAL_EVERY})) != 0 ] || {{ echo '{_MARK}thermal'; dumpsys thermalservice; }}; "
        f"echo '{_MARK}end'; i=$((i + 1)); sleep {interval_s}; done 2>/dev/null"
    )


class Sampler:
    """Collects samples from `__enter__` to `__exit__`; they are then in `samples`.

    Over a network, and on this computer, they arrive on a second connection. USB has only one connection, on which
    samples would wait for the run's own output: there the loop writes a file, which is fetched at the end.
    """

    def __init__(
        self, machine: Machine, pid: int, *, limit_s: float, interval_s: float = DEFAULT_INTERVAL_S, file: str
    ) -> None:
        """`limit_s`: the loop's time limit; `file`: a path on the machine, to be removed if the connection is lost."""
        self._machine = machine
        self._pid = pid
        self._limit_s = limit_s
        self._script = sampling_script(pid, interval_s)
        self._file = None if machine.has_second_connection else file
        self._output: list[bytes] = []
        self._thread: threading.Thread | None = None
        self._fault: EnvironmentFault | None = None
        self.samples: tuple[ProcessSample, ...] = ()

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
                self._thread.join(_STOP_S)
            elif self._file is not None:
                self._fetch(self._file)
        except EnvironmentFault as fault:
            self._fault = fault
        self.samples = parse_samples(b"".join(self._output).decode("utf-8", "replace"))
        if self._fault is not None:
            _log.warning("memory was not sampled to the end: %s", self._fault)

    @property
    def has_failed(self) -> bool:
        """Whether sampling failed, or there is no sample."""
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
        wait = f"for i in 1 2 3 4 5; do [ -e /proc/{self._pid}/stat ] || break; sleep 0.2; done"
        self._output.append(self._machine.shell(f"{wait}; cat {path}; rm -f {path}", timeout=60.0).stdout.encode())


def parse_samples(text: str) -> tuple[ProcessSample, ...]:
    """Parse the complete samples of one process, without those of a later process with the same id.

    A sample during which the process ended is dropped.
    """
    found: list[ProcessSample] = []
    for block in text.replace("\r\n", "\n").split(f"{_MARK}sample\n")[1:]:
        parts = _parts(block)
        sample = _sample(parts) if "end" in parts else None
        if sample is not None and (not found or found[0].stat.start_ticks == sample.stat.start_ticks):
            found.append(sample)
    return tuple(found)


def _parts(block: str) -> dict[str, str]:
    """Split a sample into its parts: the files from one `cat`, recognised by their first lines, and the rest."""
    parts: dict[str, str] = {}
    name = ""
    for line in block.split("\n"):
        start = next((part for part, pattern in _STARTS.items() if pattern.match(line)), None)
        if line.startswith(_MARK):
            name = line[len(_MARK) :]
            parts[name] = ""
        elif start is not None and name not in ("smaps", "thermal"):
            name = start
        if not line.startswith(_MARK):
            parts[name] = parts.get(name, "") + line + "\n"
    return parts


def _sample(parts: Mapping[str, str]) -> ProcessSample | None:
    try:
        status = parse_status(parts.get("status", ""))
        if status.rss_bytes is None:
            return None
        clocks = [int(word) for word in parts.get("clock", "").split() if word.isdecimal()]
        return ProcessSample(
            uptime_s=float(parts["uptime"].split()[0]),
            stat=parse_stat(parts.get("stat", "")),
            status=status,
            rollup=parse_smaps_rollup(parts["rollup"]) if "rollup" in parts else None,
            io=parse_io(parts["io"]) if "io" in parts else None,
            mappings=parse_smaps(parts["smaps"]) if parts.get("smaps", "").strip() else None,
            temperature=device_temperature(parse_thermal(parts["thermal"])) if "thermal" in parts else None,
            frequency_hz=max(clocks) * 1000 if clocks else None,
        )
    except (EnvironmentFault, ValueError, KeyError):
        return None


# --- figures from samples ---------------------------------------------------------------------------------------------


def kinds(sample: ProcessSample) -> Figures:
    """The memory figures of one sample by kind, without those that the kernel does not report."""
    status, rollup = sample.status, sample.rollup
    rss, swap = status.rss_bytes, status.swap_bytes
    values: dict[FigureName, int | None] = {
        "rss_bytes": rss,
        "anonymous_bytes": status.rss_anonymous_bytes,
        "file_bytes": status.rss_file_bytes,
        "shared_memory_bytes": status.rss_shmem_bytes,
        "swap_bytes": swap,
        "rss_and_swap_bytes": None if rss is None or swap is None else rss + swap,
        "high_water_rss_bytes": status.peak_rss_bytes,
    }
    if rollup is not None:
        values |= {
            "pss_bytes": rollup.pss_bytes,
            "pss_anonymous_bytes": rollup.pss_anonymous_bytes,
            "pss_file_bytes": rollup.pss_file_bytes,
            "private_clean_bytes": rollup.private_clean_bytes,
            "private_dirty_bytes": rollup.private_dirty_bytes,
        }
    return {name: value for name, value in values.items() if value is not None}


def memory_record(
    runs: Sequence[Sequence[ProcessSample]], groups: Mapping[str, Sequence[FileRange]], caches: Sequence[str]
) -> MemoryRecord:
    """The memory of several processes of one configuration, from their samples; counts are the last process's."""
    looks = [(sample, kinds(sample)) for run in runs for sample in run]
    steady = [figures for run in runs for figures in map(kinds, run[len(run) // 2 :])]
    last = next((run[-1] for run in reversed(runs) if run), None)
    detailed = [sample for sample, _ in looks if sample.mappings]
    largest = max(detailed, key=lambda sample: sample.status.rss_bytes or 0, default=None)
    return MemoryRecord(
        peak=_merge([figures for _, figures in looks], max),
        steady=_merge(steady, median),
        groups=group_memory(largest.mappings or (), groups, caches) if largest is not None else {},
        major_faults_count=None if last is None else last.stat.major_faults,
        minor_faults_count=None if last is None else last.stat.minor_faults,
        read_bytes=None if last is None or last.io is None else last.io.read_bytes,
    )


def group_memory(
    mappings: Sequence[MemoryMapping], groups: Mapping[str, Sequence[FileRange]], caches: Sequence[str]
) -> dict[str, MappedMemory]:
    """The memory of mappings by parameter group, weight cache (`caches`: shell patterns), libraries, and the rest."""
    totals: dict[str, list[int]] = {}
    for mapping in mappings:
        name = _group_of(mapping, groups) or _kind_of(mapping.path, caches)
        total = totals.setdefault(name, [0, 0, 0])
        sizes = (mapping.size_bytes, mapping.rss_bytes or 0, mapping.pss_bytes or 0)
        totals[name] = [old + new for old, new in zip(total, sizes, strict=True)]
    return {name: MappedMemory(*total) for name, total in totals.items() if total[1] or name in groups}


def _group_of(mapping: MemoryMapping, groups: Mapping[str, Sequence[FileRange]]) -> str | None:
    """The group whose part of a file is mapped; for several groups, or none, the group that has the whole file."""
    end = mapping.offset + mapping.size_bytes
    touched: list[str] = []
    whole: str | None = None
    for name, ranges in groups.items():
        mine = [part for part in ranges if part.path == mapping.path]
        if any(part.is_whole for part in mine):
            whole = name
        elif any(part.touches(mapping.offset, end) for part in mine):
            touched.append(name)
    return touched[0] if len(touched) == 1 else whole


def _kind_of(path: str, caches: Sequence[str]) -> str:
    whole = path.removesuffix(" (deleted)")
    if any(fnmatch.fnmatch(whole, pattern) for pattern in caches):
        return "weight cache"
    if not whole.startswith("/"):
        return "anonymous"
    return "libraries" if _LIBRARY in whole.rpartition("/")[2] else "other files"


def series(runs: Sequence[Sequence[ProcessSample]], begin_s: float) -> Samples:
    """All samples as time series; times count from `begin_s`, in the machine's uptime."""
    samples = [sample for run in runs for sample in run]
    columns: dict[FigureName, tuple[float | None, ...]] = {
        "t_s": tuple(round(max(0.0, sample.uptime_s - begin_s), 3) for sample in samples)
    }
    rows = [_row(sample) for sample in samples]
    for name in dict.fromkeys(name for row in rows for name in row):
        columns[name] = tuple(row.get(name) for row in rows)
    sources = [sample.temperature[0] for sample in samples if sample.temperature is not None]
    return Samples(columns, sources[0] if sources else None)


def _row(sample: ProcessSample) -> Figures:
    row = kinds(sample)
    row["major_faults_count"] = sample.stat.major_faults
    if sample.io is not None and sample.io.read_bytes is not None:
        row["read_bytes"] = sample.io.read_bytes
    if sample.temperature is not None:
        row["temperature_celsius"] = sample.temperature[1]
    if sample.frequency_hz is not None:
        row["cpu_frequency_hz"] = sample.frequency_hz
    return row


def _merge(rows: Sequence[Figures], choose: Callable[[list[float]], float]) -> Figures | None:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(choose([row[name] for row in rows if name in row])) for name in names} or None
