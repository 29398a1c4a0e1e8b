"""Figures from the samples of processes: memory by kind and by parameter group, and time series."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from device_harness.bench.sampler import ProcessSample
from device_harness.runners.interface import FileRange
from toolkit.base.procfs import MemoryMapping
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures, MappedMemory, MemoryRecord, Samples

_LIBRARY = ".so"


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
    if sample.frequencies:
        row["cpu_frequency_hz"] = max(sample.frequencies.values())
    return row


def _merge(rows: Sequence[Figures], choose: Callable[[list[float]], float]) -> Figures | None:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(choose([row[name] for row in rows if name in row])) for name in names} or None
