"""What the CPUs did: from readings made by hand, and of a process bound to one core."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from device_harness.bench.cores import cluster_records, read_clusters
from device_harness.bench.process import ProcessRun
from device_harness.bench.sampler import MachineReading, ProcessSample, Sampler
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host
from device_harness.parsers.cpu import Cluster, CpuTicks, ThreadTicks
from device_harness.runners.interface import Reading
from toolkit.base.procfs import ProcessStat, ProcessStatus
from toolkit.results.record import CoreRecord

SAMPLE = ProcessSample(
    1.0, ProcessStat(7, 0, 0, 1), ProcessStatus(1, None, None, None, None, None), None, None, None, None, {}, {}
)
CLUSTERS = (Cluster("policy0", (0, 1), "schedutil"), Cluster("policy4", (4,), None))


def run(threads: list[dict[int, ThreadTicks]], ticks: list[dict[int, CpuTicks]]) -> ProcessRun:
    samples = tuple(replace(SAMPLE, threads=each, frequencies={"policy4": 2_000}) for each in threads)
    readings = tuple(MachineReading(1.0, ticks=each) for each in ticks)
    return ProcessRun(Reading({}), 0, 1, samples, False, readings)


def test_time_of_threads_counts_for_the_core_that_they_were_seen_on() -> None:
    threads = [{7: ThreadTicks(10, 0), 8: ThreadTicks(0, 1)}, {7: ThreadTicks(60, 4), 8: ThreadTicks(100, 4)}]
    ticks = [{0: CpuTicks(0, 0), 4: CpuTicks(100, 50)}, {0: CpuTicks(25, 75), 4: CpuTicks(250, 50)}]
    little, big = cluster_records(CLUSTERS, [run(threads, ticks), run([], [])])
    assert little.cores == (CoreRecord(0, 0.75, 0.1), CoreRecord(1, None, 0.0))
    assert big.cores == (CoreRecord(4, 0.0, 1.5),)
    assert (little.governor, little.frequency_hz, big.frequency_hz) == ("schedutil", (None, None), (2000, 2000))


def test_each_process_begins_again() -> None:
    once = run([{7: ThreadTicks(10, 0)}], [])
    assert cluster_records(CLUSTERS, [once, once])[0].cores[0].process_s == 0.2


def test_a_machine_that_tells_no_clusters_has_one_of_all_cpus() -> None:
    (found,) = cluster_records((), [run([{7: ThreadTicks(10, 3)}], [{1: CpuTicks(1, 1)}, {1: CpuTicks(2, 2)}])])
    assert (found.name, [core.cpu for core in found.cores]) == ("cpu", [1, 3])
    assert cluster_records((), []) == ()


def test_the_emulated_device_has_a_cluster(machine: AdbDevice) -> None:
    (found,) = read_clusters(machine)
    assert (found.name, found.governor, len(found.cpus)) == ("policy0", "schedutil", os.cpu_count())


@pytest.mark.slow
def test_a_process_bound_to_a_core_ran_there() -> None:
    core = max(os.sched_getaffinity(0))
    program = f"import os, time; os.sched_setaffinity(0, [{core}])\nwhile time.process_time() < 0.4: pass"
    with (
        subprocess.Popen([sys.executable, "-c", program]) as busy,
        Sampler(Host(), busy.pid, limit_s=30, interval_s=0.05, file="/tmp/unused") as sampler,
    ):
        busy.wait()
    found = cluster_records((), [ProcessRun(Reading({}), 0, 1, sampler.samples, False, sampler.readings)])
    seconds = {record.cpu: record.process_s for cluster in found for record in cluster.cores}
    assert seconds[core] > 0 and seconds[core] >= 0.8 * sum(seconds.values())
