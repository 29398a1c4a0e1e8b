"""Commands and files over a connection to an emulated device."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from adbd import Peer
from hypothesis import given
from hypothesis import strategies as st

from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.link import Link
from device_harness.adb.payload import FilePayload, Payload
from device_harness.adb.port import TcpPort
from device_harness.adb.shell import _MarkerFilter
from device_harness.adb.transport import (
    ConnectionLost,
    DeviceRefusal,
    DeviceTimeout,
    Endpoint,
    ProtocolFault,
    Transport,
    quote,
    remote_path,
)
from device_harness.adb.wire import MAX_PAYLOAD_BYTES, VERSION, VERSION_SKIP_CHECKSUM, pack_header, parse_header
from device_harness.emulator.device import Emulator, EmulatorSettings
from toolkit.base.errors import BundleError, UsageError

MakeDevice = Callable[[EmulatorSettings], Emulator]
Connect = Callable[[Peer], Transport]

TMP = "/data/local/tmp"
OLD = EmulatorSettings(isolation="folder", features=frozenset(), max_payload_bytes=4096, version=VERSION)
BORDERS = [0, 1, 65535, 65536, 65537, MAX_PAYLOAD_BYTES - 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 3_000_001]


@pytest.fixture(params=["shell v2", "shell v1", pytest.param("adbd", marks=pytest.mark.full)])
def any_transport(request: pytest.FixtureRequest, make_device: MakeDevice, reach: Connect) -> Transport:
    if request.param == "shell v1":
        return reach(make_device(OLD))
    return reach(request.getfixturevalue("adbd" if request.param == "adbd" else "folder_device"))


@pytest.fixture
def transport(peer: Peer, reach: Connect) -> Transport:
    return reach(peer)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_gives_output_and_exit_code(any_transport: Transport) -> None:
    result = any_transport.shell("echo one; echo two; (exit 4)", timeout=10)
    assert (result.stdout, result.exit_code) == ("one\ntwo\n", 4)


def test_an_exit_inside_the_command_does_not_lose_the_exit_code(any_transport: Transport) -> None:
    assert any_transport.shell("echo a; exit 7; echo b", timeout=10).exit_code == 7


def test_shell_v2_keeps_errors_apart_and_v1_mixes_them(peer: Peer, make_device: MakeDevice, reach: Connect) -> None:
    command = "echo out; echo err >&2"
    new = reach(peer).shell(command, timeout=10)
    old = reach(make_device(OLD)).shell(command, timeout=10)
    assert (new.stdout, new.stderr) == ("out\n", "err\n")
    assert (sorted(old.stdout.split()), old.stderr) == (["err", "out"], "")


@pytest.mark.slow
def test_output_larger_than_a_message_arrives_whole(any_transport: Transport) -> None:
    result = any_transport.shell("head -c 3000000 /dev/zero | tr '\\0' x", timeout=30)
    assert result.stdout == "x" * 3_000_000


def test_quotes_and_newlines_in_a_command_arrive_as_they_are(any_transport: Transport) -> None:
    command = """for word in 'a b' "c'd"; do
echo "<$word>"
done # a comment"""
    assert any_transport.shell(command, timeout=10).stdout == "<a b>\n<c'd>\n"


def test_a_failed_command_is_an_error_with_its_last_words(transport: Transport) -> None:
    with pytest.raises(DeviceRefusal, match="the work: exit code 3: it broke"):
        transport.shell("echo it broke >&2; exit 3", timeout=10).require("the work")


@pytest.mark.slow
def test_a_command_over_its_time_is_killed_on_the_device(any_transport: Transport) -> None:
    mark = f"sleep 61.{os.getpid()}"
    with pytest.raises(DeviceTimeout, match="killed"):
        any_transport.shell(f"exec {mark}", timeout=1)
    running = any_transport.shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\000' ' '; echo; echo all", timeout=10)
    assert mark not in running.stdout and running.stdout.endswith("all\n")
    assert any_transport.shell("echo still here", timeout=10).stdout == "still here\n"


def test_a_silent_command_may_take_its_time(any_transport: Transport) -> None:
    assert any_transport.shell("sleep 0.4; echo done", timeout=10).stdout == "done\n"


def test_a_stream_shows_output_as_it_comes(any_transport: Transport) -> None:
    command = f"rm -f {TMP}/go; echo first; until [ -e {TMP}/go ]; do sleep 0.02; done; echo second"
    pieces = []
    with any_transport.stream_shell(command, timeout=10) as stream:
        for _, data in stream:
            pieces.append(data)
            any_transport.push_bytes(b"", f"{TMP}/go")
    assert b"".join(pieces) == b"first\nsecond\n"
    assert pieces[0] == b"first\n"
    assert stream.exit_code == 0


def test_a_command_that_echoes_all_it_reads_does_not_lock_up(transport: Transport) -> None:
    data = random.Random(0).randbytes(3_000_000)
    with transport.stream_exec("head -c 3000000") as stream:
        got = bytearray()
        for start in range(0, len(data), 500_000):
            assert stream.write(data[start : start + 500_000])
        got += b"".join(iter(stream.read, b""))
    assert bytes(got) == data


def test_a_sampler_beside_a_long_command_does_not_wait_for_it(transport: Transport) -> None:
    done = threading.Event()

    def run() -> None:
        transport.shell(f"until [ -e {TMP}/enough ]; do sleep 0.02; done", timeout=20)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    answers = [transport.shell("echo sample", timeout=10).stdout for _ in range(3)]
    assert answers == ["sample\n"] * 3
    assert not done.is_set()
    transport.push_bytes(b"", f"{TMP}/enough")
    thread.join()


def test_many_threads_share_a_connection(transport: Transport) -> None:
    results: dict[int, str] = {}

    def run(number: int) -> None:
        results[number] = transport.shell(f"head -c 200000 /dev/zero | tr '\\0' {number}", timeout=30).stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) * 200_000 for number in range(4)}


def test_a_second_connection_outlives_the_first(peer: Peer, reach: Connect) -> None:
    first = reach(peer)
    with first.another() as second:
        first.close()
        assert second.shell("echo on", timeout=10).stdout == "on\n"
        assert not first.available and second.available


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", BORDERS)
def test_a_pushed_file_has_the_same_bytes(transport: Transport, peer: Peer, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(size).randbytes(size))
    seen: list[tuple[int, int]] = []
    transport.push_file(path, f"{TMP}/pushed", progress=lambda done, total: seen.append((done, total)))
    assert peer.path(f"{TMP}/pushed").read_bytes() == path.read_bytes()
    assert (seen[-1] if size else (0, 0)) == (size, size)


def test_a_push_to_an_old_device_keeps_to_its_small_messages(make_device: MakeDevice, reach: Connect) -> None:
    device = make_device(OLD)
    data = random.Random(1).randbytes(50_001)
    reach(device).push_bytes(data, f"{TMP}/a")
    assert device.path(f"{TMP}/a").read_bytes() == data


def test_a_pulled_file_has_the_same_bytes(transport: Transport, peer: Peer) -> None:
    data = random.Random(2).randbytes(2_500_001)
    peer.path(f"{TMP}/there").write_bytes(data)
    assert transport.pull_bytes(f"{TMP}/there") == data
    with pytest.raises(DeviceRefusal, match="No such file"):
        transport.pull_bytes(f"{TMP}/not-there")


def test_a_refused_push_carries_the_devices_words(transport: Transport) -> None:
    for size in (1, 5_000_000):
        with pytest.raises(DeviceRefusal, match=r"Permission denied|Read-only file system"):
            transport.push_bytes(bytes(size), "/system/bin/pushed")
    assert transport.shell("echo on", timeout=10).stdout == "on\n"


@pytest.mark.parametrize("name", ["a b", "a;b", "$(id)", "..", ".", "", "a/../b", "a'b", "ä", "a\nb", "-rf /", "a\0b"])
def test_a_name_that_a_shell_or_a_path_could_bend_is_refused(transport: Transport, name: str) -> None:
    with pytest.raises(UsageError, match="remote path"):
        remote_path(TMP, name)
    for call in (transport.pull_bytes, quote):
        with pytest.raises(UsageError):
            call(f"{TMP}/{name}")
    with pytest.raises(UsageError):
        transport.push_bytes(b"", f"{TMP}/{name}")


def test_a_relative_remote_path_is_refused() -> None:
    with pytest.raises(UsageError, match="relative"):
        remote_path("data", "x")


# --- the connection ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_writes_survive_small_socket_buffers(peer: Peer) -> None:
    class Narrow(TcpPort):
        def connect(self, transport_timeout_s: float) -> None:
            super().connect(transport_timeout_s)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    data = random.Random(5).randbytes(3_000_000)
    port = int(peer.serial.partition(":")[2])
    endpoint = Endpoint(peer.serial, "tcp", lambda: Link(peer.serial, Narrow("127.0.0.1", port)))
    with Transport(endpoint).connect() as transport:
        transport.push_bytes(data, f"{TMP}/narrow")
        digest = transport.shell(f"sha256sum {TMP}/narrow", timeout=20).stdout.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()


def test_a_peer_that_ends_a_connection_without_reading_on_ends_a_write() -> None:
    """Once a window is full, the other side's kernel may report only that its side is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = TcpPort("127.0.0.1", server.getsockname()[1])
        port.connect(10)
        peer, _ = server.accept()
        ending = threading.Timer(0.2, lambda: peer.shutdown(socket.SHUT_WR))
        ending.start()
        with pytest.raises(ConnectionLost, match="the device has ended the connection"):
            port.write([bytes(64 << 20)], 60)
        ending.join()
        port.close()
        peer.close()


def test_available_is_false_as_soon_as_the_device_is_gone(make_device: MakeDevice, reach: Connect) -> None:
    with Emulator(EmulatorSettings(isolation="folder")) as device:
        transport = reach(device)
        assert transport.available
    assert not transport.available
    with pytest.raises(ConnectionLost, match="reconnect"):
        transport.shell("echo", timeout=5)


def test_reconnect_waits_for_a_device_that_comes_back(reach: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(EmulatorSettings(isolation="folder")) as device:
        transport = reach(device)
    port = device.port
    with pytest.raises(ConnectionLost):
        transport.reconnect(timeout=0.3)
    pauses = itertools.count()
    with ExitStack() as stack:

        def come_back(seconds: float) -> None:
            if next(pauses) == 0:
                stack.enter_context(Emulator(EmulatorSettings(port=port, isolation="folder")))

        monkeypatch.setattr("device_harness.adb.transport.time.sleep", come_back)
        transport.reconnect(timeout=20)
        monkeypatch.undo()
        assert transport.shell("echo back", timeout=10).stdout == "back\n"
        assert next(pauses) >= 1


def test_nobody_at_an_address_is_a_lost_connection() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionLost, match="refused"):
            Transport(tcp_endpoint(f"127.0.0.1:{bound.getsockname()[1]}")).connect(timeout=2)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolFault),
        (pack_header("STLS", 0x01000000, 0), Exception),
        (pack_header("CNXN", 0x01000000, 16, b"device::\0") + b"device::\0", ProtocolFault),
        (pack_header("CNXN", 0x01000000, 4096, b"device::x") + b"device::\0", ProtocolFault),
        (b"", ConnectionLost),
    ],
    ids=["no adb", "TLS", "tiny messages", "wrong checksum", "hangs up"],
)
def test_a_peer_that_answers_nonsense_is_one_clear_fault(answer: bytes, fault: type[Exception]) -> None:
    with _peer(answer) as port, pytest.raises(fault, match=r"found .*, wanted |connection reset by peer"):
        Transport(tcp_endpoint(f"127.0.0.1:{port}")).connect(timeout=2)


def test_a_device_that_breaks_the_protocol_later_loses_the_connection() -> None:
    hello = pack_header("CNXN", 0x01000000, 4096, b"device::\0") + b"device::\0"
    okay = pack_header("OKAY", 5, 1)
    bad = struct.pack("<6I", 1, 2, 3, 4, 5, 6)
    with (
        _peer(hello + okay + bad) as port,
        Transport(tcp_endpoint(f"127.0.0.1:{port}")).connect(timeout=2) as transport,
    ):
        with pytest.raises(ProtocolFault):
            transport.shell("echo", timeout=3)
        assert not transport.available


class _peer:
    """Listens, and gives its answer to the first bytes that come."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        port: int = self._listener.getsockname()[1]
        return port

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            sock.settimeout(5)
            sock.recv(1)
            sock.sendall(self._answer)
            while self._answer and sock.recv(1 << 20):
                pass

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(5)


# --- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exit_codes_of_commands_that_end_at_once_are_right_every_time(any_transport: Transport) -> None:
    codes = [any_transport.shell(f"exit {number}", timeout=10).exit_code for number in range(25)]
    assert codes == list(range(25))


def test_a_syntax_error_and_an_unknown_command_have_exit_codes(any_transport: Transport) -> None:
    assert any_transport.shell("if then", timeout=10).exit_code not in (0, 137)
    assert any_transport.shell("no-such-command", timeout=10).exit_code == 127


def test_errors_without_a_line_end_come_before_the_exit_code(any_transport: Transport) -> None:
    result = any_transport.shell("printf partial >&2; exit 5", timeout=10)
    assert (result.stdout + result.stderr, result.exit_code) == ("partial", 5)


def test_a_command_that_replaces_the_shell_has_an_exit_code(any_transport: Transport) -> None:
    assert any_transport.shell("exec sh -c 'sleep 0.1; exit 6'", timeout=10).exit_code == 6


@pytest.mark.slow
@given(st.lists(st.sampled_from([b"mark:3\n", b"mark:", b"ma", b"x", b"\n", b"mark:7\n"])), st.randoms())
def test_the_marker_is_found_wherever_the_stream_is_cut(words: list[bytes], chance: random.Random) -> None:
    text = b"".join([*words, b"mark:9\n"])
    whole = _MarkerFilter("mark:")
    wanted = whole.feed(text) + whole.rest()
    cut, shown = _MarkerFilter("mark:"), b""
    while text:
        at = chance.randint(1, len(text))
        shown, text = shown + cut.feed(text[:at]), text[at:]
    assert (shown + cut.rest(), cut.code) == (wanted, whole.code)


@pytest.mark.parametrize(("version", "sums"), [(VERSION, True), (VERSION_SKIP_CHECKSUM, False)])
def test_checksums_are_sent_to_devices_that_look_at_them(
    make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch, version: int, sums: bool
) -> None:
    device = make_device(EmulatorSettings(isolation="folder", version=version))
    sent: list[bytes] = []

    class Listening(TcpPort):
        def write(self, buffers: Sequence[Payload], timeout: float) -> None:
            assert not isinstance(buffers[0], FilePayload)
            sent.append(bytes(buffers[0]))
            super().write(buffers, timeout)

    endpoint = Endpoint(device.serial, "tcp", lambda: Link(device.serial, Listening("127.0.0.1", device.port)))
    with Transport(endpoint).connect() as transport:
        transport.push_bytes(b"abc", f"{TMP}/summed")
    headers = [parse_header(header) for header in sent]
    # The first message is summed whoever it is for.
    assert headers[0].checksum
    assert {bool(header.checksum) for header in headers[1:] if header.length} == {sums}


@pytest.mark.parametrize("version", [VERSION, VERSION_SKIP_CHECKSUM])
def test_a_piece_of_a_file_arrives_as_it_is_and_one_that_has_shrunk_is_a_fault(
    make_device: MakeDevice, tmp_path: Path, version: int
) -> None:
    device = make_device(EmulatorSettings(isolation="folder", version=version))
    data = random.Random(5).randbytes(3_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    with Transport(tcp_endpoint(device.serial)).connect() as transport, open(path, "rb") as file:
        with transport.stream_exec(f"head -c 2500000 > {TMP}/piece; echo done") as stream:
            assert stream.write(FilePayload(path, file.fileno(), 123_457, 2_500_000))
            assert b"".join(iter(stream.read, b"")) == b"done\n"
        assert device.path(f"{TMP}/piece").read_bytes() == data[123_457 : 123_457 + 2_500_000]
        with (
            transport.stream_exec("cat > /dev/null") as stream,
            pytest.raises(BundleError, match="an end at byte 3,000,000, wanted at least"),
        ):
            stream.write(FilePayload(path, file.fileno(), 2_900_000, 200_000))


def _link_of(transport: Transport) -> Link:
    assert isinstance(transport._link, Link)
    return transport._link


def test_an_interrupt_between_two_messages_leaves_the_connection_usable(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = _link_of(transport)._port
    wait = port.wait
    calls = iter([wait, None])

    def interrupted(timeout: float) -> bytes:
        if next(calls, wait) is None:
            raise KeyboardInterrupt
        return wait(timeout)

    monkeypatch.setattr(port, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transport.shell("sleep 0.2", timeout=10)
    assert transport.available
    assert transport.shell("echo restored", timeout=10).stdout == "restored\n"


def test_an_interrupt_in_the_middle_of_a_message_loses_the_connection_and_reconnect_mends_it(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(buffers: object, timeout: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_link_of(transport)._port, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transport.push_bytes(b"x", f"{TMP}/x")
    assert not transport.available
    transport.reconnect()
    assert transport.shell("echo restored", timeout=10).stdout == "restored\n"
