"""Turns samples into what the CPUs did: each cluster's frequency, idle time, and the cores that ran a process."""

from __future__ import annotations

from collections.abc import Sequence

from device_harness.bench.process import ProcessRun
from device_harness.bench.state import read_parts
from device_harness.machines.machine import Machine
from device_harness.parsers.cpu import Cluster, parse_clusters
from device_harness.parsers.power import parse_files
from toolkit.results.record import ClusterRecord, CoreRecord

_POLICIES = "/sys/devices/system/cpu/cpufreq/policy[0-9]*"
_LOOK = {"clusters": f"grep -sH . {_POLICIES}/related_cpus {_POLICIES}/scaling_governor"}
_TICKS_PER_S = 100
"""USER_HZ, the unit of the times in /proc, which Linux fixes (time(7))."""
NO_CLUSTER = "cpu"
"""The name of all CPUs together on a machine that reports no clusters."""


def read_clusters(machine: Machine) -> tuple[Cluster, ...]:
    """Read which CPUs share a frequency, and their governors; empty if the machine does not report it."""
    return parse_clusters(parse_files(read_parts(machine, _LOOK)["clusters"]))


def cluster_records(clusters: Sequence[Cluster], runs: Sequence[ProcessRun]) -> tuple[ClusterRecord, ...]:
    """What the clusters did during all processes; frequencies are one for each sample, in order."""
    samples = [sample for run in runs for sample in run.samples]
    seconds, idle = _process_seconds(runs), _idle_fractions(runs)
    known = clusters or [Cluster(NO_CLUSTER, tuple(sorted({*seconds, *idle})), None)]
    return tuple(
        ClusterRecord(
            name=cluster.name,
            governor=cluster.governor,
            frequency_hz=tuple(sample.frequencies.get(cluster.name) for sample in samples),
            cores=tuple(CoreRecord(cpu, idle.get(cpu), seconds.get(cpu, 0.0)) for cpu in cluster.cpus),
        )
        for cluster in known
        if cluster.cpus
    )


def _process_seconds(runs: Sequence[ProcessRun]) -> dict[int, float]:
    """The CPU time of the processes by core; a thread's time between two samples counts for the core of the later."""
    ticks: dict[int, int] = {}
    for run in runs:
        before: dict[int, int] = {}
        for sample in run.samples:
            for thread, found in sample.threads.items():
                ticks[found.cpu] = ticks.get(found.cpu, 0) + max(0, found.ticks - before.get(thread, 0))
                before[thread] = found.ticks
    return {cpu: count / _TICKS_PER_S for cpu, count in ticks.items()}


def _idle_fractions(runs: Sequence[ProcessRun]) -> dict[int, float]:
    """How much of the time each CPU was idle, between the first and last reading of each process."""
    totals: dict[int, tuple[int, int]] = {}
    for run in runs:
        read = [reading.ticks for reading in run.readings if reading.ticks]
        if not read:
            continue
        for cpu, last in read[-1].items():
            first = read[0].get(cpu, last)
            idle, busy = totals.get(cpu, (0, 0))
            totals[cpu] = (idle + max(0, last.idle - first.idle), busy + max(0, last.busy - first.busy))
    return {cpu: idle / (idle + busy) for cpu, (idle, busy) in totals.items() if idle + busy}
