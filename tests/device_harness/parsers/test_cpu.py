"""What Linux reports about its CPUs."""

from __future__ import annotations

import os
from pathlib import Path

from device_harness.parsers.cpu import (
    Cluster,
    CpuTicks,
    ThreadTicks,
    parse_clusters,
    parse_cpu_ticks,
    parse_frequencies,
    parse_threads,
)

CPUFREQ = "/sys/devices/system/cpu/cpufreq"
REST = "0 0 0 0 0 0 0 0 0 0 "


def test_clusters_are_ordered_by_their_cpus_and_have_a_governor_if_it_can_be_read() -> None:
    files = {
        f"{CPUFREQ}/policy4/related_cpus": ("4 5 6",),
        f"{CPUFREQ}/policy4/scaling_governor": ("sched_pixel",),
        f"{CPUFREQ}/policy0/related_cpus": ("0 1 2 3",),
        f"{CPUFREQ}/policy7/scaling_governor": ("performance",),
        f"{CPUFREQ}/policy8/related_cpus": ("none",),
    }
    assert parse_clusters(files) == (
        Cluster("policy0", (0, 1, 2, 3), None),
        Cluster("policy4", (4, 5, 6), "sched_pixel"),
    )


def test_frequencies_are_kilohertz_in_the_file() -> None:
    files = {f"{CPUFREQ}/policy0/scaling_cur_freq": ("300000",), f"{CPUFREQ}/policy4/scaling_cur_freq": ("<unknown>",)}
    assert parse_frequencies(files) == {"policy0": 300_000_000}


def test_guests_are_part_of_user_time_and_waiting_is_idle() -> None:
    lines = ("cpu  1 1 1 1 1 1 1 1 1 1", "cpu0 10 1 2 100 5 3 4 0 6 0", "cpu12 1 0 0 9", "cpux 1 2 3 4", "ctxt 5")
    assert parse_cpu_ticks({"/proc/stat": lines}) == {0: CpuTicks(20, 105), 12: CpuTicks(1, 9)}


def test_a_thread_with_brackets_in_its_name_is_found_on_its_cpu() -> None:
    line = f"12 (a) R (b) R 1 7 7 0 -1 4194304 4 0 1 0 250 30 {REST}{REST}0 0 0 5 0 0"
    files = {"/proc/7/task/12/stat": (line,), "/proc/8/task/13/stat": (line,), "/proc/7/task/14/stat": ("14 (x",)}
    assert parse_threads(files, 7) == {12: ThreadTicks(280, 5)}


def test_this_computer_s_own_files_are_read() -> None:
    found = parse_cpu_ticks({"/proc/stat": tuple(Path("/proc/stat").read_text().splitlines())})
    assert set(found) >= set(os.sched_getaffinity(0)) and all(ticks.busy > 0 for ticks in found.values())
    line = Path("/proc/self/stat").read_text().strip()
    (thread,) = parse_threads({f"/proc/{os.getpid()}/task/1/stat": (line,)}, os.getpid()).values()
    assert thread.cpu in found
