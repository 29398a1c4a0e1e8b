"""Which devices are found, which cannot be used and why, and which keys open them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_usb import PACKET_BYTES, FakeUsb, plug_in

from device_harness.adb import devices
from device_harness.adb import port as transport_port
from device_harness.adb.devices import (
    connect,
    find_endpoint,
    key_paths,
    list_devices,
    require_distinct,
    signers,
    tcp_endpoint,
)
from device_harness.adb.port import generate_key, load_signer, usb_devices, usb_fault
from device_harness.adb.transport import ConnectionLost, DeviceFault, Transport, Unauthorized
from device_harness.emulator.auth import PublicKey, is_signed, parse_public_key
from device_harness.emulator.daemon import Access
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from gemma_edge import cli
from toolkit.base.errors import EnvironmentFault, UsageError

MakeDevice = Callable[[EmulatorSettings], Emulator]
TMP = "/data/local/tmp"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adb key; making one takes a while."""
    path = tmp_path_factory.mktemp("keys") / "adbkey"
    generate_key(path)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Path) -> Path:
    """A home with that key, no emulator ports, no adb server and nothing on USB."""
    (tmp_path / ".android").mkdir()
    for suffix in ("", ".pub"):
        (tmp_path / f".android/adbkey{suffix}").write_bytes(Path(f"{key}{suffix}").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ADB_VENDOR_KEYS", "ANDROID_SERIAL", "ANDROID_USER_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADB_SERVER_SOCKET", "tcp:1")
    monkeypatch.setattr(devices, "EMULATOR_PORTS", (1,))
    monkeypatch.setattr(transport_port, "usb_devices", lambda: iter(()))
    return tmp_path


@pytest.fixture
def device(make_device: MakeDevice) -> Emulator:
    return make_device(EmulatorSettings(isolation="folder"))


def public_key(path: Path) -> PublicKey:
    found = parse_public_key(Path(f"{path}.pub").read_bytes())
    assert found is not None
    return found


def scan(monkeypatch: pytest.MonkeyPatch, *found: Emulator) -> None:
    monkeypatch.setattr(devices, "EMULATOR_PORTS", tuple(device.port for device in found))


# --- what is there ----------------------------------------------------------------------------------------------------


def test_no_device_is_an_empty_list_and_makes_no_key(home: Path) -> None:
    (home / ".android/adbkey").unlink()
    assert list_devices() == ()
    assert not (home / ".config").exists()


def test_emulators_of_this_computer_are_found_and_say_so(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    scan(monkeypatch, device)
    (found,) = list_devices()
    assert (found.serial, found.kind, found.state) == (device.serial, "tcp", "device")
    assert "emulated" in found.model and found.is_usable


def test_each_reason_why_a_device_cannot_be_used_is_told(make_device: MakeDevice) -> None:
    locked = make_device(EmulatorSettings(isolation="folder", access=Access(keys=())))
    silent = make_device(EmulatorSettings(isolation="folder", faults=Faults(is_silent=True)))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{bound.getsockname()[1]}"
        found = list_devices([locked.serial, silent.serial, nobody], timeout=0.5)
    assert [device.state for device in found] == ["unauthorized", "offline", "not found"]
    assert all(word in device.reason for word, device in zip(("screen", "no answer", "refused"), found, strict=True))


def test_something_else_on_an_emulators_port_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        monkeypatch.setattr(devices, "EMULATOR_PORTS", (listener.getsockname()[1],))
        monkeypatch.setattr(devices, "_answers", lambda port: True)
        listener.close()
        assert list_devices(timeout=0.5) == ()


# --- which one is meant -----------------------------------------------------------------------------------------------


def test_the_only_device_needs_no_name(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    scan(monkeypatch, device)
    with connect() as transport:
        assert transport.serial == device.serial


def test_several_devices_are_an_error_that_lists_them(
    device: Emulator, make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_device(EmulatorSettings(isolation="folder"))
    scan(monkeypatch, device, other)
    with pytest.raises(UsageError, match=f"{device.serial}.*{other.serial}.*--device"):
        connect()
    with connect(other.serial) as transport:
        assert transport.serial == other.serial
    monkeypatch.setenv("ANDROID_SERIAL", device.serial)
    with connect() as transport:
        assert transport.serial == device.serial


def test_no_device_and_unusable_ones_are_an_error_with_the_reasons(
    make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentFault, match="no device"):
        connect()
    locked = make_device(EmulatorSettings(isolation="folder", access=Access(keys=())))
    scan(monkeypatch, locked)
    monkeypatch.setattr(devices.list_devices, "__kwdefaults__", {"timeout": 0.3, "scan": True})
    with pytest.raises(EnvironmentFault, match=r"trust|key"):
        connect()


@pytest.mark.parametrize("address", ["", ":5555", "host:", "host:0", "host:65536", "host:x", "host:-1"])
def test_an_address_that_is_none_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        tcp_endpoint(address)


@pytest.mark.parametrize("name", ["10.0.0.2:70000", "localhost:", "emulator-99999"])
def test_an_address_with_a_wrong_port_is_told_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("R58M999", FakeUsb(0)))
    with pytest.raises(UsageError, match=rf"device address: found '{name}', wanted HOST:PORT"):
        find_endpoint(name)


@pytest.mark.parametrize("name", ["R58M123", "usb:1-2", "host:x"])
def test_an_unknown_name_is_an_error_that_lists_what_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("R58M999", FakeUsb(0)))
    with pytest.raises(UsageError, match=rf"device {name}: no device of this name \(connected: R58M999\)"):
        find_endpoint(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("R58M123", "R58M123"),
        ("emulator-5554", "localhost:5555"),
        ("127.0.0.1", "localhost:5555"),
        ("R58M123", "adb-R58M123-vIqgVe._adb-tls-connect._tcp"),
    ],
)
def test_two_names_of_one_device_are_refused(one: str, other: str) -> None:
    with pytest.raises(UsageError, match="--device: the same device twice"):
        require_distinct(["10.0.0.2", one, other])
    require_distinct(["10.0.0.2", one, "usb:1-2", "usb:1-3"])


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_known_key_opens_and_an_unknown_one_does_not(make_device: MakeDevice, key: Path, tmp_path: Path) -> None:
    device = make_device(EmulatorSettings(isolation="folder", access=Access(keys=(public_key(key),))))
    with connect(device.serial) as transport:
        assert transport.shell("echo in", timeout=10).stdout == "in\n"
    generate_key(tmp_path / "stranger")
    endpoint = tcp_endpoint(device.serial)
    with pytest.raises(Unauthorized, match="allow this computer's key"):
        Transport(endpoint, [load_signer(tmp_path / "stranger")], auth_timeout=0.3).connect()
    with Transport(endpoint, [load_signer(tmp_path / "stranger"), load_signer(key)]).connect() as transport:
        assert transport.available


def test_a_device_without_a_key_of_ours_is_unauthorized(make_device: MakeDevice) -> None:
    device = make_device(EmulatorSettings(isolation="folder", access=Access(keys=())))
    with pytest.raises(Unauthorized, match="this computer has none"):
        Transport(tcp_endpoint(device.serial)).connect()


def test_a_new_key_is_allowed_where_someone_taps_allow(make_device: MakeDevice) -> None:
    device = make_device(EmulatorSettings(isolation="folder", access=Access(keys=(), allows_new=True)))
    with connect(device.serial) as transport:
        assert transport.available


def test_a_private_key_alone_is_enough(make_device: MakeDevice, key: Path, home: Path) -> None:
    (home / ".android/adbkey.pub").unlink()
    device = make_device(EmulatorSettings(isolation="folder", access=Access(keys=(public_key(key),))))
    with connect(device.serial) as transport:
        assert transport.available
    new = make_device(EmulatorSettings(isolation="folder", access=Access(keys=(), allows_new=True)))
    with connect(new.serial) as transport:
        assert transport.available


def test_keys_come_from_adbs_places_in_adbs_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = home / "vendor"
    vendor.mkdir()
    for path in (vendor / "b.adb_key", vendor / "a.adb_key", vendor / "notes.txt", home / "one", home / "own"):
        path.write_text("")
    monkeypatch.setenv("ADB_VENDOR_KEYS", f"{home}/one{os.pathsep}{vendor}{os.pathsep}{home}/absent")
    assert key_paths() == (home / ".android/adbkey", home / "one", vendor / "a.adb_key", vendor / "b.adb_key")


def test_a_computer_without_keys_gets_one_that_only_its_user_reads(home: Path) -> None:
    (home / ".android/adbkey").unlink()
    (made,) = signers()
    path = home / ".config/gemma-edge/adbkey"
    assert not path.exists(), "no device has asked for it"
    public = made.GetPublicKey()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (again,) = signers()
    assert again.GetPublicKey() == public


def test_several_devices_at_once_make_one_key_that_only_its_owner_can_read(home: Path) -> None:
    (home / ".android/adbkey").unlink()
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: signers()[0].GetPublicKey(), range(8)))
    (path,) = key_paths()
    assert len(keys) == 1 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["adbkey", "adbkey.pub", "lock"]


def test_a_key_that_cannot_be_made_is_an_error_of_this_computer(
    home: Path, make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".android/adbkey").unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".android/adbkey.pub"))
    asks = make_device(EmulatorSettings(isolation="folder", access=Access(keys=())))
    with pytest.raises(EnvironmentFault, match=r"gemma-edge/adbkey: not made: .*; run adb keygen"):
        connect(asks.serial)


def test_a_key_that_is_none_is_named_if_a_device_asks_for_it(home: Path, make_device: MakeDevice) -> None:
    (home / ".android/adbkey").write_text("no key")
    with connect(make_device(EmulatorSettings(isolation="folder")).serial) as transport:
        assert transport.available
    asks = make_device(EmulatorSettings(isolation="folder", access=Access(keys=())))
    for reach in (lambda: connect(asks.serial), lambda: list_devices([asks.serial])):
        with pytest.raises(UsageError, match=r"\.android/adbkey: not an RSA key"):
            reach()


def test_signatures_are_checked(key: Path) -> None:
    token = bytes(range(20))
    signature = bytes(load_signer(key).Sign(token))
    assert is_signed(token, signature, public_key(key))
    assert not is_signed(token[::-1], signature, public_key(key))
    assert not is_signed(token, signature[:-1], public_key(key))
    assert not is_signed(token, bytes(256), public_key(key))


@pytest.mark.parametrize("text", [b"", b"AAAA", b"!!", b"QUFB user@host", b" \0"])
def test_a_public_key_that_is_none_is_none(text: bytes) -> None:
    assert parse_public_key(text) is None


# --- USB, played by a socket ------------------------------------------------------------------------------------------


def test_a_device_on_usb_is_found_used_and_shared(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("R58M123", FakeUsb(device.port)))
    (found,) = list_devices()
    assert (found.serial, found.kind, found.state) == ("R58M123", "usb", "device")
    data = bytes(range(256)) * 5000
    with connect("R58M123") as transport:
        transport.push_bytes(data, f"{TMP}/usb")
        assert transport.pull_bytes(f"{TMP}/usb") == data
        with transport.another() as sampler:
            assert sampler.shell("echo two", timeout=10).stdout == "two\n"
        assert transport.available
        transport.reconnect()
        assert transport.shell("sleep 0.2; echo slow", timeout=10).stdout == "slow\n"


@pytest.mark.parametrize("size", [PACKET_BYTES - 1, PACKET_BYTES, 40 * PACKET_BYTES, 64 * PACKET_BYTES])
def test_a_payload_of_full_packets_ends_at_the_device_too(
    folder_device: Emulator, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    plug_in(monkeypatch, ("R58M123", FakeUsb(folder_device.port)))
    with connect("R58M123") as transport, transport.stream_exec(f"head -c {size} | wc -c", timeout=5) as stream:
        assert stream.write(bytes(size))
        assert stream.read().split() == [str(size).encode()]


def test_a_cable_that_is_out_for_a_while_is_waited_for(
    folder_device: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cable = ("R58M123", FakeUsb(folder_device.port))
    plug_in(monkeypatch, cable)
    with connect("R58M123") as transport:
        plug_in(monkeypatch)
        with pytest.raises(ConnectionLost, match="no such device on USB"):
            transport.reconnect(timeout=0)
        assert not transport.available
        monkeypatch.setattr("time.sleep", lambda _: plug_in(monkeypatch, cable))
        transport.reconnect(timeout=10)
        assert transport.shell("echo back", timeout=10).stdout == "back\n"


def test_a_device_without_a_readable_serial_number_is_named_by_its_place(
    device: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreadable(FakeUsb):
        port_path = (2, 1)

        @property
        def serial_number(self) -> str:
            raise PermissionError

    cable, nameless = FakeUsb(device.port), FakeUsb(0)
    for usb, path, serial in ((cable, (1, 4, 2), None), (nameless, (1, 3), "R58M123")):
        monkeypatch.setattr(usb, "port_path", path, raising=False)
        monkeypatch.setattr(usb, "serial_number", serial, raising=False)
    found = SimpleNamespace(find_all_adb_devices=lambda: [cable, nameless, Unreadable(0)])
    monkeypatch.setattr(transport_port, "UsbTransport", found)
    monkeypatch.setattr(transport_port, "usb_devices", usb_devices)
    assert [serial for serial, _ in usb_devices()] == ["usb:1-4.2", "R58M123", "usb:2-1"]
    with connect("usb:1-4.2") as transport:
        assert transport.shell("echo in", timeout=10).stdout == "in\n"


def test_a_pulled_cable_is_a_lost_connection(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("R58M123", FakeUsb(device.port)))
    with connect() as transport:
        device.set_faults(Faults(drop_at_byte=1000))
        with pytest.raises(ConnectionLost):
            transport.push_bytes(bytes(10_000_000), f"{TMP}/usb")
        assert not transport.available


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("USBErrorAccess", "no permission to read and write"),
        ("USBErrorBusy", "end the other gemma-edge .* adb kill-server"),
        ("USBErrorOther", "USBErrorOther"),
    ],
)
def test_libusbs_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    error: Exception = type(name, (Exception,), {})("it failed")
    plug_in(monkeypatch, ("R58M123", FakeUsb(0, error)))
    (found,) = list_devices(timeout=0.5)
    assert found.state == "no permissions" and re.search(words, found.reason)
    with pytest.raises(DeviceFault, match=words):
        connect("R58M123")
    assert isinstance(usb_fault("x", type("USBErrorNoDevice", (Exception,), {})()), ConnectionLost)


# --- the verbs --------------------------------------------------------------------------------------------------------


def test_usb_packages_are_named_only_where_no_device_was_found(
    device: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transport_port, "has_usb", lambda: False)
    assert cli.main(["devices", "--address", device.serial]) == 0
    assert "USB" not in capsys.readouterr().err
    assert cli.main(["devices", "--address", "127.0.0.1:1"]) == 0
    assert "USB was not searched" in capsys.readouterr().err


def test_the_devices_verb_lists_states_and_reasons(
    device: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan(monkeypatch, device)
    assert cli.main(["devices", "--json", "--address", "127.0.0.1:1"]) == 0
    found = json.loads(capsys.readouterr().out)["devices"]
    assert [entry["state"] for entry in found] == ["not found", "device"]
    assert cli.main(["devices", "--address", "127.0.0.1:1"]) == 0
    out = capsys.readouterr().out
    assert device.serial in out and "refused" in out
    monkeypatch.setattr(devices, "EMULATOR_PORTS", (1,))
    assert cli.main(["devices"]) == 0
    assert capsys.readouterr().out == "no devices\n"


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--fault", "explode", "error: "),
        ("--memory", "much", "error: "),
        ("--port", "65536", "error: --port: found '65536', wanted 0 to 65535"),
        ("--port", "-1", "error: --port: found '-1', wanted 0 to 65535"),
        ("--key", "/etc/hostname", "error: "),
    ],
)
def test_the_emulator_verb_refuses_what_it_does_not_know(
    option: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["emulator", f"{option}={text}"]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_the_emulator_verb_runs_until_it_is_ended_and_leaves_nothing(key: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gemma_edge",
        "emulator",
        "--port",
        "0",
        "--json",
        "--isolation",
        "folder",
        "--old",
    ]
    process = subprocess.Popen([*command, "--key", f"{key}.pub"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    started = json.loads(process.stdout.readline())
    with connect(started["serial"]) as transport:
        assert transport.shell("echo there", timeout=20).stdout == "there\n"
        assert not transport.banner.features
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stdout.close()
    assert not Path(started["root"]).exists()


@pytest.mark.parametrize("address", ["emulator-²", "emulator-" + "5" * 5000, "localhost:" + "5" * 5000])
def test_a_port_that_is_no_number_of_a_port_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match="device address"):
        tcp_endpoint(address)
