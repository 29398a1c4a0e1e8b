"""Parses what Linux reports about its CPUs: clusters and frequencies, idle time, and where threads ran."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_POLICY = re.compile(r"/sys/devices/system/cpu/cpufreq/(policy\d{1,4})/([a-z_]+)", re.ASCII)
_CPU_LINE = re.compile(r"cpu(\d{1,4})((?: \d{1,15}){4,20})", re.ASCII)
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_UTIME, _STIME, _PROCESSOR = 14 - 3, 15 - 3, 39 - 3
"""Fields of proc_pid_stat(5), counted from field 3, the first after the thread's name."""
_IDLE, _IOWAIT = 3, 4
"""Columns of a line `cpuN` in /proc/stat; iowait is idle time too (proc_stat(5))."""


@dataclass(frozen=True, slots=True)
class CpuTicks:
    """What a CPU has done since boot, in clock ticks."""

    busy: int
    idle: int


@dataclass(frozen=True, slots=True)
class ThreadTicks:
    """The CPU time that a thread has used, in clock ticks, and the CPU on which it was last."""

    ticks: int
    cpu: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """CPUs that share a frequency, by the kernel's name for them, such as `policy4`."""

    name: str
    cpus: tuple[int, ...]
    governor: str | None


def parse_clusters(files: Mapping[str, tuple[str, ...]]) -> tuple[Cluster, ...]:
    """The clusters of a machine, from the files `related_cpus` and `scaling_governor` of its frequency policies.

    >>> parse_clusters({"/sys/devices/system/cpu/cpufreq/policy4/related_cpus": ("4 5 6",)})
    (Cluster(name='policy4', cpus=(4, 5, 6), governor=None),)
    """
    found: dict[str, dict[str, str]] = {}
    for path, lines in files.items():
        if (match := _POLICY.fullmatch(path)) is not None and len(lines) == 1:
            found.setdefault(match[1], {})[match[2]] = lines[0]
    clusters = []
    for name, values in found.items():
        words = values.get("related_cpus", "").split()
        if words and all(map(_NUMBER.fullmatch, words)):
            clusters.append(Cluster(name, tuple(map(int, words)), values.get("scaling_governor")))
    return tuple(sorted(clusters, key=lambda cluster: cluster.cpus))


def parse_frequencies(files: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """The current frequency of each cluster in hertz, from its file `scaling_cur_freq`, which is in kHz."""
    found = {}
    for path, lines in files.items():
        match = _POLICY.fullmatch(path)
        if match is not None and match[2] == "scaling_cur_freq" and len(lines) == 1 and _NUMBER.fullmatch(lines[0]):
            found[match[1]] = int(lines[0]) * 1000
    return found


def parse_cpu_ticks(files: Mapping[str, tuple[str, ...]]) -> dict[int, CpuTicks]:
    """What each CPU has done since boot, from /proc/stat.

    >>> parse_cpu_ticks({"/proc/stat": ("cpu  9 9 9 9 9", "cpu1 5 0 2 100 3 0 1 0 0 0")})
    {1: CpuTicks(busy=8, idle=103)}
    """
    found = {}
    for line in files.get("/proc/stat", ()):
        if (match := _CPU_LINE.fullmatch(line)) is not None:
            ticks = [int(word) for word in match[2].split()][:8]  # the last two, guests, are part of the first two
            idle = sum(ticks[_IDLE : _IOWAIT + 1])
            found[int(match[1])] = CpuTicks(sum(ticks) - idle, idle)
    return found


def parse_threads(files: Mapping[str, tuple[str, ...]], pid: int) -> dict[int, ThreadTicks]:
    """The CPU time of each thread of a process, from /proc/PID/task/*/stat."""
    found = {}
    for path, lines in files.items():
        match = re.fullmatch(rf"/proc/{pid}/task/(\d{{1,15}})/stat", path, re.ASCII)
        fields = "\n".join(lines).rpartition(")")[2].split() if match is not None else []
        if match is not None and len(fields) > _PROCESSOR:
            numbers = [fields[place] for place in (_UTIME, _STIME, _PROCESSOR)]
            if all(map(_NUMBER.fullmatch, numbers)):
                user, system, cpu = map(int, numbers)
                found[int(match[1])] = ThreadTicks(user + system, cpu)
    return found
