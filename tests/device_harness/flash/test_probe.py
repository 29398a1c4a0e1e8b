"""`gemma-edge probe` on an emulated device and on this computer, with the program that gcc builds."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from bundles import fill
from stand_ins import benchmark_model

import device_harness.flash.probe
from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import DeviceFault, Transport
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.flash.probe import (
    ProbeSettings,
    ReadMeasure,
    TableFacts,
    probe_device,
    read_token_file,
    require_settings,
    shard_names,
)
from device_harness.programs import build
from device_harness.programs.build import Architecture, NativeProgram, native_program, parse_architecture
from device_harness.push.push import push_source
from device_harness.push.source import open_source
from device_harness.runners.flash_probe.parser import read_probe
from gemma_edge.cli import main
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.write import write_bundle
from toolkit.results.json_lines import read_results

TARGET = "/data/local/tmp/gemma-edge/bundle"
QUICK = ("--reads", "20", "--batch", "8", "--batches", "2")

MakeDevice = Callable[[EmulatorSettings], Emulator]

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc (apt-get install gcc)")
needs_zig = pytest.mark.skipif(find_spec("ziglang") is None, reason="needs ziglang: pip install -e '.[probe]'")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> NativeProgram:
    """The program for this computer, by gcc: zig takes a minute."""
    path = tmp_path_factory.mktemp("native") / "flash_probe"
    source = Path(build.__file__).parent / "native" / "flash_probe.c"
    subprocess.run(["gcc", "-std=c99", "-O2", "-o", str(path), str(source)], check=True)
    data = path.read_bytes()
    return NativeProgram(
        "flash_probe", parse_architecture(os.uname().machine, "host"), path, hashlib.sha256(data).hexdigest(), len(data)
    )


@pytest.fixture
def bundle(tmp_path: Path, program: NativeProgram, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with one shard of 36 rows; this computer's own keys are not used."""
    for name in ("ADB_VENDOR_KEYS", "ANDROID_SERIAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(device_harness.flash.probe, "native_program", lambda name, architecture, say=None: program)
    write_bundle(tmp_path / "bundle", fill)
    return tmp_path / "bundle"


def left_behind(device: Emulator) -> set[str]:
    return {path.name for path in device.path("/data/local/tmp/gemma-edge").iterdir() if path.is_file()}


def is_running() -> bool:
    names = []
    for entry in os.scandir("/proc"):
        try:
            names.append(Path(entry.path, "cmdline").read_bytes().split(b"\0")[0])
        except OSError:
            continue
    return any(b"gemma-edge/flash_probe-" in name for name in names)


@pytest.mark.slow
@needs_gcc
def test_a_device_gets_the_shards_is_probed_and_nothing_else_stays(
    bundle: Path, make_device: MakeDevice, isolation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device = make_device(EmulatorSettings(isolation=isolation))  # type: ignore[arg-type]
    assert main(["probe", str(bundle), "--device", device.serial, "--json", *QUICK]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["device"], result["emulated"]) == (device.serial, True)
    assert result["table"]["rows"] == 36 and "pid" not in result["table"]
    assert len(result["measures"]) == 20 and all(measure["latency_p50_us"] > 0 for measure in result["measures"])
    assert left_behind(device) == set() and not is_running()
    names = {path.name for path in device.path(TARGET).iterdir()}
    assert {"ple_00000.bin", "manifest.json"} <= names and "text_decoder.tflite" not in names


@pytest.mark.slow
@needs_gcc
def test_shards_of_a_bundle_that_is_there_are_used_in_place(
    bundle: Path, folder_device: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    with Transport(tcp_endpoint(folder_device.serial)).connect() as transport:
        push_source(transport, open_source(bundle))
    before = {path.name: path.stat().st_mtime_ns for path in folder_device.path(TARGET).iterdir()}
    assert main(["probe", str(bundle), "--device", folder_device.serial, *QUICK]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder_device.path(TARGET).iterdir()} == before
    text = capsys.readouterr().out
    assert "an emulated device: these are the host's speeds" in text
    assert text.count("mmap_random") == 4 and text.count("mmap_willneed") == 2


@needs_gcc
def test_this_computer_is_probed_where_the_bundle_lies(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = bundle.parent / "tokens"
    listed.write_text("1 2 3 4 5 6 7 35")
    assert main(["probe", str(bundle), "--host", "--tokens", str(listed), "--json", *QUICK]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["device"], result["emulated"], result["table"]["listed_tokens"]) == ("host", False, 8)
    assert {measure["rows"] for measure in result["measures"]} == {20, 16}


@needs_gcc
def test_a_damaged_shard_is_one_error(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = bundle / "ple_00000.bin"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main(["probe", str(bundle), "--host", "--reads", "200", *QUICK[2:]]) == 2
    words = capsys.readouterr().err
    assert words.startswith("error: ") and "row of token 35: found damaged bytes" in words and words.count("\n") == 1


@needs_gcc
def test_an_interrupt_leaves_neither_program_nor_file(bundle: Path, folder_device: Emulator) -> None:
    with Transport(tcp_endpoint(folder_device.serial)).connect() as transport:
        push_source(transport, open_source(bundle))
        seen = []

        def interrupt(done: int, total: int) -> None:
            seen.append((done, total, is_running()))
            raise KeyboardInterrupt

        settings = ProbeSettings(reads=1_000_000)
        with pytest.raises(KeyboardInterrupt):
            probe_device(transport, TARGET, shard_names(read_manifest(bundle)), settings, progress=interrupt)
    assert seen == [(0, 20, True)] and left_behind(folder_device) == set()
    deadline = time.monotonic() + 20
    while is_running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running()


@needs_gcc
def test_what_the_device_says_is_the_error(bundle: Path, folder_device: Emulator) -> None:
    there = Transport(tcp_endpoint(folder_device.serial))
    with there.connect() as transport, pytest.raises(BundleError, match=r"ple_00009.bin: found 'No such file"):
        probe_device(transport, TARGET, ["ple_00009.bin"], ProbeSettings())
    assert left_behind(folder_device) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch", "1"), "--batch: found 1, wanted 2 to 1048576"),
        (("--reads", "0"), "--reads: found '0', wanted 1 to"),
        (("--host", "--target", "/data/x"), "--target: it cannot be used together with --host"),
        (("--seed", "x"), "--seed: found 'x', wanted 0 to"),
    ],
)
def test_wrong_options_are_refused(
    bundle: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(bundle), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ProbeSettings(batch_rows=104_858), "--batch: found 104858, wanted 2 to 104857, 1 GiB of rows of 10,240 bytes"),
        (ProbeSettings(batches=0), "--batches: found 0, wanted 1 to 1048576"),
        (ProbeSettings(seed=2**64), "--seed: found 18446744073709551616, wanted 0 to 18446744073709551615"),
        (ProbeSettings(tokens=(1, 2**63)), "--tokens: a token id of more than 64 bits"),
        (ProbeSettings(tokens=()), "--tokens: found 0 ids, wanted 1 to 4,194,304"),
    ],
)
def test_what_the_program_would_refuse_is_found_before_it_runs(settings: ProbeSettings, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        require_settings(settings, row_bytes=10_240)
    require_settings(ProbeSettings(batch_rows=104_857, tokens=(2**63 - 1,)), row_bytes=10_240)


@pytest.mark.slow
@needs_gcc
def test_only_a_device_that_says_so_is_emulated(
    bundle: Path, folder_device: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    getprop = folder_device.path("/system/bin/getprop")
    script = getprop.read_text()
    getprop.write_text("#!/bin/sh\necho '[ro.kernel.qemu]: [0]'\n")
    try:
        assert main(["probe", str(bundle), "--device", folder_device.serial, "--json", *QUICK]) == 0
    finally:
        getprop.write_text(script)
    assert json.loads(capsys.readouterr().out)["emulated"] is False


@pytest.mark.parametrize("text", ["", "1 two", "1,2", "\u00e9"])
def test_a_file_that_holds_no_token_ids_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(UsageError, match="tokens: found"):
        read_token_file(path)


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_it_is_a_runner_of_bench(
    bundle: Path, folder_device: Emulator, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = bundle.parent / "results.jsonl"
    options = [
        "--runner",
        "flash_probe",
        "-r",
        "2",
        "--results",
        str(results),
        *(["--cold"] if start == "cold" else []),
    ]
    assert main(["bench", str(bundle), "--device", folder_device.serial, *options]) == 0
    assert "ple_row:mmap_random" in capsys.readouterr().out
    [record] = read_results(results).records
    assert (record.runner, record.start, record.device.emulated, len(record.tests)) == ("flash_probe", start, True, 10)
    assert len(record.iterations) == 2
    for iteration in record.iterations:
        assert iteration.figures["batch_mmap_willneed_latency_p50_s"] > 0
        assert (iteration.figures["row_mmap_random_major_faults_count"] > 0) == (start == "cold")


def test_pages_that_cannot_be_dropped_are_an_error_of_a_cold_run() -> None:
    facts = dict.fromkeys(field.name for field in dataclasses.fields(TableFacts)) | {"measures": 1}
    table = {name: value or 0 for name, value in facts.items()}
    numbers = dict.fromkeys((field.name for field in dataclasses.fields(ReadMeasure)), 1)
    measure = numbers | {"access": "pread", "pattern": "row", "state": "not_cold", "resident_pages_before": 7}
    lines = [json.dumps({"record": "table", **table}), json.dumps({"record": "reads", **measure})]
    with pytest.raises(EnvironmentFault, match="found 7 pages that stay in memory"):
        read_probe("\n".join(lines))
    assert read_probe("\n".join(lines).replace("not_cold", "cold")).figures["row_pread_latency_p50_s"] == 1e-6
    with pytest.raises(EnvironmentFault, match="found 0 tables"):
        read_probe(lines[1])


# --- building ---------------------------------------------------------------------------------------------------------


def test_without_a_compiler_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(EnvironmentFault, match=r"pip install 'gemma-edge\[probe\]'"):
        native_program("flash_probe", "aarch64", directory=tmp_path)


@pytest.mark.parametrize("machine", ["armv7l", "armv8l", "riscv64", "", "x86_64; rm"])
def test_a_processor_that_nothing_is_built_for_is_refused(machine: str) -> None:
    with pytest.raises(DeviceFault, match="wanted aarch64 or x86_64"):
        parse_architecture(machine, "phone")


@needs_zig
def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_FLAGS", ("--no-such-flag",))
    with pytest.raises(EnvironmentFault, match="zig cc: exit code"):
        native_program("flash_probe", "aarch64", directory=tmp_path)
    assert list((tmp_path / "native").iterdir()) == []


@pytest.mark.full
@needs_zig
@pytest.mark.parametrize("architecture", ["x86_64", pytest.param("aarch64", marks=pytest.mark.full)])
def test_the_program_is_built_once_static_and_for_pages_of_16_kib(tmp_path: Path, architecture: Architecture) -> None:
    said: list[str] = []
    built = native_program("flash_probe", architecture, directory=tmp_path, say=said.append)
    assert said == [f"building flash_probe for {architecture}; the first time takes a minute"]
    assert native_program("flash_probe", architecture, directory=tmp_path, say=said.append) == built and len(said) == 1
    data = built.path.read_bytes()
    assert (data[:4], int.from_bytes(data[18:20], "little")) == (
        b"\x7fELF",
        {"aarch64": 183, "x86_64": 62}[architecture],
    )
    kinds = _segments(data)
    assert 3 not in kinds and min(kinds[1]) >= 16384  # no interpreter; PT_LOAD
    emulator = None if architecture == os.uname().machine else shutil.which(f"qemu-{architecture}-static")
    if architecture == os.uname().machine or emulator is not None:
        write_bundle(tmp_path / "bundle", fill)
        command = [*filter(None, [emulator]), str(built.path), *QUICK, str(tmp_path / "bundle/ple_00000.bin")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout.count('"record": "reads"') == 20, done.stderr


def _segments(data: bytes) -> dict[int, list[int]]:
    """Alignments of an ELF file's segments, by their kind."""
    start, size, count = (int.from_bytes(data[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    kinds: dict[int, list[int]] = {}
    for at in range(start, start + size * count, size):
        kind = int.from_bytes(data[at : at + 4], "little")
        kinds.setdefault(kind, []).append(int.from_bytes(data[at + 48 : at + 56], "little"))
    return kinds


@pytest.mark.slow
@needs_gcc
def test_a_cold_bench_can_leave_the_model_s_files_out_of_memory_and_records_what_stayed(
    bundle: Path, folder_device: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    argv = ["bench", str(bundle), "--device", folder_device.serial, "-r", "1", "--results", str(results)]
    argv += ["--runner", "benchmark_model", "--binary", str(benchmark_model(tmp_path / "bin"))]
    argv += ["--signature", "text_decoder:decode", "--cold", "--drop-page-cache"]
    assert main(argv) == 0
    shard = folder_device.path(f"{TARGET}/ple_00000.bin")
    with open(shard, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert len(held[:]) == shard.stat().st_size
        capsys.readouterr()
        assert main(argv) == 0
    err = capsys.readouterr().err
    records = read_results(results).records
    free, stayed = (record.iterations[0].figures["model_resident_bytes"] for record in records)
    assert stayed >= shard.stat().st_size and stayed >= free >= 0
    assert f"{stayed:,.0f} of " in err and "no start is cold to the kernel" in err


def test_the_page_cache_is_dropped_for_cold_starts_only(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--host", "--drop-page-cache"]) == 2
    assert "--drop-page-cache: can be used with --cold only" in capsys.readouterr().err
