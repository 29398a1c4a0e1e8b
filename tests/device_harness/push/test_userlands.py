"""What a push and a command need of the programs and folders that a device has, on AOSP's adbd."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from adbd import Adbd, AdbdSettings, Userland

import toolkit.base.files
from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import ConnectionLost, DeviceRefusal, DeviceTimeout, Transport
from device_harness.emulator.faults import Faults
from device_harness.machines.device import AdbDevice
from device_harness.programs.build import PUSH_RECEIVER, native_program, parse_architecture
from device_harness.push.push import push_source
from device_harness.push.receiver import Receiver, place_receiver
from device_harness.push.source import open_source
from toolkit.base.errors import EnvironmentFault

TMP = "/data/local/tmp"
CHUNK = 64 * 1024

Start = Callable[[AdbdSettings], tuple[Adbd, Transport]]


@pytest.fixture
def start(adbd_root: Path) -> Iterator[Start]:
    """Starts adbds that end with the test."""
    with ExitStack() as stack:

        def run(settings: AdbdSettings) -> tuple[Adbd, Transport]:
            device = stack.enter_context(Adbd(adbd_root, settings))
            return device, stack.enter_context(Transport(tcp_endpoint(device.serial)).connect())

        yield run


@pytest.fixture
def native() -> None:
    """Skips without our own program."""
    try:
        native_program(PUSH_RECEIVER, parse_architecture(os.uname().machine, "host"))
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of many small chunks and a rest."""
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", CHUNK)
    path = tmp_path / "model.litertlm"
    path.write_bytes(random.Random(1).randbytes(40 * CHUNK + 17))
    return path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def cut(device: Adbd, at: int) -> Iterator[None]:
    device.set_faults(Faults(drop_at_byte=at))
    with pytest.raises(ConnectionLost):
        yield


BOTH: tuple[Receiver, ...] = ("shell", "native")
PUSHES = [
    ("android", "shell"),
    ("toybox", "native"),
    ("busybox", "shell"),
    pytest.param("android", "native", marks=pytest.mark.full),
    pytest.param("busybox", "native", marks=pytest.mark.full),
    *(pytest.param("host", receiver, marks=pytest.mark.full) for receiver in BOTH),
]


@pytest.mark.slow
@pytest.mark.parametrize(("userland", "receiver"), PUSHES)
def test_a_push_is_taken_up_after_a_cut_and_its_files_belong_to_their_owner(
    userland: Userland, receiver: Receiver, start: Start, native: None, model: Path
) -> None:
    device, transport = start(AdbdSettings(userland=userland))
    target = f"{TMP}/bundle"
    placed = place_receiver(transport, receiver)
    source = open_source(model)
    with cut(device, 20 * CHUNK):
        push_source(transport, source, target=target, receiver=placed, patience_s=0)
    assert mode(device.path(f"{target}/model.litertlm.part")) == 0o600
    transport.reconnect()
    result = push_source(transport, source, target=target, receiver=placed)
    assert 0 < result.bytes_sent < model.stat().st_size
    assert device.path(f"{target}/model.litertlm").read_bytes() == model.read_bytes()
    assert mode(device.path(f"{target}/model.litertlm")) == 0o644  # complete, and so for apps too
    assert push_source(transport, source, target=target, receiver=placed).bytes_sent == 0
    if placed is not None:
        assert mode(device.path(placed)) == 0o700 and mode(device.path(placed).parent) == 0o700
        assert place_receiver(transport, receiver) == placed


@pytest.mark.slow
@pytest.mark.parametrize(
    "userland", ["toybox", "busybox", *(pytest.param(name, marks=pytest.mark.full) for name in ("android", "host"))]
)
def test_a_command_has_its_exit_code_and_its_time_limit(userland: Userland, start: Start) -> None:
    _, transport = start(AdbdSettings(userland=userland))
    assert transport.shell("echo out; exit 7", timeout=10).exit_code == 7
    with pytest.raises(DeviceTimeout, match="was killed"):
        transport.shell("sleep 60", timeout=1)
    running = transport.shell("cat /proc/[0-9]*/cmdline", timeout=10).stdout.replace("\0", " ")
    assert "sleep 60" not in running and "adbd" in running


def test_without_dd_the_shell_is_one_error_before_anything_is_sent(start: Start, model: Path) -> None:
    device, transport = start(AdbdSettings(userland="toybox"))
    with pytest.raises(DeviceRefusal, match="a device without dd; push with --receiver native"):
        push_source(transport, open_source(model), target=f"{TMP}/bundle")
    assert not list(device.path(f"{TMP}/bundle").iterdir())


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("sha256sum",), "without sha256sum; push with --receiver native"),
        (("truncate", "dd"), "without truncate and dd"),
    ],
)
def test_each_missing_program_is_named(missing: tuple[str, ...], words: str, start: Start, model: Path) -> None:
    device, transport = start(AdbdSettings(userland="android"))
    for name in missing:
        device.path(f"/system/bin/{name}").unlink()
    with pytest.raises(DeviceRefusal, match=words):
        push_source(transport, open_source(model), target=f"{TMP}/bundle")


def test_a_folder_that_cannot_be_written_is_one_error_and_another_target_works(
    start: Start, native: None, model: Path
) -> None:
    device, transport = start(AdbdSettings(tmp="read-only"))
    with pytest.raises(DeviceRefusal, match="Read-only file system; name a folder"):
        push_source(transport, open_source(model), target=f"{TMP}/bundle")
    said: list[str] = []
    assert place_receiver(transport, "auto", say=said.append) is None
    assert "Read-only file system" in said[0] and "the device's own tools" in said[0]
    with pytest.raises(DeviceRefusal, match="Read-only file system"):
        place_receiver(transport, "native")
    push_source(transport, open_source(model), target="/sdcard/models")
    assert device.path("/sdcard/models/model.litertlm").read_bytes() == model.read_bytes()


def test_a_missing_folder_is_made(start: Start, model: Path) -> None:
    device, transport = start(AdbdSettings(tmp="missing"))
    push_source(transport, open_source(model), target=f"{TMP}/bundle")
    assert device.path(f"{TMP}/bundle/model.litertlm").read_bytes() == model.read_bytes()


def test_what_a_command_makes_is_its_owners_alone_such_as_a_runners_weight_cache(start: Start) -> None:
    device, transport = start(AdbdSettings())
    script = f"echo packed > {TMP}/weights.xnnpack_cache; mkdir {TMP}/made"
    AdbDevice(transport).shell(script, timeout=10).require("cache")
    assert mode(device.path(f"{TMP}/weights.xnnpack_cache")) == 0o600
    assert mode(device.path(f"{TMP}/made")) == 0o700
