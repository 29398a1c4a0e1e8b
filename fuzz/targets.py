"""The targets: for each format that others may write, a function that reads it, and seeds.

A function may raise a ToolkitError, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from device_harness.adb.faults import ConnectionLost
from device_harness.adb.link import Link
from device_harness.adb.payload import Payload
from device_harness.adb.server import parse_devices
from device_harness.adb.shell import run_shell
from device_harness.adb.sync import SyncSession
from device_harness.adb.wire import EXIT, HEADER_BYTES, STDOUT, pack_header, pack_shell, pack_sync
from device_harness.bench.sampler import parse_readings, parse_samples
from device_harness.flash.probe import parse_probe
from device_harness.parsers import android, cpu, delegates, power
from device_harness.parsers.perfetto import parse_power_rails
from device_harness.push.remote import parse_df
from device_harness.push.scripts import parse_digests
from device_harness.runners.benchmark_model.parser import parse_benchmark_model
from device_harness.runners.litert_lm.parser import parse_benchmark_info, parse_peak_memory
from device_harness.runners.native import parser as native
from device_harness.runners.python_child import read_child, read_nodes
from fuzz.checkpoint_targets import CHECKPOINT_TARGETS
from fuzz.target import EXAMPLE, MOST_SEED_BYTES, REPOSITORY, Target, beginnings, of_file, scratch
from toolkit.base import procfs
from toolkit.base.errors import BundleError, GraphError, ToolkitError
from toolkit.bundle.check_shard import check_shard
from toolkit.bundle.lock import parse_lock
from toolkit.bundle.manifest import LOCK, MANIFEST_NAME
from toolkit.bundle.manifest_json import parse_manifest
from toolkit.litertlm.check import check_litertlm
from toolkit.results.json_lines import read_results
from toolkit.tflite.gpu import gpu_refusals
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.wellformed import require_wellformed

RECORDED = REPOSITORY / "tests" / "fixtures"


@cache
def small_bundle() -> Path:
    """A small bundle of the example, its export, and nothing else."""
    from converters.convert import convert
    from converters.request import ConvertRequest
    from toolkit.litertlm.export import ExportOptions, export_litertlm

    folder = scratch() / "seeds"
    folder.mkdir()
    request = ConvertRequest(
        EXAMPLE, folder / "bundle", {"text": "int4"}, groups=("text",), sizes=("small",), context=32, prefill_sizes=(8,)
    )
    convert(request, gate=None)
    export_litertlm(folder / "bundle", folder / "model.litertlm", ExportOptions())
    return folder / "bundle"


def _size(name: str) -> int:
    return (small_bundle() / name).stat().st_size


# --- devices ----------------------------------------------------------------------------------------------------------


class _Bytes:
    """A connection to a device that sends the given bytes and then closes."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def connect(self, transport_timeout_s: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def wait(self, timeout: float) -> bytes:
        return bytes(self.read(HEADER_BYTES, timeout))

    def read(self, size: int, timeout: float) -> bytes:
        if size > len(self._rest):
            raise ConnectionLost("fuzz", found="the end")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def write(self, buffers: Sequence[Payload], timeout: float) -> None:
        """Take everything."""

    def is_alive(self) -> bool:
        return bool(self._rest)


class _Key:
    """A key that signs at once."""

    def Sign(self, data: bytes) -> bytes:
        assert len(data) == 20
        return bytes(256)

    def GetPublicKey(self) -> str:
        return "key"


def _adb(data: bytes) -> None:
    """Make one request, chosen by the first byte, to a device that answers with the rest."""
    link = Link("fuzz", _Bytes(data[1:]))
    link.connect([_Key()], timeout=0.5, auth_timeout=0.5)
    if data[0] % 2 == 0:
        run_shell(link, "true", timeout=0.5)
        return
    with SyncSession(link, stall_timeout=0.5) as session:
        session.receive("/x")


def _messages(*payloads: tuple[str, bytes]) -> bytes:
    return b"".join(pack_header(command, 1, 1, payload) + payload for command, payload in payloads)


def _adb_seeds() -> list[bytes]:
    banner = b"device::ro.product.model=x;features=shell_v2,cmd"
    connected = pack_header("CNXN", 0x01000001, 1 << 20, banner) + banner
    asked = pack_header("AUTH", 1, 0, bytes(20)) + bytes(20)
    shell = _messages(("OKAY", b""), ("WRTE", pack_shell(STDOUT, b"x") + pack_shell(EXIT, b"\0")), ("CLSE", b""))
    file = _messages(("OKAY", b""), ("OKAY", b""), ("WRTE", pack_sync("DATA", 1) + b"x" + pack_sync("DONE", 0)))
    return [b"\0" + asked + connected + shell, b"\1" + connected + file]


_PARSERS: tuple[Callable[[str], object], ...] = (
    android.parse_battery, android.parse_cpus, android.parse_light_thresholds, android.parse_properties,
    android.parse_screen, android.parse_setting, android.parse_thermal, delegates.parse_delegates, parse_samples,
    parse_benchmark_model, parse_benchmark_info, parse_peak_memory, read_child, read_nodes, parse_devices,
    procfs.parse_status, procfs.parse_smaps, procfs.parse_smaps_rollup, parse_readings, power.parse_energy_meter,
    power.parse_listed_rails, power.parse_battery_service,
    lambda text: parse_df(text, "x"), lambda text: parse_probe(text, "x"),
    lambda text: list(parse_digests(text.split("\n"))), lambda text: native.read_native(text, 8, 8),
    lambda text: native.read_profile(text, 8, ()), lambda text: native.read_gpu_nodes(text, 8, ()),
    lambda text: native.read_failure(text, 1, backend="cpu"),
)  # fmt: skip
_FILE_PARSERS: tuple[Callable[[Mapping[str, tuple[str, ...]]], object], ...] = (
    power.parse_rails, cpu.parse_clusters, cpu.parse_frequencies, cpu.parse_cpu_ticks,
    lambda files: cpu.parse_threads(files, 7),
    lambda files: [power.parse_supply(files, folder) for folder in power.battery_folders(files)],
)  # fmt: skip
"""What reads the files that `grep` prints with their paths."""


def _output(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in _PARSERS:
        with contextlib.suppress(ToolkitError):
            parse(text)
    files = power.parse_files(text)
    for read in _FILE_PARSERS:
        read(files)


_POLICY, _METER = "/sys/devices/system/cpu/cpufreq/policy4", "/sys/bus/iio/devices/iio:device0/energy_value"
_SUPPLY = "/sys/class/power_supply/battery"
_FILES = f"""{_METER}:t=349894
{_METER}:CH0(T=349894)[S10M_VDD_TPU], 5578756
{_SUPPLY}/type:Battery
{_SUPPLY}/status:Discharging
{_SUPPLY}/voltage_now:3763750
{_SUPPLY}/current_now:-109375
{_SUPPLY}/charge_counter:1018000
{_POLICY}/related_cpus:4 5
{_POLICY}/scaling_cur_freq:2400000
/proc/stat:cpu1 5 0 2 100 3 0 1 0 0 0
/proc/7/task/8/stat:8 (x) S 1 7 7 0 -1 0 4 0 1 0 5 3 0 0 20 0 1 0 9 1000 50 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 4 0
"""
_METER_DUMP = """PowerStatsService dumpsys: available Channels
ChannelId: 0, ChannelName: S10M_VDD_TPU, ChannelSubsystem: TPU
============= PowerStats HAL 2.0 energy meter ==============
       [S2M_VDD_CPUCL2]:CPU(BIG)         30203.50 mWs
"""
_SAMPLE = f"""@@ sample
17.25 55.00
7 (x) S 1 7 7 0 -1 0 4 0 1 0 5 3 0 0 20 0 1 0 9 1000 50
Name:\tx
Pid:\t7
VmRSS:\t  500 kB
rchar: 10
read_bytes: 4096
@@ files
{_FILES}@@ meter
{_METER_DUMP}@@ end
"""
_ANSWERS = "".join(
    f'{{"ok": "{name}", "seconds": 0.5, "uptime_s": 9.5, "faults": {{"minor": 4}}, "summary": "x"}}\n'
    for name in native.COMMANDS
)


def _output_seeds() -> list[bytes]:
    return [*beginnings(*_recorded()), *(text.encode() for text in (_FILES, _METER_DUMP, _SAMPLE, _ANSWERS))]


def _message(field: int, content: bytes) -> bytes:
    """A field of a protobuf message whose content is shorter than 128 bytes."""
    return bytes([field << 3 & 0x7F | 0x82, field >> 4, len(content)]) + content


def _traces() -> list[bytes]:
    """A Perfetto trace that describes a power rail and reads it once."""
    described, read = b"\x08\x00" + _message(2, b"S10M_VDD_TPU"), b"\x08\x00\x10\x96\x01\x18\x96\x01"
    return [_message(1, _message(40, _message(1, described) + _message(2, read)))]


def _recorded() -> Iterable[Path]:
    return sorted(path for path in (RECORDED / "device").rglob("*") if path.is_file())


def _graphs() -> list[bytes]:
    """Two files with their headers whole, of which the decoder's is long."""
    names = ("embedder.tflite", "text_decoder.tflite")
    return [(small_bundle() / name).read_bytes()[: 8 * MOST_SEED_BYTES] for name in names]


def _shortest_record() -> list[bytes]:
    return [min((RECORDED / "results.jsonl").read_bytes().splitlines(keepends=True), key=len)]


def _tflite(path: Path) -> object:
    with contextlib.suppress(GraphError):
        require_wellformed(path)
    return gpu_refusals(read_tflite(path).model)


_read_tflite = of_file("m.tflite", _tflite, lambda: 1 << 24)
_read_litertlm = of_file("m.litertlm", check_litertlm, lambda: _size("../model.litertlm"))
_read_shard = of_file("ple_00000.bin", check_shard, lambda: _size("ple_00000.bin"))

TARGETS = (
    *CHECKPOINT_TARGETS,
    Target("manifest", lambda data: parse_manifest(data, []), lambda: beginnings(small_bundle() / MANIFEST_NAME)),
    Target("lock", parse_lock, lambda: beginnings(small_bundle() / LOCK)),
    Target("tflite", _read_tflite, _graphs),
    Target(
        "litertlm",
        _read_litertlm,
        lambda: beginnings(small_bundle().parent / "model.litertlm"),
    ),
    Target(
        "shard",
        _read_shard,
        lambda: beginnings(small_bundle() / "ple_00000.bin"),
    ),
    Target("adb", _adb, _adb_seeds),
    Target("output", _output, _output_seeds),
    Target("trace", parse_power_rails, _traces),
    Target("results", of_file("r.jsonl", read_results), _shortest_record),
)


def target(name: str) -> Target:
    """A target by name."""
    found = {item.name: item for item in TARGETS}
    if name not in found:
        raise BundleError("target", found=name, wanted=" or ".join(found))
    return found[name]
