"""Samples of a process: as text, of this computer's, and over both kinds of connection."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from device_harness.adb.shell import ShellResult, ShellStream
from device_harness.adb.transport import Transport
from device_harness.bench.memory import group_memory, kinds, memory_record, series
from device_harness.bench.sampler import Sampler, parse_samples, sampling_script
from device_harness.emulator.device import Emulator
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host, HostCommand
from device_harness.machines.machine import Machine
from device_harness.runners.interface import FileRange
from toolkit.base.procfs import MemoryMapping
from toolkit.results.record import MappedMemory

SIZE = 48 * 2**20
PROGRAM = f"""
import mmap, sys
data = bytearray({SIZE})
data[::4096] = b"x" * len(data[::4096])
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[::4096])
print("ready", flush=True)
sys.stdin.read()
"""

STATUS = "Name:\tx\nPid:\t7\nVmHWM:\t  900 kB\nVmRSS:\t  {rss} kB\nRssAnon:\t 100 kB\nVmSwap:\t  {swap} kB\n"
STAT = "7 (x (y) z) S 1 7 7 0 -1 4194304 {minor} 0 {major} 0 5 3 0 0 20 0 1 0 {start} 1000 50\n"
ROLLUP = "55d0-7ff0 ---p 00000000 00:00 0          [rollup]\nRss: 500 kB\nPss: 300 kB\nPrivate_Dirty: 90 kB\n"
IO = "rchar: 10\nwchar: 0\nread_bytes: {read}\n"
CLOCKS = "".join(
    f"/sys/devices/system/cpu/cpufreq/policy{name}/scaling_cur_freq:{khz}\n"
    for name, khz in ((0, 1800000), (4, 2400000))
)
SMAPS = "1000-9000 r--p 00000000 00:00 12   /data/x.bin\nRss: 16 kB\nPss: 8 kB\nAnonymous: 0 kB\n"


def sample(uptime: float, *, rss: int = 500, swap: int = 20, major: int = 1, start: int = 99, extra: str = "") -> str:
    stat, status = STAT.format(minor=4, major=major, start=start), STATUS.format(rss=rss, swap=swap)
    files = f"{stat}{status}{ROLLUP}{IO.format(read=4096)}"
    return f"@@ sample\n{uptime:.2f} 55.00\n{files}@@ files\n{CLOCKS}{extra}@@ end\n"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with 48 MiB of its own and a mapped file of 8 MiB; it ends with its input."""
    (tmp_path / "mapped.bin").write_bytes(b"1" * 2**23)
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "mapped.bin")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stdout.readline() == b"ready\n"
        yield running
        running.kill()


class Usb(AdbDevice):
    """A device that has one connection only, like one on USB."""

    has_second_connection = False
    streams = 0

    def stream_shell(self, command: str, *, timeout: float) -> ShellStream:
        self.streams += 1
        return super().stream_shell(command, timeout=timeout)


def test_a_sample_holds_each_file_of_the_process() -> None:
    thermal = "@@ thermal\nThermal Status: 0\nCurrent temperatures from HAL:\n"
    thermal += "\tTemperature{mValue=33.5, mType=3, mName=SKIN, mStatus=0}\n"
    (found,) = parse_samples(sample(17.25, extra=f"@@ smaps\n{SMAPS}{thermal}"))
    assert (found.uptime_s, found.stat.major_faults, found.stat.start_ticks) == (17.25, 1, 99)
    assert kinds(found) == {
        "rss_bytes": 512_000, "anonymous_bytes": 102_400, "swap_bytes": 20_480, "rss_and_swap_bytes": 532_480,
        "high_water_rss_bytes": 921_600, "pss_bytes": 307_200, "private_dirty_bytes": 92_160,
    }  # fmt: skip
    assert found.io is not None and found.io.read_bytes == 4096
    assert found.mappings is not None and found.mappings[0].path == "/data/x.bin"
    assert found.temperature == ("SKIN", 33.5)
    assert found.frequencies == {"policy0": 1_800_000_000, "policy4": 2_400_000_000}
    assert series([(found,)], 0).columns["cpu_frequency_hz"] == (2_400_000_000,)


def test_line_ends_of_old_shells_change_nothing() -> None:
    text = sample(1) + sample(2)
    assert parse_samples(text.replace("\n", "\r\n")) == parse_samples(text)


def test_a_later_process_under_the_same_id_is_left_out() -> None:
    found = parse_samples(sample(1) + sample(2) + sample(3, start=100, rss=9000))
    assert [item.uptime_s for item in found] == [1, 2]


def test_a_cut_anywhere_leaves_whole_samples_only() -> None:
    text = sample(1) + sample(2, rss=700)
    whole = parse_samples(text)
    for end in range(len(text)):
        assert parse_samples(text[:end]) == whole[: text[:end].count("@@ end")]


def test_a_process_without_memory_is_no_sample() -> None:
    assert parse_samples("@@ sample\n1.00 2.00\n" + STAT.format(minor=1, major=1, start=1) + "@@ end\n") == ()


def test_peaks_are_of_each_figure_and_swap_counts_with_the_rest() -> None:
    runs = [parse_samples(sample(1, rss=400, swap=200) + sample(2, rss=500, swap=0) + sample(3, rss=450, swap=30))]
    record = memory_record(runs, {}, ())
    assert record.peak is not None and record.steady is not None
    assert (record.peak["rss_bytes"], record.peak["rss_and_swap_bytes"]) == (512_000, 614_400)
    assert record.steady["rss_bytes"] == 475 * 1024
    assert (record.major_faults_count, record.minor_faults_count, record.read_bytes) == (1, 4, 4096)


def test_without_samples_nothing_is_claimed() -> None:
    record = memory_record([()], {"text": (FileRange("/x"),)}, ())
    assert (record.peak, record.steady, record.groups, record.major_faults_count) == (None, None, {}, None)
    assert series([()], 0).columns == {"t_s": ()}


def test_mappings_are_told_apart_by_group() -> None:
    mappings = [
        MemoryMapping(0, 100, "/data/b/text.tflite", 10, 5, 0),
        MemoryMapping(100, 200, "/data/b/text.tflite", 20, 5, 0),
        MemoryMapping(0, 50, "/data/b/ple_000.bin", 0, 0, 0),
        MemoryMapping(0, 30, "/data/cache/1-2.xnnpack (deleted)", 30, 30, 0),
        MemoryMapping(0, 40, "/system/lib64/libc.so.6", 4, 1, 0),
        MemoryMapping(0, 40, "/data/other.bin", 3, 3, 0),
        MemoryMapping(0, 60, "[heap]", 6, 6, 6),
        MemoryMapping(0, 70, "", 7, 7, 7),
        MemoryMapping(0, 5, "[vvar]", 0, 0, 0),
    ]
    groups = {"text": (FileRange("/data/b/text.tflite"),), "ple": (FileRange("/data/b/ple_000.bin"),)}
    assert group_memory(mappings, groups, ("/data/cache/*.xnnpack",)) == {
        "text": MappedMemory(200, 30, 10),
        "ple": MappedMemory(50, 0, 0),
        "weight cache": MappedMemory(30, 30, 30),
        "libraries": MappedMemory(40, 4, 1),
        "other files": MappedMemory(40, 3, 3),
        "anonymous": MappedMemory(135, 13, 13),
    }


def test_groups_that_share_a_file_are_told_apart_by_offset() -> None:
    """For a mapping over parts of two groups, nobody can say to which its pages belong."""
    path = "/data/model.litertlm"
    mappings = [
        MemoryMapping(0, 4096, path, 10, 10, 0, 16384),
        MemoryMapping(0, 8192, path, 20, 20, 0, 32768),
        MemoryMapping(0, 4096, path, 1, 1, 0, 40960),
        MemoryMapping(0, 65536, path, 300, 300, 0, 0),
        MemoryMapping(0, 4096, path, 4000, 4000, 0, 0),
    ]
    groups = {
        "model": (FileRange(path),),
        "token_embedding": (FileRange(path, 16384, 20000),),
        "text": (FileRange(path, 32768, 40000), FileRange(path, 40960, 41000)),
    }
    found = {name: memory.rss_bytes for name, memory in group_memory(mappings, groups, ()).items()}
    assert found == {"token_embedding": 10, "text": 21, "model": 4300}


def test_times_count_from_the_run_s_begin() -> None:
    found = series([parse_samples(sample(10.5)), parse_samples(sample(20.25, major=3))], 10.0)
    assert found.columns["t_s"] == (0.5, 10.25)
    assert found.columns["major_faults_count"] == (1, 3)
    assert "temperature_celsius" not in found.columns and found.temperature_source is None


@pytest.mark.slow
@pytest.mark.parametrize("connection", ["host", "tcp", "usb"])
def test_a_running_process_is_sampled_until_its_end(
    process: subprocess.Popen[bytes], folder_device: Emulator, transport: Transport, connection: str, tmp_path: Path
) -> None:
    machines: dict[str, Machine] = {"host": Host(), "tcp": AdbDevice(transport), "usb": Usb(transport)}
    machine = machines[connection]
    sampler = Sampler(machine, process.pid, limit_s=30, interval_s=0.05, file="/data/local/tmp/samples.txt")
    file = folder_device.path("/data/local/tmp/samples.txt")

    def sampled() -> int:
        output = file.read_bytes() if file.exists() else b"".join(sampler._output)
        return output.count(b"@@ end\n")

    with sampler:
        wait_until(lambda: sampled() >= 5)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    assert not sampler.has_failed and len(sampler.samples) >= 5
    record = memory_record([sampler.samples], {"data": (FileRange(str(tmp_path / "mapped.bin")),)}, ())
    assert record.peak is not None and SIZE <= record.peak["anonymous_bytes"] < SIZE + 32 * 2**20
    assert record.groups["data"].rss_bytes == 2**23
    if isinstance(machine, Usb):
        assert machine.streams == 0
        assert not list(folder_device.path("/data/local/tmp").glob("samples*"))


class Told(Host):
    """A machine whose sampler prints this, over one connection or two."""

    def __init__(self, text: str, *, has_second_connection: bool) -> None:
        self._command = f"printf %s {shlex.quote(text)}"
        self.has_second_connection = has_second_connection
        self.waited_s = 0.0

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        self.waited_s = timeout
        return super().shell(self._command, timeout=timeout)

    def stream_shell(self, command: str, *, timeout: float) -> HostCommand:
        return super().stream_shell(self._command, timeout=timeout)


@pytest.mark.parametrize("has_second_connection", [False, True])
@pytest.mark.parametrize(("end", "failed"), [("@@ last\n", False), ("", True)])
def test_samples_that_end_before_the_process_are_a_failure(
    has_second_connection: bool, end: str, failed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Told(sample(1) + sample(2) + end, has_second_connection=has_second_connection)
    with Sampler(machine, 7, limit_s=30, file="/tmp/none") as sampler:
        pass
    assert len(sampler.samples) == 2 and sampler.has_failed is failed
    assert ("memory was not sampled to the end" in caplog.text) is failed


def test_a_loop_that_still_sleeps_is_waited_for() -> None:
    machine = Told(sample(1) + "@@ last\n", has_second_connection=False)
    with Sampler(machine, 7, limit_s=300, interval_s=90.0, file="/tmp/none"):
        pass
    assert machine.waited_s > 90


def test_a_process_that_is_not_there_gives_no_samples() -> None:
    with Sampler(Host(), 4_194_000, limit_s=30, file="/tmp/none") as sampler:
        pass
    assert sampler.has_failed


def test_the_loop_starts_two_programs_a_sample_and_little_else() -> None:
    script = sampling_script(7, 0.2)
    assert script.count("cat /proc/uptime /proc/7/stat /proc/7/status /proc/7/smaps_rollup /proc/7/io") == 1
