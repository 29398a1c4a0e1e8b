"""adb's server, which holds the USB devices of this computer: which devices it has, and connections through it.

Each stream is a socket to the server. Source: AOSP `packages/modules/adb/SERVICES.TXT` and `client/adb_client.cpp`.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from device_harness.adb.connection import STALL_S, service_name
from device_harness.adb.faults import (
    ConnectionLost,
    DeviceFault,
    DeviceTimeout,
    ProtocolFault,
    ServiceRefused,
)
from device_harness.adb.payload import Buffer, Payload
from device_harness.adb.port import Signer, ask_to_confirm, unauthorized
from device_harness.adb.sockets import await_events, send_some
from device_harness.adb.wire import MAX_PAYLOAD_BYTES, Banner
from toolkit.base.errors import UsageError, system_reason

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 5037

_KNOCK_S = 0.5
_ANSWER_S = 5.0
_PAUSE_S = 0.2
_READ_BYTES = 256 * 1024
_LOOK_S = 0.5
"""How often a thread that reads looks whether one that writes has taken the input meanwhile."""
_MAX_INBOX_BYTES = 64 * MAX_PAYLOAD_BYTES
"""The maximum number of unread bytes from the device while we write to it."""
_DEVICE = re.compile(r"(\(no serial number\)|\S+)\s+(.+?)((?: [a-z_]+:\S*)*)", re.ASCII)
_NO_SERIAL = re.compile(r"\(no serial number\)|\?+")
"""What the server shows for a device without a serial number, or with one that it may not read."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerDevice:
    """A device that the server lists; `state` as the server words it: `device`, `offline`, `no permissions (...)`."""

    serial: str
    """Its serial number or address; its place on USB if it has none, such as `usb:1-2`, which the server takes too."""
    state: str
    is_usb: bool
    model: str
    product: str


@dataclass(frozen=True, slots=True)
class AdbServer:
    """Where adb's server listens."""

    host: str
    port: int

    @property
    def name(self) -> str:
        return f"adb's server at {self.host}:{self.port}"

    def devices(self) -> tuple[ServerDevice, ...] | None:
        """The devices that it lists; None if no server runs there."""
        try:
            with self._connect(_KNOCK_S) as sock:
                return parse_devices(_ask(sock, "host:devices-l", self.name))
        except ConnectionLost:
            return None
        except DeviceFault as error:
            _log.warning("%s; continuing without it", error)
            return None

    def ask(self, request: str) -> str:
        """The answer to a request such as `host:version`."""
        with self._connect(_KNOCK_S) as sock:
            return _ask(sock, request, self.name)

    def open(self, serial: str, service: str, timeout: float) -> socket.socket:
        """A socket to a service of the device; ConnectionLost also if the device refuses the service."""
        sock = self._connect(timeout)
        try:
            _require_okay(sock, f"host:transport:{serial}", serial, timeout)
            _require_okay(sock, service, f"{serial} {service_name(service)}", timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self, timeout: float) -> socket.socket:
        try:
            sock = socket.create_connection((self.host, self.port), timeout=timeout)
        except OSError as error:
            raise ConnectionLost(self.name, found=system_reason(error), remedy="run adb start-server") from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock


def this_server() -> AdbServer:
    """The server that adb's own client would use; UsageError if ADB_SERVER_SOCKET names no TCP port."""
    spec = os.environ.get("ADB_SERVER_SOCKET")
    if spec is None:
        host = os.environ.get("ANDROID_ADB_SERVER_ADDRESS") or DEFAULT_HOST
        spec = f"tcp:{host}:{os.environ.get('ANDROID_ADB_SERVER_PORT') or DEFAULT_PORT}"
    kind, _, address = spec.partition(":")
    host, _, port = address.rpartition(":")
    if kind != "tcp" or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError("adb's server", found=repr(spec), wanted="tcp:HOST:PORT", remedy="correct ADB_SERVER_SOCKET")
    return AdbServer((host or DEFAULT_HOST).strip("[]"), int(port))


def parse_devices(text: str) -> tuple[ServerDevice, ...]:
    """Parse the answer to `host:devices-l`.

    >>> parse_devices("R58M123        device usb:1-2 product:p model:Pixel_9 device:d transport_id:1\\n")
    (ServerDevice(serial='R58M123', state='device', is_usb=True, model='Pixel_9', product='p'),)
    """
    found = []
    for line in text.splitlines():
        match = _DEVICE.fullmatch(line.rstrip())
        if match is None:
            continue
        words = dict(word.split(":", 1) for word in match[3].split())
        has_place = "usb" in words
        serial = f"usb:{words['usb']}" if has_place and _NO_SERIAL.fullmatch(match[1]) else match[1]
        found.append(ServerDevice(serial, match[2], has_place, words.get("model", ""), words.get("product", "")))
    return tuple(found)


class ServerLink:
    """A connection to a device through adb's server, which has the keys and the cable."""

    def __init__(self, server: AdbServer, serial: str) -> None:
        self.name = serial
        self.banner = Banner("", {}, frozenset())
        self._server = server
        self._is_open = False

    def connect(self, signers: Sequence[Signer], *, timeout: float, auth_timeout: float) -> None:
        """Wait until the server has the device; the keys are the server's, so `signers` are not used."""
        started = time.monotonic()
        asked = False
        while (state := (device := self._device()).state) != "device":
            waited = time.monotonic() - started
            if state in ("unauthorized", "authorizing"):
                if not asked:
                    ask_to_confirm(self.name)
                asked = True
                if waited >= auth_timeout:
                    raise unauthorized(self.name, "the device does not know this computer's key")
            elif waited >= timeout or state not in ("offline", "connecting"):
                raise DeviceTimeout(self.name, found=f"adb's server says {state!r}", remedy="connect it again")
            time.sleep(_PAUSE_S)
        features = self._server.ask(f"host-serial:{self.name}:features")
        names = {"ro.product.model": device.model, "ro.product.name": device.product}
        self.banner = Banner("device", names, frozenset(features.strip().split(",")))
        self._is_open = True

    @property
    def available(self) -> bool:
        """Whether the server still has the device."""
        try:
            return self._is_open and self._device().state == "device"
        except DeviceFault:
            return False

    def open(self, service: str, *, timeout: float) -> ServerStream:
        """Open a stream to a service such as `shell:ls`."""
        if not self._is_open:
            raise ConnectionLost(self.name, found="no connection yet", remedy="reconnect")
        what = f"{self.name} {service_name(service)}"
        try:
            return ServerStream(self, what, self._server.open(self.name, service, timeout))
        except ConnectionLost as error:
            if not self.available:
                raise
            raise ServiceRefused(what, found="the device refuses this service") from error

    def close(self) -> None:
        """Open no more streams; the server keeps the device."""
        self._is_open = False

    def _device(self) -> ServerDevice:
        found = self._server.devices()
        if found is None:
            raise ConnectionLost(self._server.name, found="no answer", remedy="run adb start-server")
        for device in found:
            if device.serial == self.name:
                return device
        raise ConnectionLost(self.name, found="adb's server has no such device", remedy="connect it again")


class ServerStream:
    """A stream to a service of a device, through the server."""

    max_write_bytes = MAX_PAYLOAD_BYTES

    def __init__(self, link: ServerLink, what: str, sock: socket.socket) -> None:
        self._link = link
        self._what = what
        self._socket = sock
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._taking = threading.Lock()
        self._is_ended = False

    @property
    def has_input(self) -> bool:
        """Whether `read` would return at once."""
        self._take_input()
        return bool(self._inbox) or self._is_ended

    def write(self, payload: Payload, *, timeout: float) -> None:
        """Send all of it and read input meanwhile; otherwise a device that echoes would wait for us, and we for it."""
        rest: list[Payload] = [payload]
        while rest:
            if not self.drain(timeout=timeout):
                raise ConnectionLost(self._what, found="the stream ended before the device had read all")
            try:
                rest = send_some(self._socket, rest)
            except BlockingIOError:
                continue
            except OSError:
                self._take_input()  # what came before the end
                self._is_ended = True

    def drain(self, *, timeout: float) -> bool:
        """Wait until there is room for more; return False if the stream has ended instead."""
        while not self._is_ended:
            found = await_events(self._socket, select.POLLIN | select.POLLOUT, timeout)
            if not found:
                raise DeviceTimeout(self._what, found=f"the device has read nothing for {timeout:g} s")
            if found & ~select.POLLOUT:
                self._take_input()
            if found & select.POLLOUT:
                break
        return not self._is_ended

    def read(self, *, timeout: float) -> Buffer:
        """Some bytes; empty at the end of the stream. ConnectionLost if it ended because the server lost the device."""
        deadline = time.monotonic() + timeout
        while not self.has_input:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceTimeout(self._what, found=f"no output for {timeout:g} s")
            await_events(self._socket, select.POLLIN, min(left, _LOOK_S))
        with self._taking:
            if self._inbox:
                data = self._inbox.popleft()
                self._inbox_bytes -= len(data)
                return data
        if not self._link.available:
            raise ConnectionLost(self._what, found="adb's server has lost the device", remedy="reconnect")
        return b""

    def close(self) -> None:
        """Close the stream; its command may continue on the device."""
        self._socket.close()
        self._is_ended = True

    def _take_input(self) -> None:
        with self._taking:
            while not self._is_ended:
                try:
                    data = self._socket.recv(_READ_BYTES)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                self._is_ended = not data
                if data:
                    self._inbox.append(data)
                    self._inbox_bytes += len(data)
                if self._inbox_bytes > _MAX_INBOX_BYTES:
                    raise ProtocolFault(self._what, found=f"{self._inbox_bytes:,} unexpected bytes")


def _ask(sock: socket.socket, request: str, what: str) -> str:
    _require_okay(sock, request, what, _ANSWER_S)
    return _read_text(sock, what, _ANSWER_S)


def _require_okay(sock: socket.socket, request: str, what: str, timeout: float) -> None:
    """Send a request; if it fails, raise the fault that fits the server's message."""
    data = request.encode()
    rest: list[Payload] = [b"%04x" % len(data) + data]
    while rest:
        try:
            rest = send_some(sock, rest)
        except BlockingIOError:
            _await(sock, select.POLLOUT, what, STALL_S)
        except OSError as error:
            raise ConnectionLost(what, found=system_reason(error)) from error
    status = _read_exactly(sock, 4, what, timeout)
    if status == b"FAIL":
        raise _failure(what, _read_text(sock, what, timeout))
    if status != b"OKAY":
        raise ProtocolFault(what, found=f"an answer that starts with {status!r}", wanted="OKAY or FAIL")


def _failure(what: str, words: str) -> DeviceFault:
    first = words.strip().partition("\n")[0].strip()
    if "unauthorized" in first or "authorizing" in first:
        return unauthorized(what, f"adb's server says: {first}")
    if "offline" in first:
        return DeviceTimeout(what, found=f"adb's server says: {first}", remedy="connect the device again")
    return ConnectionLost(what, found=f"adb's server says: {first}")


def _read_text(sock: socket.socket, what: str, timeout: float) -> str:
    length = _read_exactly(sock, 4, what, timeout)
    try:
        size = int(length, 16)
    except ValueError as error:
        raise ProtocolFault(what, found=f"a length of {length!r}", wanted="four hexadecimal digits") from error
    return _read_exactly(sock, size, what, timeout).decode("utf-8", "replace")


def _read_exactly(sock: socket.socket, size: int, what: str, timeout: float) -> bytes:
    data = b""
    while len(data) < size:
        _await(sock, select.POLLIN, what, timeout)
        try:
            some = sock.recv(size - len(data))
        except OSError as error:
            raise ConnectionLost(what, found=system_reason(error)) from error
        if not some:
            raise ConnectionLost(what, found="adb's server has ended the connection")
        data += some
    return data


def _await(sock: socket.socket, events: int, what: str, timeout: float) -> None:
    if not await_events(sock, events, timeout):
        raise DeviceTimeout(what, found=f"no answer from adb's server within {timeout:g} s")
