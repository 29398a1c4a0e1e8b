"""Devices through adb's server: Debian's, with our device or AOSP's adbd behind it."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from adbd import Adbd, AdbdSettings, Peer
from waiting import PATIENCE_S

import toolkit.base.files
from device_harness.adb import devices
from device_harness.adb import port as transport_port
from device_harness.adb.devices import connect, find_endpoint, list_devices
from device_harness.adb.server import AdbServer, ServerDevice, parse_devices, this_server
from device_harness.adb.transport import ConnectionLost, DeviceRefusal, ServiceRefused, Transport, Unauthorized
from device_harness.emulator.faults import Faults
from device_harness.machines.device import AdbDevice
from device_harness.push.push import push_source
from device_harness.push.source import open_source
from toolkit.base.errors import UsageError

TMP = "/data/local/tmp"
CHUNK = 64 * 1024

LISTED = """\
R58M123                device usb:1-2 product:panther model:Pixel_7 device:panther transport_id:1
adb-2B1-xYz._adb-tls-connect._tcp device product:p model:M device:d transport_id:5
192.168.1.20:37099     offline transport_id:4
0123456789ABCDEF       unauthorized usb:3-1 transport_id:2
????????????           no permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com/tools/device.html] usb:1-4 transport_id:3
emulator-5554          device product:sdk model:sdk_gphone device:emu transport_id:6
(no serial number)     device usb:1-4.2 product:board model:Board device:b transport_id:8
(no serial number)     unauthorized usb:1-4.3 transport_id:9
a:b                    device usb:2-1 product:p model:M device:d transport_id:10
"""  # noqa: E501


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No emulator ports and nothing on USB."""
    monkeypatch.setattr(devices, "EMULATOR_PORTS", (1,))
    monkeypatch.setattr(transport_port, "usb_devices", lambda: iter(()))


@pytest.fixture
def server(adb_server: dict[str, str], nothing_else: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Debian's adb server, where ours looks for one."""
    if shutil.which("adb") is None:
        pytest.skip("needs adb (apt-get install adb)")
    for name in ("ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_ADDRESS", "ANDROID_SERIAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", adb_server["ANDROID_ADB_SERVER_PORT"])
    yield adb_server
    adb(adb_server, "disconnect")


def adb(server: dict[str, str], *words: str) -> str:
    return subprocess.run(
        ["adb", *words], env=server, check=True, capture_output=True, text=True, timeout=PATIENCE_S
    ).stdout


@pytest.fixture
def held(server: dict[str, str], peer: Peer) -> Iterator[Transport]:
    """A connection to the device through the server."""
    peer.set_faults(Faults())
    assert "connected" in adb(server, "connect", peer.serial)
    with connect(peer.serial) as transport:
        assert transport.has_second_connection and find_endpoint(peer.serial).via_server
        yield transport


# --- what it lists ----------------------------------------------------------------------------------------------------


def test_every_kind_of_line_is_parsed() -> None:
    usb, tls, offline, stranger, nobody, emulator, *others = parse_devices(LISTED)
    assert usb == ServerDevice("R58M123", "device", True, "Pixel_7", "panther")
    assert (tls.serial, tls.state, tls.is_usb) == ("adb-2B1-xYz._adb-tls-connect._tcp", "device", False)
    assert (offline.state, stranger.state, emulator.serial) == ("offline", "unauthorized", "emulator-5554")
    assert nobody.state.startswith("no permissions (user in") and nobody.is_usb and nobody.serial == "usb:1-4"
    assert [(device.serial, device.state, device.is_usb) for device in others] == [
        ("usb:1-4.2", "device", True),
        ("usb:1-4.3", "unauthorized", True),
        ("a:b", "device", True),
    ]
    assert parse_devices("") == ()


def test_every_state_has_a_reason_and_one_device_has_one_line(
    nothing_else: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = LISTED + "127.0.0.1:5555         device product:sdk model:sdk_gphone device:emu transport_id:7\n"
    monkeypatch.setattr(AdbServer, "devices", lambda self: parse_devices(twice))
    found = list_devices(["localhost:5555"], timeout=0.3)
    assert [(device.kind, device.state) for device in found] == [
        ("usb", "device"),
        ("tcp", "device"),
        ("tcp", "offline"),
        ("usb", "unauthorized"),
        ("usb", "no permissions"),
        ("tcp", "device"),
        ("usb", "device"),
        ("usb", "unauthorized"),
        ("usb", "device"),
    ]
    assert all(device.via_server and bool(device.reason) != device.is_usable for device in found)
    assert find_endpoint("127.0.0.1:5555").serial == "emulator-5554"
    assert find_endpoint("adb-2B1-xYz._adb-tls-connect._tcp").via_server
    # What the server cannot reach over the network may still answer us; a cable it holds would not.
    assert not find_endpoint("192.168.1.20:37099").via_server
    assert all(find_endpoint(name).via_server for name in ("0123456789ABCDEF", "usb:1-4.2", "usb:1-4.3", "a:b"))
    with pytest.raises(UsageError, match="R58M123"):
        find_endpoint("R58M999")


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, ("127.0.0.1", 5037)),
        ({"ANDROID_ADB_SERVER_PORT": "5038"}, ("127.0.0.1", 5038)),
        ({"ANDROID_ADB_SERVER_ADDRESS": "10.0.0.2"}, ("10.0.0.2", 5037)),
        ({"ADB_SERVER_SOCKET": "tcp:5039"}, ("127.0.0.1", 5039)),
        ({"ADB_SERVER_SOCKET": "tcp:[::1]:5039", "ANDROID_ADB_SERVER_PORT": "1"}, ("::1", 5039)),
    ],
)
def test_the_server_is_where_adbs_variables_say(
    variables: dict[str, str], address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_ADDRESS", "ANDROID_ADB_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert this_server() == AdbServer(*address)


@pytest.mark.parametrize("spec", ["5037", "tcp:", "tcp:host:x", "localfilesystem:/run/adb", "tcp:0"])
def test_a_server_socket_that_is_no_tcp_port_is_a_usage_error(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB_SERVER_SOCKET", spec)
    with pytest.raises(UsageError, match="ADB_SERVER_SOCKET"):
        list_devices()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n", b"OKAYzzzz", b"OKAY0010short", b"", b"FAIL0004nope"]
)
def test_a_program_on_its_port_that_is_not_adb_is_no_server(
    answer: bytes, nothing_else: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("ADB_SERVER_SOCKET", f"tcp:{listener.getsockname()[1]}")

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert list_devices() == ()
        thread.join()
    assert len(caplog.messages) <= 1


# --- what goes through it ---------------------------------------------------------------------------------------------


def test_commands_and_files_go_through_it(held: Transport, peer: Peer, tmp_path: Path) -> None:
    result = held.shell("echo out; echo err >&2; exit 7", timeout=10)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 7)
    data = random.Random(0).randbytes(2_500_001)
    (tmp_path / "file").write_bytes(data)
    held.push_file(tmp_path / "file", f"{TMP}/through/file")
    assert peer.path(f"{TMP}/through/file").read_bytes() == data and held.pull_bytes(f"{TMP}/through/file") == data
    with pytest.raises(DeviceRefusal, match=r"Read-only file system|Permission denied"):
        held.push_bytes(b"x", "/system/bin/su")
    with pytest.raises(ServiceRefused):
        held._link.open("nonsense:", timeout=5)
    with held.another() as sampler:
        assert AdbDevice(sampler).has_second_connection
        assert sampler.shell("echo two", timeout=10).stdout == "two\n"


@pytest.mark.slow
def test_a_command_that_echoes_all_it_is_sent_does_not_stop_it(held: Transport) -> None:
    received, data = 0, bytes(1_000_000)
    with held.stream_exec("cat") as stream:
        for _ in range(20):
            assert stream.write(data)
            while stream.has_input:
                received += len(stream.read())
        while received < 20 * len(data):
            received += len(stream.read())
    assert received == 20 * len(data)


@pytest.mark.slow
def test_a_push_goes_on_after_cuts_behind_it(
    held: Transport, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit.base.files, "CHUNK_BYTES", CHUNK)
    path = tmp_path / "model.litertlm"
    path.write_bytes(random.Random(1).randbytes(40 * CHUNK + 17))
    source, target = open_source(path), f"{TMP}/behind"
    peer.set_faults(Faults(drop_at_byte=16 * CHUNK))
    with pytest.raises(ConnectionLost):
        push_source(held, source, target=target, patience_s=0)
    held.reconnect()
    peer.set_faults(Faults(drop_at_byte=8 * CHUNK))
    result = push_source(held, source, target=target)
    assert result.reconnects == 1 and result.bytes_skipped >= CHUNK
    assert peer.path(f"{target}/model.litertlm").read_bytes() == path.read_bytes()
    assert push_source(held, source, target=target).bytes_sent == 0


def test_a_server_that_ends_is_a_lost_connection_and_its_device_comes_back_with_it(
    held: Transport, peer: Peer, server: dict[str, str]
) -> None:
    with held.stream_exec("cat") as stream:
        adb(server, "kill-server")
        with pytest.raises(ConnectionLost):
            stream.read()
    assert not held.available
    with pytest.raises(ConnectionLost, match="adb start-server"):
        held.shell("echo", timeout=5)
    adb(server, "connect", peer.serial)
    held.reconnect(timeout=20)
    assert held.shell("echo back", timeout=5).stdout == "back\n"


@pytest.mark.slow
def test_a_device_that_does_not_know_the_servers_key_says_so_at_once(
    adbd_root: Path, server: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with Adbd(adbd_root, AdbdSettings(keys=(b"none",))) as device:
        adb(server, "connect", device.serial)
        [found] = list_devices()
        assert found.state == "unauthorized" and "allow this computer's key" in found.reason
        with pytest.raises(Unauthorized, match="allow this computer's key"):
            Transport(
                devices._server_endpoint(this_server(), ServerDevice(device.serial, "unauthorized", False, "", "")),
                auth_timeout=0.3,
            ).connect()
        assert caplog.messages == [f"{device.serial}: confirm this computer's key on the device's screen"]
