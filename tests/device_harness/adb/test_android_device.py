"""On a real device, or Android's own emulator: what the other tests show on an emulated one.

    GEMMA_EDGE_TEST_DEVICE=emulator-5554 python -m pytest -m device

Everything happens in one folder under /data/local/tmp, which is removed at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from bundles import fill

from device_harness.adb.devices import connect, list_devices
from device_harness.adb.transport import DeviceRefusal, DeviceTimeout, Transport
from device_harness.bench.job import JobSettings, Subject, run_job
from device_harness.bench.readiness import ReadinessSettings
from device_harness.bench.state import read_device, read_state
from device_harness.flash.probe import ProbeSettings, probe_device, shard_names
from device_harness.machines.device import AdbDevice
from device_harness.push.push import push_source
from device_harness.push.source import Step, open_source
from device_harness.runners.interface import Job, Reading, Workload
from gemma_edge.cli import main
from toolkit.base.files import CHUNK_BYTES, hash_file
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.write import write_bundle
from toolkit.results.json_lines import read_results
from toolkit.results.record import ModelRecord

LITERT_LM = os.environ.get("GEMMA_EDGE_LITERT_LM", "")
MODEL = os.environ.get("GEMMA_EDGE_TEST_MODEL", "")
SERIAL = os.environ.get("GEMMA_EDGE_TEST_DEVICE", "")
TARGET = "/data/local/tmp/gemma-edge-test"

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not SERIAL, reason="needs an Android device: GEMMA_EDGE_TEST_DEVICE=SERIAL|HOST:PORT"),
]


@pytest.fixture(scope="module")
def device() -> Iterator[Transport]:
    with connect(SERIAL) as transport:
        transport.shell(f"rm -rf {TARGET} && mkdir -p {TARGET}", timeout=60).require("a clean folder")
        yield transport
        transport.reconnect()
        transport.shell(f"rm -rf {TARGET}", timeout=60)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three chunks and a little more."""
    path = tmp_path / "model.litertlm"
    path.write_bytes(np.random.default_rng(8).bytes(3 * CHUNK_BYTES + 12345))
    return path


def sha256_there(device: Transport, name: str) -> str:
    return device.shell(f"sha256sum {TARGET}/{name}", timeout=120).require(name).split()[0]


def test_it_is_listed_as_usable(device: Transport) -> None:
    [found] = [found for found in list_devices([device.serial]) if found.serial == device.serial]
    assert found.is_usable, found


def test_commands_have_exit_codes_streams_and_time_limits(device: Transport) -> None:
    result = device.shell("echo out; echo err >&2; exit 7", timeout=20)
    assert (result.stdout, result.exit_code) == ("out\n" if result.stderr else "out\nerr\n", 7)
    with pytest.raises(DeviceTimeout):
        device.shell("sleep 30", timeout=1)
    with pytest.raises(DeviceRefusal):
        device.push_bytes(b"x", "/proc/no-such-place/file")


def test_a_file_comes_back_as_it_went(device: Transport) -> None:
    data = np.random.default_rng(9).bytes(1_234_567)
    device.push_bytes(data, f"{TARGET}/there")
    assert device.pull_bytes(f"{TARGET}/there") == data


def test_a_push_is_taken_up_after_an_interrupt_then_sends_what_changed_then_nothing(
    device: Transport, model: Path
) -> None:
    def interrupt(step: Step, done: int, total: int) -> None:
        if step == "send" and done >= 2 * CHUNK_BYTES + CHUNK_BYTES // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_source(device, open_source(model), target=TARGET, progress=interrupt)
    device.reconnect()
    rest = push_source(device, open_source(model), target=TARGET)
    assert 0 < rest.bytes_sent < model.stat().st_size
    assert sha256_there(device, model.name) == hash_file(model).sha256
    data = bytearray(model.read_bytes())
    data[CHUNK_BYTES + 5] ^= 1
    model.write_bytes(data)
    changed = push_source(device, open_source(model), target=TARGET)
    assert changed.bytes_sent == CHUNK_BYTES and changed.bytes_copied == len(data) - CHUNK_BYTES
    assert sha256_there(device, model.name) == hash_file(model).sha256
    assert push_source(device, open_source(model), target=TARGET).bytes_sent == 0


@pytest.mark.skipif(find_spec("ziglang") is None, reason="needs ziglang: pip install -e '.[probe]'")
def test_flash_is_probed(device: Transport, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", fill)
    push_source(device, open_source(tmp_path / "bundle"), target=f"{TARGET}/bundle")
    names = shard_names(read_manifest(tmp_path / "bundle"))
    result = probe_device(device, f"{TARGET}/bundle", names, ProbeSettings(reads=50, batch_rows=16, batches=2))
    assert len(result.measures) == 20 and all(measure.latency_p50_us > 0 for measure in result.measures)


def test_its_state_is_told(device: Transport) -> None:
    found, state = read_device(AdbDevice(device)), read_state(AdbDevice(device))
    assert found.kind == "adb" and found.fingerprint and found.kernel and found.abi and found.cpus > 0
    assert state.battery is not None and state.cpus and state.airplane_mode is not None


def test_a_job_is_measured_and_sampled_and_leaves_nothing(device: Transport) -> None:
    job = Job(
        tests={"sleep": "inference_s"},
        argv=("sleep", "1"),
        read=lambda output: Reading({"inference_s": 1.0}),
        model=ModelRecord("none", "tflite", None, "0" * 64, 0, None),
        binaries=(),
    )
    settings = JobSettings(repetitions=2, readiness=ReadinessSettings(timeout_s=5), folder=TARGET)
    subject = Subject(AdbDevice(device), read_device(AdbDevice(device)), "sleep", job)
    outcome = run_job(subject, Workload(), settings, progress=lambda *_: None, note=lambda text: None)
    assert outcome.ended_by is None and outcome.record is not None
    assert len(outcome.record.iterations) == 2 and outcome.record.memory.peak is not None
    assert "sampler_failed" not in outcome.record.flags
    assert "samples" not in device.shell(f"ls {TARGET}", timeout=20).stdout


@pytest.mark.skipif(
    not (LITERT_LM and MODEL),
    reason="needs GEMMA_EDGE_LITERT_LM=litert_lm_advanced_main and GEMMA_EDGE_TEST_MODEL=FILE.litertlm",
)
def test_google_s_engine_runs_a_model(device: Transport, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    argv = ["bench", MODEL, "--device", SERIAL, "--binary", LITERT_LM, "-r", "2"]
    assert main([*argv, "-p", "64", "-n", "16", "--results", str(results)]) == 0
    (record,) = read_results(results).records
    assert len(record.values("pp64")) == len(record.values("tg16")) == 2
