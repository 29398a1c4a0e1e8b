"""What a user of adb or of a push would notice: the emulated device does it as AOSP's adbd does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from adbd import Peer
from waiting import PATIENCE_S, wait_until

from device_harness.adb.faults import DeviceTimeout
from device_harness.adb.transport import DeviceRefusal, Transport
from device_harness.adb.wire import STDIN, STDOUT, WINDOW_SIZE, ShellParser, pack_shell
from device_harness.emulator.faults import Faults

TMP = "/data/local/tmp"

Connect = Callable[[Peer], Transport]
Adb = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def device(peer: Peer) -> Peer:
    peer.set_faults(Faults())
    shutil.rmtree(peer.path(f"{TMP}/as"), ignore_errors=True)
    peer.path(f"{TMP}/as").mkdir()
    peer.path(f"{TMP}/as").chmod(0o777)
    return peer


@pytest.fixture
def adb(adb_server: dict[str, str], device: Peer) -> Iterator[Adb]:
    """Debian's client for the device."""
    if shutil.which("adb") is None:
        pytest.skip("needs adb (apt-get install adb)")

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = ["adb", "-s", device.serial, *map(str, words)]
        return subprocess.run(command, env=adb_server, capture_output=True, text=True, timeout=PATIENCE_S)

    assert "connected" in run("connect", device.serial).stdout
    yield run
    run("disconnect", device.serial)


class _Session:
    """An interactive shell; what it shows is kept."""

    def __init__(self, transport: Transport) -> None:
        self._stream = transport._link.open("shell,v2,TERM=xterm-256color,pty:", timeout=PATIENCE_S)
        self._parser = ShellParser()
        self.shown = b""

    def type(self, keys: bytes) -> None:
        self._stream.write(pack_shell(STDIN, keys), timeout=PATIENCE_S)

    def resize(self, rows: int, columns: int) -> None:
        self._stream.write(pack_shell(WINDOW_SIZE, b"%dx%d,0x0\0" % (rows, columns)), timeout=PATIENCE_S)

    def interrupt(self, prompt: bytes) -> None:
        """Press Ctrl-C until the prompt is back: a shell may lose one that comes while it starts a program."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            self.type(b"\x03")
            with suppress(DeviceTimeout):
                return self.wait_for(prompt, patience_s=2)
        raise AssertionError(f"no prompt after Ctrl-C: {self.shown!r}")

    def wait_for(self, text: bytes, patience_s: float = PATIENCE_S) -> None:
        while text not in self.shown:
            assert self._read(patience_s), self.shown
        self.shown = self.shown.partition(text)[2]

    def wait_for_end(self) -> None:
        while self._read():
            pass

    def _read(self, patience_s: float = PATIENCE_S) -> bool:
        data = self._stream.read(timeout=patience_s)
        self.shown += b"".join(packet.data for packet in self._parser.feed(data) if packet.id == STDOUT)
        return bool(data)


def test_an_interactive_shell_has_a_prompt_an_echo_and_keys_with_a_meaning(device: Peer, reach: Connect) -> None:
    session = _Session(reach(device))
    prompt = b"$ " if reach(device).shell("id -u", timeout=10).stdout != "0\n" else b"# "
    session.wait_for(prompt)
    session.type(b"echo $((6 * 7)) $TERM\n")
    session.wait_for(b"echo $((6 * 7)) $TERM\r")
    session.wait_for(b"42 xterm-256color\r\n")
    session.wait_for(prompt)
    session.type(b"echo asleep; sleep 60\n")
    session.wait_for(b"\nasleep\r\n")
    session.interrupt(prompt)
    session.type(b"echo after\n")
    session.wait_for(b"\nafter\r\n")
    session.wait_for(prompt)
    session.type(b"\x04")
    session.wait_for_end()


def test_a_terminal_has_the_size_of_the_hosts_window(folder_device: Peer, reach: Connect) -> None:
    if shutil.which("stty") is None:
        pytest.skip("needs stty")
    session = _Session(reach(folder_device))
    session.resize(41, 137)
    session.type(b"stty size\n")
    session.wait_for(b"41 137\r\n")


@pytest.mark.parametrize(
    ("service", "has_terminal"),
    [("exec:", True), ("shell:", True), ("shell,v2,raw:", False), ("shell,v2,pty:", True), ("shell,v2:", False)],
)
def test_who_has_a_terminal(device: Peer, reach: Connect, service: str, has_terminal: bool) -> None:
    stream = reach(device)._link.open(f"{service}[ -t 0 ] && echo terminal || echo none", timeout=10)
    shown = b""
    while data := stream.read(timeout=10):
        shown += bytes(data)
    assert (b"terminal" in shown) == has_terminal


def test_the_umask_is_0(device: Peer, reach: Connect) -> None:
    with reach(device).stream_exec(f"umask; mkdir {TMP}/as/folder; : > {TMP}/as/file") as stream:
        assert b"".join(iter(stream.read, b"")).strip() in (b"0000", b"000")
    assert device.path(f"{TMP}/as/folder").stat().st_mode & 0o777 == 0o777
    assert device.path(f"{TMP}/as/file").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(("mode", "found"), [(0o750, 0o777), (0o640, 0o666), (0o444, 0o444)])
def test_a_pushed_file_gives_everybody_its_owners_rights(
    adb: Adb, device: Peer, tmp_path: Path, mode: int, found: int
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(mode)
    adb("push", tmp_path / "file", f"{TMP}/as/new/file")
    assert device.path(f"{TMP}/as/new/file").stat().st_mode & 0o777 == found
    assert device.path(f"{TMP}/as/new").stat().st_mode & 0o777 == 0o775


def test_a_folder_that_is_not_there_is_an_error_in_words(adb: Adb, device: Peer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = adb("push", tmp_path / "file", f"{TMP}/as/absent/")
    assert done.returncode and "Is a directory" in done.stdout + done.stderr
    assert not device.path(f"{TMP}/as/absent").is_file()


def test_a_file_that_its_owner_may_not_read_is_not_read(device: Peer, reach: Connect) -> None:
    transport = reach(device)
    transport.push_bytes(b"x", f"{TMP}/as/closed")
    transport.shell(f"chmod a-rwx {TMP}/as/closed", timeout=10).require("chmod")
    with pytest.raises(DeviceRefusal, match="Permission denied"):
        transport.pull_bytes(f"{TMP}/as/closed")


def test_absolute_links_are_the_devices_own(adb: Adb, device: Peer, reach: Connect, tmp_path: Path) -> None:
    script = f"mkdir {TMP}/as/there; ln -s {TMP}/as/there {TMP}/as/link; ln -s {TMP}/as/there/file {TMP}/as/to"
    reach(device).shell(script, timeout=10).require("links")
    (tmp_path / "file").write_text("through\n")
    for target in (f"{TMP}/as/link/file", f"{TMP}/as/to"):
        assert adb("push", tmp_path / "file", target).returncode == 0
        assert device.path(f"{TMP}/as/there/file").read_text() == "through\n"
        assert adb("pull", target, tmp_path / "back").returncode == 0
        assert (tmp_path / "back").read_text() == "through\n"
    assert "file" in adb("ls", f"{TMP}/as/link/").stdout


def test_names_are_utf_8(adb: Adb, device: Peer, tmp_path: Path) -> None:
    """adbd's toybox is Debian's here, whose C library has no locale in the sandbox; Android's knows nothing else."""
    (tmp_path / "file").write_text("x")
    name = "Grüße, 世界"
    assert adb("push", tmp_path / "file", f"{TMP}/as/{name}").returncode == 0
    if hasattr(device, "userland"):
        assert adb("shell", f"ls {TMP}/as").stdout.strip().replace("\\ ", " ") == name
    assert adb("pull", f"{TMP}/as/{name}", tmp_path / "back").returncode == 0


def test_files_of_proc_come_by_sync(device: Peer, reach: Connect) -> None:
    transport = reach(device)
    assert float(transport.pull_bytes("/proc/uptime").split()[0]) > 0
    with pytest.raises(DeviceRefusal):
        transport.pull_bytes("/proc/no-such-file")


def test_no_process_of_this_computer_is_read_by_sync(folder_device: Peer, reach: Connect) -> None:
    transport = reach(folder_device)
    for name in ("self/environ", f"{os.getpid()}/environ", "kcore", "sys/kernel/hostname"):
        with pytest.raises(DeviceRefusal):
            transport.pull_bytes(f"/proc/{name}")


def test_small_files_come_in_one_message_with_their_end(device: Peer, reach: Connect) -> None:
    """Else each waits for a delayed OKAY: 44 ms a file."""
    device.path(f"{TMP}/as/small").write_bytes(b"small")
    stream = reach(device)._link.open("sync:", timeout=10)
    path = f"{TMP}/as/small".encode()
    stream.write(b"RECV" + len(path).to_bytes(4, "little") + path, timeout=10)
    data = bytes(stream.read(timeout=10))
    if hasattr(device, "userland"):
        assert data == b"DATA\5\0\0\0small" + b"DONE\0\0\0\0"
    else:
        assert data.startswith(b"DATA\5\0\0\0small")


# --- ports ------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_reverse_forwards_are_listed_rebound_and_removed(adb: Adb) -> None:
    one, two = free_port(), free_port()
    assert adb("reverse", f"tcp:{one}", "tcp:6655").returncode == 0
    assert adb("reverse", "--no-rebind", f"tcp:{one}", "tcp:6677").returncode != 0
    assert adb("reverse", f"tcp:{one}", "tcp:6677").returncode == 0
    assert adb("reverse", f"tcp:{two}", "tcp:8877").returncode == 0
    listed = adb("reverse", "--list").stdout
    assert f"tcp:{one} tcp:6677" in listed and f"tcp:{two} tcp:8877" in listed and "6655" not in listed
    assert adb("reverse", "--remove", f"tcp:{one}").returncode == 0
    assert adb("reverse", "--remove", f"tcp:{one}").returncode != 0
    assert adb("reverse", "--remove-all").returncode == 0
    assert adb("reverse", "--list").stdout.strip() == ""
    chosen = int(adb("reverse", "tcp:0", "tcp:8888").stdout)
    assert f"tcp:{chosen} tcp:8888" in adb("reverse", "--list").stdout
    adb("reverse", "--remove-all")


def test_bytes_go_through_a_forward_and_come_back_through_a_reverse_one(adb: Adb) -> None:
    forward, back = free_port(), free_port()
    assert adb("forward", f"tcp:{forward}", f"tcp:{forward}").returncode == 0
    assert adb("reverse", f"tcp:{forward}", f"tcp:{back}").returncode == 0
    data = os.urandom(3_000_000)
    got = bytearray()
    with socket.create_server(("127.0.0.1", back)) as listener:

        def take() -> None:
            accepted, _ = listener.accept()
            with accepted:
                while piece := accepted.recv(1 << 16):
                    got.extend(piece)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        with socket.create_connection(("127.0.0.1", forward)) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: len(got) == len(data))
        thread.join(10)
    assert got == data
    adb("reverse", "--remove-all")
    adb("forward", "--remove-all")


def test_a_port_where_nobody_listens_is_a_closed_stream(adb: Adb) -> None:
    port = free_port()
    assert adb("forward", f"tcp:{port}", "tcp:1").returncode == 0
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(10)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
    adb("forward", "--remove-all")
