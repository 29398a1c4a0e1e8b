"""Every answer of a device is bounded in length and time, and an invalid one is one error that names the device."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from lying_device import CONNECTED, V1_CONNECTED, Lie, lying_device, message, says, serves

from device_harness.adb import devices, port, shell, sync
from device_harness.adb.devices import list_devices, tcp_endpoint
from device_harness.adb.faults import DeviceFault, ProtocolFault
from device_harness.adb.port import TcpPort, generate_key
from device_harness.adb.transport import Transport
from device_harness.adb.wire import AUTH_TOKEN, EXIT, STDERR, STDOUT, pack_shell, pack_sync
from device_harness.emulator.device import Emulator, EmulatorSettings
from gemma_edge import cli

TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an adb key."""
    path = tmp_path_factory.mktemp("home")
    (path / ".android").mkdir()
    generate_key(path / ".android" / "adbkey")
    return path


@pytest.fixture(autouse=True)
def alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No adb server, nothing on USB and no emulators."""
    monkeypatch.setenv("HOME", str(home))
    for name in ("ADB_VENDOR_KEYS", "ANDROID_SERIAL", "ANDROID_USER_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADB_SERVER_SOCKET", "tcp:1")
    monkeypatch.setattr(devices, "EMULATOR_PORTS", (1,))
    monkeypatch.setattr(port, "usb_devices", lambda: iter(()))


def endless(piece: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: itertools.repeat(piece)


def again_and_again(piece: bytes) -> Lie:
    return lambda header, _: itertools.repeat(piece)


TOO_LONG = b"WRTE" + bytes(8) + b"\xff\xff\xff\x7f" + bytes(4) + bytes(x ^ 0xFF for x in b"WRTE")
HANDSHAKES: dict[str, Lie] = {
    **{f"a token of {size} bytes": says(message("AUTH", AUTH_TOKEN, 0, bytes(size))) for size in (0, 19, 21, 4096)},
    "a question of an unknown type": says(message("AUTH", 7, 0, bytes(20))),
    "messages of no bytes": says(message("CNXN", 0x01000001, 0, b"device::")),
    "no adb at all": says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a message without end": says(TOO_LONG),
    "a wrong checksum": says(message("CNXN", 0x01000001, 1 << 20, b"device::")[:-1] + b"!"),
    "nothing": says(),
    "half a header": says(CONNECTED[:12]),
    "half a banner": says(CONNECTED[:-5]),
    "endless messages that nobody asked for": again_and_again(message("OKAY")),
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", HANDSHAKES.values(), ids=HANDSHAKES.keys())
def test_a_bad_device_is_named_with_a_reason_and_does_not_hide_a_good_one(
    lie: Lie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "_SLOWEST_BYTES_PER_S", 1e9)
    with lying_device(lie) as address, Emulator(EmulatorSettings(isolation="folder")) as good:
        found = {device.serial: device for device in list_devices([address, good.serial], timeout=TIMEOUT_S)}
    assert found[good.serial].is_usable
    assert not found[address].is_usable and found[address].reason


def test_devices_lists_a_liar_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with lying_device(HANDSHAKES["a token of 19 bytes"]) as address:
        cli.main(["devices", "--address", address, "--timeout", "1"])
    said = capsys.readouterr()
    assert address in said.out and "19 bytes" in said.out
    assert "Traceback" not in said.err


def drips() -> Iterator[bytes]:
    for byte in CONNECTED * 100:
        time.sleep(0.01)
        yield bytes([byte])


def test_a_message_that_comes_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "_SLOWEST_BYTES_PER_S", 1e9)
    with lying_device(lambda header, _: drips()) as address:
        host, _, number = address.rpartition(":")
        connection = TcpPort(host, int(number))
        connection.connect(1.0)
        connection.write([message("CNXN")], 1.0)
        with pytest.raises(DeviceFault, match="a message that does not end in time"):
            connection.read(1000, 0.2)
        connection.close()


def ask(lie: Lie, request: Callable[[Transport], object]) -> None:
    with lying_device(lie) as address, Transport(tcp_endpoint(address)).connect(timeout=5) as device:
        request(device)


def run(device: Transport) -> object:
    return device.shell("true", timeout=TIMEOUT_S)


def feed(device: Transport) -> object:
    with device.stream_exec("true", timeout=TIMEOUT_S) as stream:
        while stream.read():
            pass
    return None


def pull(device: Transport) -> object:
    return device.pull_bytes("/data/local/tmp/x")


def nothing_and_then_too_much() -> Iterator[bytes]:
    yield pack_sync("DATA", 1 << 31)
    yield bytes(100)


CHUNK = bytes(60_000)
ANSWERS: dict[str, tuple[Lie, Callable[[Transport], object], str]] = {
    "endless output": (serves(endless(pack_shell(STDOUT, CHUNK))), run, "shell: found over 1,000,000 bytes of output"),
    "endless errors": (serves(endless(pack_shell(STDERR, CHUNK))), run, "shell: found over 1,000,000 bytes of output"),
    "endless output of version 1": (serves(endless(CHUNK), V1_CONNECTED), run, "over 1,000,000 bytes of output"),
    "endless raw output": (serves(endless(pack_shell(STDOUT, CHUNK))), feed, "shell: found over 1,000,000 bytes"),
    "endless empty packets": (serves(endless(pack_shell(STDOUT))), feed, "shell"),
    "an unknown packet": (serves(lambda: [bytes([9]) + bytes(4)]), run, "shell v2 packet: found id 9"),
    "a packet without end": (serves(lambda: [bytes([1]) + b"\xff" * 4]), run, "shell v2 packet"),
    "no exit code": (serves(lambda: [pack_shell(STDOUT, b"x"), pack_shell(EXIT)]), run, "does not end in time"),
    "an endless file": (serves(endless(pack_sync("DATA", len(CHUNK)) + CHUNK)), pull, "over 1,000,000 bytes"),
    "a block without end": (serves(nothing_and_then_too_much), pull, "wanted DATA, DONE or FAIL"),
    "a reason without end": (serves(lambda: [pack_sync("FAIL", 1 << 31)]), pull, "a reason of 2147483648 bytes"),
    "no sync at all": (serves(lambda: [b"\x1b[2J" + bytes(4)]), pull, "wanted DATA, DONE or FAIL"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("lie", "request_", "said"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_without_end_or_sense_is_one_fault_that_names_device_and_service(
    lie: Lie, request_: Callable[[Transport], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "MAX_RESULT_BYTES", 1_000_000)
    monkeypatch.setattr(shell, "_GRACE_S", 0.0)
    monkeypatch.setattr(sync, "MAX_PULL_BYTES", 1_000_000)
    with pytest.raises(DeviceFault, match=said):
        ask(lie, request_)


def test_a_flood_of_empty_messages_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_harness.adb.link.MAX_INBOX_BYTES", 64_000)

    def flooded(device: Transport) -> None:
        with device.stream_exec("true", timeout=TIMEOUT_S) as stream:
            stream.write(b"x" * 100)

    with pytest.raises(ProtocolFault, match="unexpected bytes"):
        ask(serves(endless(b"")), flooded)


def test_a_marker_without_end_is_held_in_a_few_bytes() -> None:
    found = shell._MarkerFilter("exit-x:")
    assert found.feed(b"before exit-x:") == b"before "
    for _ in range(1000):
        assert found.feed(b"1" * 10_000) == b""
        assert len(found._held) < 20
    assert (found.feed(b"\nexit-x:3\n"), found.code) == (b"", 3)
