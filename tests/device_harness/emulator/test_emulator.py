"""The emulated device itself: its userland, its borders, and how it treats malformed hosts."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from adbd import Peer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import wait_until

from device_harness.adb.transport import DeviceRefusal, Transport
from device_harness.adb.wire import COMMANDS, VERSION, Header, pack_header, parse_header
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.shell import _PathFilter, parse_shell_service
from toolkit.base.errors import EnvironmentFault

MakeDevice = Callable[[EmulatorSettings], Emulator]
Connect = Callable[[Peer], Transport]

TMP = "/data/local/tmp"


def _command_lines() -> Iterator[bytes]:
    """Of all the host's processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


@pytest.fixture
def userland(make_device: MakeDevice, reach: Connect, isolation: str) -> Callable[[str], str]:
    """Runs a command on a device of each isolation; what it says."""
    transport = reach(make_device(EmulatorSettings(isolation=isolation)))  # type: ignore[arg-type]
    return lambda command: transport.shell(command, timeout=30).require(command)


def test_it_says_that_it_is_emulated(userland: Callable[[str], str]) -> None:
    assert userland("getprop ro.kernel.qemu") == "1\n"
    assert "emulated" in userland("getprop ro.product.model")
    assert "[ro.build.version.sdk]: [34]\n" in userland("getprop")
    assert userland("getprop no.such fallback") == "fallback\n"


def test_it_has_androids_facts(userland: Callable[[str], str]) -> None:
    assert "temperature: 320" in userland("dumpsys battery")
    assert "HAL Ready: true" in userland("dumpsys thermalservice")
    assert "mWakefulness=Asleep" in userland("dumpsys power")
    assert userland("dumpsys nothing") == "Can't find service: nothing\n"
    assert userland("cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") == "schedutil\n"
    assert "VmRSS" in userland("cat /proc/self/status")


def test_settings_are_kept(userland: Callable[[str], str]) -> None:
    assert userland("settings get global airplane_mode_on") == "0\n"
    userland("settings put global airplane_mode_on 1")
    assert userland("settings get global airplane_mode_on") == "1\n"
    userland("settings delete global airplane_mode_on")
    assert userland("settings get global airplane_mode_on") == "null\n"


def test_paths_read_as_the_devices_own(userland: Callable[[str], str]) -> None:
    assert userland("pwd") == "/\n"
    assert userland(f"cd {TMP} && pwd") == f"{TMP}\n"
    assert userland(f"echo hi > {TMP}/x; sha256sum {TMP}/x").split()[1] == f"{TMP}/x"
    assert userland('[ -d "/data/local/tmp" ] && echo yes; echo a/data/b /database /systems') == (
        "yes\na/data/b /database /systems\n"
    )


def test_the_hosts_python_and_our_packages_run_there(userland: Callable[[str], str]) -> None:
    assert userland("python3 -c 'import toolkit; print(toolkit.__name__)'") == "toolkit\n"


def test_bubblewrap_hides_the_hosts_files_network_and_user(
    make_device: MakeDevice, reach: Connect, isolation: str, tmp_path: Path
) -> None:
    if isolation != "bubblewrap":
        pytest.skip("a folder isolates nothing, and says so")
    (tmp_path / "secret").write_text("x")
    transport = reach(make_device(EmulatorSettings(isolation="bubblewrap")))
    assert "uid=2000(shell)" in transport.shell("id", timeout=10).stdout
    for command in (f"cat {tmp_path}/secret", "echo x > /system/bin/y", "echo x > /usr/y", "echo x > /sys/y"):
        assert transport.shell(command, timeout=10).exit_code != 0
    interfaces = transport.shell("tail -n +3 /proc/self/net/dev", timeout=10).stdout
    assert [line.split(":")[0].strip() for line in interfaces.splitlines()] == ["lo"]


def test_a_sampler_reads_what_another_commands_process_uses(userland: Callable[[str], str]) -> None:
    process = userland("sleep 64.5 > /dev/null 2>&1 < /dev/null & echo $!").strip()
    assert "Rss:" in userland(f"cat /proc/{process}/smaps_rollup")
    assert "read_bytes" in userland(f"cat /proc/{process}/io")
    userland(f"kill -KILL {process}")


def test_bubblewrap_hides_the_hosts_processes_and_ends_all_of_its_own(reach: Connect, isolation: str) -> None:
    if isolation != "bubblewrap":
        pytest.skip("a folder isolates nothing, and says so")
    with Emulator(EmulatorSettings(isolation="bubblewrap")) as device:
        transport = reach(device)
        transport.shell("env -i setsid sleep 65.5 > /dev/null 2>&1 < /dev/null &", timeout=10)
        found = transport.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", timeout=10).stdout
        assert "sleep 65.5" in found and "pytest" not in found
    assert not any(command.startswith(b"sleep\x0065.5") for command in _command_lines())


def test_missing_bubblewrap_is_an_error_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_harness.emulator.sandbox.shutil.which", lambda name: None)
    with Emulator(EmulatorSettings()) as device:
        assert not device.userland.is_isolated
    with pytest.raises(EnvironmentFault, match="bubblewrap"):
        Emulator(EmulatorSettings(isolation="bubblewrap")).__enter__()


def test_it_listens_on_this_computer_only(folder_device: Emulator) -> None:
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert f"0100007F:{folder_device.port:04X}" in listening
    assert f"00000000:{folder_device.port:04X}" not in listening


def test_a_taken_port_is_an_error(folder_device: Emulator) -> None:
    with pytest.raises(EnvironmentFault, match="--port"):
        Emulator(EmulatorSettings(port=folder_device.port)).__enter__()


def test_nothing_is_left_when_it_ends(reach: Connect) -> None:
    with Emulator(EmulatorSettings(isolation="folder")) as device:
        reach(device).shell("setsid sleep 63.5 > /dev/null 2>&1 < /dev/null &", timeout=10)
        root, userland = device.userland.root, device.userland
        assert userland._running()
    assert not root.exists()
    assert not userland._running()


def test_a_named_root_stays_and_is_taken_up_again(reach: Connect, tmp_path: Path) -> None:
    for number in range(2):
        with Emulator(EmulatorSettings(isolation="folder", root=tmp_path)) as device:
            reach(device).push_bytes(b"x", f"{TMP}/file{number}")
    assert sorted(os.listdir(tmp_path / "data/local/tmp")) == ["file0", "file1"]


@pytest.mark.slow
@pytest.mark.parametrize("service", ["shell,v2,raw", "shell,v2,pty"])
def test_a_host_that_leaves_hangs_up_on_its_command(peer: Peer, reach: Connect, service: str) -> None:
    told = peer.path(f"{TMP}/told-{service.replace(',', '-')}")
    told.unlink(missing_ok=True)
    device = reach(peer)
    command = f"trap 'echo hangup > {TMP}/{told.name}; exit' HUP; echo ready; sleep 60 & wait"
    stream = device._link.open(f"{service}:{command}", timeout=10)
    while b"ready" not in bytes(stream.read(timeout=10)):
        pass
    stream.close()
    wait_until(lambda: told.exists() and told.read_text() == "hangup\n")


def test_a_command_that_ignores_a_hangup_or_is_of_exec_goes_on(peer: Peer, reach: Connect) -> None:
    first, second = reach(peer), reach(peer)
    for number, service in enumerate(("shell,v2,raw:trap '' HUP; ", "exec:")):
        command = f"echo ready; until [ -e {TMP}/leave{number} ]; do sleep 0.05; done; echo left > {TMP}/result{number}"
        stream = first._link.open(service + command, timeout=10)
        while b"ready" not in bytes(stream.read(timeout=10)):
            pass
        stream.close()
        second.push_bytes(b"", f"{TMP}/leave{number}")
        result = peer.path(f"{TMP}/result{number}")
        wait_until(lambda result=result: result.exists() and result.read_text() == "left\n")  # type: ignore[misc]


def test_input_comes_whole_and_in_order_however_late_it_is_read(peer: Peer, reach: Connect) -> None:
    transport = reach(peer)
    data = random.Random(0).randbytes(5_000_001)
    with transport.stream_exec(f"sleep 0.5; head -c {len(data)} | sha256sum") as stream:
        assert stream.write(data)
        assert b"".join(iter(stream.read, b"")).split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_input_that_no_program_reads_harms_no_other_stream(peer: Peer, reach: Connect) -> None:
    transport = reach(peer)
    data = bytes(3_000_000)
    with transport.stream_exec("exec 0</dev/null; echo deaf; sleep 0.2; exit") as stream:
        while stream.write(data):
            pass
        assert b"".join(iter(stream.read, b"")) == b"deaf\n"
    transport.push_bytes(data, f"{TMP}/after")
    assert peer.path(f"{TMP}/after").read_bytes() == data


# --- hosts that break the rules ---------------------------------------------------------------------------------------


class _RawHost:
    """A host that sends what it likes."""

    def __init__(self, device: Peer) -> None:
        host, _, port = device.serial.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)

    def __enter__(self) -> _RawHost:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, command: str, arg0: int, arg1: int, payload: bytes = b"") -> None:
        self.send(pack_header(command, arg0, arg1, payload) + payload)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def hear(self) -> tuple[Header, bytes]:
        header = parse_header(self._exactly(24))
        return header, self._exactly(header.length)

    def hear_end(self) -> bool:
        """Whether the device hangs up, whatever it says before."""
        try:
            while self._socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def open(self, service: bytes, local_id: int = 1) -> int:
        """The device's id of the stream."""
        self.say("OPEN", local_id, 0, service + b"\0")
        header, _ = self.hear()
        assert header.command == "OKAY"
        return header.arg0

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            assert piece, "the device hung up"
            data += piece
        return data


@contextmanager
def connected(device: Peer) -> Iterator[_RawHost]:
    with _RawHost(device) as raw:
        raw.say("CNXN", VERSION, 1 << 20, b"host::\0")
        assert raw.hear()[0].command == "CNXN"
        yield raw


@pytest.fixture
def host(peer: Peer) -> Iterator[_RawHost]:
    with connected(peer) as raw:
        yield raw


@pytest.fixture
def rude_host(folder_device: Emulator) -> Iterator[_RawHost]:
    """AOSP's adbd is more patient with some rules."""
    with connected(folder_device) as raw:
        yield raw


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        pack_header("WRTE", 1, 1, b"x") + b"y",
        struct.pack("<6I", 0x45545257, 1, 1, 2**31, 0, 0x45545257 ^ 0xFFFFFFFF),
    ],
    ids=["HTTP", "wrong checksum", "2 GiB announced"],
)
def test_a_malformed_message_ends_the_connection(rude_host: _RawHost, data: bytes) -> None:
    rude_host.send(data)
    assert rude_host.hear_end()


def test_a_stream_before_the_handshake_ends_the_connection(folder_device: Emulator) -> None:
    with _RawHost(folder_device) as raw:
        raw.say("OPEN", 1, 0, b"shell:id\0")
        assert raw.hear_end()


def test_messages_for_streams_that_are_not_there_are_ignored(rude_host: _RawHost) -> None:
    for command in ("WRTE", "OKAY", "CLSE"):
        rude_host.say(command, 7, 99, b"x" if command == "WRTE" else b"")
    rude_host.open(b"sync:")


def test_an_unknown_service_is_refused(host: _RawHost) -> None:
    host.say("OPEN", 4, 0, b"jdwp:1\0")
    header, _ = host.hear()
    assert (header.command, header.arg0, header.arg1) == ("CLSE", 0, 4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                lambda command, arg0, arg1, payload: pack_header(command, arg0, arg1, payload) + payload,
                st.sampled_from(COMMANDS),
                st.integers(0, 3),
                st.integers(0, 3),
                st.sampled_from([b"", b"sync:\0", b"shell:\xff\0", b"STAT\xff\xff\xff\xff", b"QUIT\0\0\0\0", b"\0"]),
            ),
        ),
        max_size=8,
    )
)
def test_no_bytes_from_a_host_harm_the_device(folder_device: Emulator, pieces: list[bytes]) -> None:
    with _RawHost(folder_device) as raw:
        raw.say("CNXN", VERSION, 1 << 20, b"host::\0")
        try:
            for piece in pieces:
                raw.send(piece)
        except OSError:
            pass
    with _RawHost(folder_device) as raw:
        raw.say("CNXN", VERSION, 1 << 20, b"host::\0")
        assert raw.hear()[0].command == "CNXN"


@pytest.mark.parametrize(
    "request_", [b"SEND" + struct.pack("<I", 5000), b"NOPE\0\0\0\0", b"STAT" + struct.pack("<I", 2**32 - 1)]
)
def test_a_malformed_sync_request_is_refused_in_words(host: _RawHost, request_: bytes) -> None:
    remote = host.open(b"sync:")
    host.say("WRTE", 1, remote, request_)
    said = b""
    while not said:
        header, payload = host.hear()
        said = payload if header.command == "WRTE" else b""
    assert said.startswith(b"FAIL")


@pytest.mark.parametrize("path", ["/data/../../../etc/x", "/data/local/tmp/out/x", "relative/../../../x", "/etc/x"])
def test_no_push_leaves_the_devices_folder(
    folder_device: Emulator, transport: Transport, path: str, tmp_path: Path
) -> None:
    link = folder_device.path(TMP) / "out"
    if not link.is_symlink():
        link.symlink_to(tmp_path)
    before = sorted(os.listdir("/etc"))
    session_path = path.encode() + b",33188"
    stream = transport._link.open("sync:", timeout=5)
    stream.write(b"SEND" + struct.pack("<I", len(session_path)) + session_path, timeout=5)
    answer = bytes(stream.read(timeout=5))
    stream.close()
    link.unlink()
    assert answer.startswith(b"FAIL") and b"Permission denied" in answer
    assert not os.listdir(tmp_path)
    assert sorted(os.listdir("/etc")) == before


def test_the_programs_of_the_device_cannot_be_pushed_over(transport: Transport) -> None:
    with pytest.raises(DeviceRefusal, match="Permission denied"):
        transport.push_bytes(b"#!/bin/sh", "/system/bin/getprop")


def test_service_names_are_parsed_as_adbd_does() -> None:
    v1 = parse_shell_service("shell:ls, v2:x")
    assert v1 is not None and v1.command == "ls, v2:x" and not v1.is_v2
    raw = parse_shell_service("exec:cat")
    assert raw is not None and raw.is_exec and raw.terminal == "raw"
    assert parse_shell_service("sync:") is None and parse_shell_service("shell") is None


@given(st.lists(st.sampled_from([b"/tmp/root", b"/tmp/root/data", b"/tmp/ro", b"ot", b" ", b"/", b"x"])), st.randoms())
def test_output_shows_no_host_paths_wherever_it_is_cut(words: list[bytes], chance: random.Random) -> None:
    text = b"".join(words)
    paths, shown, rest = _PathFilter(b"/tmp/root"), b"", text
    while rest:
        cut = chance.randint(1, len(rest))
        shown += paths.feed(rest[:cut])
        rest = rest[cut:]
    shown += paths.rest()
    assert shown == text.replace(b"/tmp/root/", b"/").replace(b"/tmp/root", b"/")
