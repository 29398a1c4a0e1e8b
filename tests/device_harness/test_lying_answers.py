"""Answers that no honest device would send: numbers of 5,000 digits, other JSON, names that nobody asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from device_harness.adb.transport import DeviceRefusal
from device_harness.bench.sampler import parse_readings, parse_samples
from device_harness.flash.probe import parse_probe
from device_harness.parsers import android, delegates
from device_harness.parsers.cpu import parse_clusters
from device_harness.parsers.delegates import undelegated_nodes
from device_harness.parsers.power import parse_energy_meter, parse_files
from device_harness.push.chunks import OnDigest, OnSent
from device_harness.push.remote import RemoteFolder, parse_df
from device_harness.push.scripts import ChunkRun, parse_digests
from device_harness.push.source import PushFile
from device_harness.runners.benchmark_model.parser import parse_benchmark_model
from device_harness.runners.child_program import RESULT
from device_harness.runners.litert_lm.parser import parse_benchmark_info
from device_harness.runners.python_child import read_child, read_nodes
from toolkit.base.errors import ToolkitError

LONG = "9" * 5000
ODD = "\u0663"  # a digit to Python, and to no program on a device
NUMBERS = (LONG, ODD, "-", "", "1e999", "NaN")

TEXTS: dict[str, tuple[Callable[[str], object], str]] = {
    "battery": (android.parse_battery, "level: {}\nscale: {}\ntemperature: {}\nstatus: {}\n"),
    "thermal": (
        android.parse_thermal,
        "Thermal Status: 0\nCurrent temperatures from HAL:\n"
        "Temperature{{mValue={}, mType={}, mName=skin, mStatus=0}}\n",
    ),
    "thresholds": (
        android.parse_light_thresholds,
        "TemperatureThreshold{{mType=3, mName=skin, mHotThrottlingThresholds=[{}, {}, {}]}}\n",
    ),
    "cpus": (android.parse_cpus, "cpu0|schedutil|{}|{}|{}\n"),
    "screen": (android.parse_screen, "mWakefulness={}\n"),
    "delegates": (
        delegates.parse_delegates,
        "Replacing {} out of {} node(s) with delegate (X) node, yielding {} partitions.\n",
    ),
    "free space": (lambda text: parse_df(text, "x"), "Filesystem\n/dev/fuse {} {} {} 40% /sdcard\n"),
    "digests": (lambda text: list(parse_digests([text])), f"a.bin {{}} {'0a' * 32}"),
    "benchmark_model": (parse_benchmark_model, "Model initialization: {} ms\nInference (avg): {} ms ({} runs)\n"),
    "BenchmarkInfo": (parse_benchmark_info, "BenchmarkInfo:\nInit Total: {} ms\nPrefill Turns (Total {}):\n"),
    "profile": (undelegated_nodes, "Run Order\nTop by Computation Time\nNumber of nodes executed: {}\n"),
    "samples": (parse_samples, "@@sample\n@@uptime\n{} {}\n@@clock\n{}\n@@end\n"),
    "readings": (
        parse_readings,
        "@@ sample\n1.0 1.0\n@@ files\n/proc/stat:cpu0 {} 1 2 3\n/proc/7/task/7/stat:7 (x) S {}\n"
        "/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq:{}\n/b/status:Full\n/b/voltage_now:{}\n"
        "/m/energy_value:t=1\n/m/energy_value:CH0(T=1)[A], {}\n@@ end\n",
    ),
    "meter": (parse_energy_meter, "PowerStats HAL 2.0 energy meter\n[A]:CPU {}.00 mWs\n"),
    "clusters": (
        lambda text: parse_clusters(parse_files(text)),
        "/sys/devices/system/cpu/cpufreq/policy0/related_cpus:{}\n",
    ),
    "probe": (lambda text: parse_probe(text, "x"), '{{"record": "table", "rows": {}}}\n'),
    "child": (read_child, f'{RESULT}{{{{"begin_s": {{}}, "end_s": 1, "figures": {{{{}}}}, "phases": {{{{}}}}}}}}\n'),
}


@pytest.mark.parametrize("number", NUMBERS, ids=["5000 digits", "another script", "a dash", "nothing", "1e999", "NaN"])
@pytest.mark.parametrize(("parse", "text"), TEXTS.values(), ids=TEXTS.keys())
def test_a_number_that_is_none_is_left_out_or_one_error(parse: Callable[[str], object], text: str, number: str) -> None:
    try:
        parse(text.replace("{}", number).replace("{{", "{").replace("}}", "}"))
    except ToolkitError as error:
        assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "value",
    ["", "{", "[]", "1", "null", '"x"', "{}", '{"error": {}}', '{"begin_s": "x", "end_s": 1, "figures": {}}',
     '{"begin_s": 0, "end_s": 1, "figures": []}', '{"begin_s": 0, "end_s": 1, "figures": {"no such": 1}, "phases": {}}',
     '{"begin_s": 0, "end_s": 1, "figures": {}, "phases": {}, "more": 1}',
     '{"begin_s": 0, "end_s": 1, "figures": {}, "phases": {"prompt": [1, 2]}}',
     '{"delegated_nodes": -1, "nodes": 1, "source": "x"}',
     '{"delegated_nodes": 1, "nodes": 1, "source": ["x"]}', json.dumps({"a": LONG}), "[" * 100_000],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_child, read_nodes])
def test_a_child_that_prints_other_json_is_one_error(read: Callable[[str], object], value: str) -> None:
    for output in (RESULT + value, f"{RESULT}{value}\n{RESULT}{value}", value):
        with pytest.raises(ToolkitError, match="runner in Python"):
            read(output)


class Answering:
    """A stand-in for a connected device with one answer to every command."""

    serial = "LIAR"

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def shell(self, command: str, *, timeout: float) -> object:
        class Result:
            @staticmethod
            def require(what: str) -> str:
                return Answering.last

        Answering.last = self.answer
        return Result

    last = ""


@pytest.mark.parametrize(
    "answer", [f"a.bin {LONG}", f"a.bin {ODD}", "b.bin 3", "../x 3", "a.bin", "a.bin \x1b[2J", "x"]
)
def test_sizes_of_files_that_nobody_asked_for_are_refused(answer: str) -> None:
    folder = RemoteFolder(Answering(answer), "/data/x")  # type: ignore[arg-type]
    with pytest.raises(DeviceRefusal, match="LIAR /data/x") as caught:
        folder.sizes(["a.bin"])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("name", "number"), [("b.bin.part", 1), ("a.bin", 1), ("a.bin.part", 0), ("a.bin.part", 3)])
def test_hashes_of_chunks_that_were_neither_sent_nor_copied_are_refused(name: str, number: int) -> None:
    digest = "0a" * 32

    class Chunks:
        def store(self, runs: Sequence[ChunkRun], on_sent: OnSent, on_digest: OnDigest) -> None:
            on_digest(name, number, digest)

        def copy(self, runs: Sequence[ChunkRun]) -> Iterator[tuple[str, int, str]]:
            yield name, number, digest

    folder = RemoteFolder(Answering(""), "/data/x")  # type: ignore[arg-type]
    folder._chunks = Chunks()  # type: ignore[assignment]
    runs = [ChunkRun(PushFile("a.bin", Path("a.bin"), 4, (digest,) * 4, 1), 1, 3)]

    def take(name: str, number: int, digest: str) -> None:
        raise AssertionError(name)

    acts: list[Callable[[], None]] = [
        lambda: folder.store(runs, lambda file, count: None, take),
        lambda: folder.copy(runs, take),
    ]
    for act in acts:
        with pytest.raises(DeviceRefusal, match=f"a hash of {name} {number}, wanted a hash that was asked for"):
            act()


def words(lines: Sequence[str]) -> list[tuple[str, int, str]]:
    return list(parse_digests(lines))


def test_hashes_are_read_only_from_whole_lines_of_the_form() -> None:
    digest = "0a" * 32
    assert words([f"a.bin 1 {digest}", f"a.bin 1 {digest}0", f"a/b 1 {digest}", f"{'a' * 300} 1 {digest}"]) == [
        ("a.bin", 1, digest)
    ]
