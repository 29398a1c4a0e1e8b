"""adb-shell's sockets, USB endpoints, handshake and keys, typed and with fixes: the only file that imports the library.

Version 0.4.4 is pinned, because the fixes here touch private parts: that version lost partial writes to a socket, took
a closed socket for a silent one, summed checksums in Python, and dropped what the device says about itself.
"""

from __future__ import annotations

import base64
import logging
import math
import select
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from adb_shell import exceptions  # type: ignore[import-untyped]
from adb_shell.adb_device import UsbTransport, _AdbIOManager  # type: ignore[import-untyped]
from adb_shell.adb_message import AdbMessage  # type: ignore[import-untyped]
from adb_shell.hidden_helpers import _AdbTransactionInfo  # type: ignore[import-untyped]
from adb_shell.transport.base_transport import BaseTransport  # type: ignore[import-untyped]
from adb_shell.transport.tcp_transport import TcpTransport  # type: ignore[import-untyped]

from device_harness.adb.faults import ConnectionLost, DeviceFault, DeviceTimeout, ProtocolFault, Unauthorized
from device_harness.adb.payload import Buffer, FilePayload, Payload
from device_harness.adb.sockets import await_events, send_some
from device_harness.adb.wire import (
    AUTH_TOKEN,
    DELAYED_ACK,
    HEADER_BYTES,
    LEGACY_PAYLOAD_BYTES,
    MAX_PAYLOAD_BYTES,
    TOKEN_BYTES,
    VERSION,
    VERSION_SKIP_CHECKSUM,
    Banner,
    Header,
    pack_header,
    parse_banner,
    parse_header,
    require_checksum,
)
from toolkit.base.errors import ToolkitError, system_reason

FEATURES = frozenset({"cmd", DELAYED_ACK, "shell_v2"})
"""The features of this host."""

_PEER_CLOSED: int = getattr(select, "POLLRDHUP", 0)  # Linux only; elsewhere a timeout ends such a connection
_TO_HOST = 0x80
"""The bit in the address of a USB endpoint that sends to the host (USB 2.0, 9.6.6)."""
_SLOWEST_BYTES_PER_S = 10_000
"""A message that comes more slowly counts as hanging."""

_log = logging.getLogger(__name__)

_ADB_SHELL_FAULTS = (
    exceptions.AdbTimeoutError,
    exceptions.InvalidResponseError,
    exceptions.TcpTimeoutException,
    exceptions.UsbReadFailedError,
    exceptions.UsbWriteFailedError,
)


class Signer(Protocol):
    """A private key, with the methods that adb-shell needs."""

    def Sign(self, data: bytes) -> bytes: ...
    def GetPublicKey(self) -> str | bytes: ...


def load_signer(path: Path) -> Signer:
    """Load an adb key (PEM) from `path`; its public key is read from `path.pub`, or computed if that is missing."""
    # Imported here because they take the cryptography library, as long as a small push; adb's server needs no key.
    from adb_shell.auth.keygen import encode_pubkey, get_user_info  # type: ignore[import-untyped]
    from adb_shell.auth.sign_cryptography import CryptographySigner  # type: ignore[import-untyped]
    from adb_shell.auth.sign_pythonrsa import PythonRSASigner  # type: ignore[import-untyped]

    if Path(f"{path}.pub").is_file():
        signer: Signer = CryptographySigner(str(path))
        return signer
    public = base64.b64encode(encode_pubkey(str(path))) + get_user_info().encode()
    signer = PythonRSASigner(public.decode(), path.read_text(encoding="ascii"))
    return signer


def generate_key(path: Path) -> None:
    """Write a new RSA key of 2,048 bits to `path` and `path.pub`."""
    from adb_shell.auth.keygen import keygen

    keygen(str(path))


class Port(Protocol):
    """A byte connection; every method raises ConnectionLost if the other side is gone."""

    def connect(self, transport_timeout_s: float) -> None: ...
    def close(self) -> None: ...
    def wait(self, timeout: float) -> bytes:
        """The header of the next message; empty if no byte arrived."""

    def read(self, size: int, timeout: float) -> Buffer:
        """Read exactly `size` bytes; `timeout`: the longest pause in seconds."""

    def write(self, buffers: Sequence[Payload], timeout: float) -> None:
        """Write all buffers; `timeout`: the longest pause in seconds. BundleError if a file has become shorter."""

    def is_alive(self) -> bool: ...


class TcpPort(TcpTransport):  # type: ignore[misc]
    """A socket that always writes everything, and tells a closed connection from a silent one."""

    def connect(self, transport_timeout_s: float) -> None:
        name = f"{self._host}:{self._port}"
        try:
            self._connection = socket.create_connection((self._host, self._port), timeout=transport_timeout_s)
        except TimeoutError as error:
            wanted = f"a connection within {transport_timeout_s:g} s"
            raise DeviceTimeout(name, found="no answer", wanted=wanted) from error
        except OSError as error:
            raise ConnectionLost(name, found=system_reason(error)) from error
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connection.setblocking(False)

    def bulk_read(self, numbytes: int, transport_timeout_s: float) -> bytes:
        return bytes(self.read(numbytes, transport_timeout_s))

    def bulk_write(self, data: bytes, transport_timeout_s: float) -> int:
        self.write([data], transport_timeout_s)
        return len(data)

    def wait(self, timeout: float) -> bytes:
        if not await_events(self._socket(), select.POLLIN, timeout):
            return b""
        return bytes(self.read(HEADER_BYTES, max(timeout, 1.0)))

    def read(self, size: int, timeout: float) -> Buffer:
        data = bytearray(size)
        rest = memoryview(data)
        deadline = time.monotonic() + timeout + size / _SLOWEST_BYTES_PER_S
        while rest:
            try:
                count = self._socket().recv_into(rest)
            except BlockingIOError:
                self._require(select.POLLIN, timeout, deadline)
                continue
            except OSError as error:
                raise self._lost(system_reason(error)) from error
            if not count:
                raise self._lost("the device has ended the connection")
            rest = rest[count:]
        return data

    def write(self, buffers: Sequence[Payload], timeout: float) -> None:
        rest = list(buffers)
        while rest:
            try:
                rest = send_some(self._socket(), rest)
            except BlockingIOError:
                self._require(select.POLLOUT, timeout)
            except OSError as error:
                raise self._lost(system_reason(error)) from error

    def is_alive(self) -> bool:
        try:
            return bool(self._socket().recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except (OSError, ConnectionLost):
            return False

    def _socket(self) -> socket.socket:
        if self._connection is None:
            raise self._lost("the connection is closed")
        connection: socket.socket = self._connection
        return connection

    def _require(self, event: int, timeout: float, deadline: float = math.inf) -> None:
        if time.monotonic() > deadline:
            raise self._lost("a message that does not end in time")
        # A peer that closes the connection while its receive window is full shows it only by ending its own side: it
        # takes nothing more, and need not reset the connection.
        end = _PEER_CLOSED if event == select.POLLOUT else 0
        found = await_events(self._socket(), event | end, timeout)
        if not found:
            raise self._lost(f"nothing for {timeout:g} s in the middle of a message")
        if found & end:
            raise self._lost("the device has ended the connection")

    def _lost(self, found: str) -> ConnectionLost:
        return ConnectionLost(f"{self._host}:{self._port}", found=found, remedy="reconnect")


class UsbPort(BaseTransport):  # type: ignore[misc]
    """USB endpoints; a header and its payload are separate transfers."""

    def __init__(self, transport: UsbTransport) -> None:
        self._usb = transport
        self._open = False
        self._packet_bytes = 0

    def connect(self, transport_timeout_s: float) -> None:
        try:
            self._usb.connect(transport_timeout_s)
            self._packet_bytes = next(
                endpoint.getMaxPacketSize()
                for endpoint in self._usb._setting.iterEndpoints()
                if not endpoint.getAddress() & _TO_HOST
            )
        except Exception as error:  # libusb's classes, which exist only if libusb does
            raise usb_fault(self._name(), error) from error
        self._open = True

    def close(self) -> None:
        self._open = False
        self._usb.close()

    def bulk_read(self, numbytes: int, transport_timeout_s: float) -> bytes:
        return bytes(self.read(numbytes, transport_timeout_s))

    def bulk_write(self, data: bytes, transport_timeout_s: float) -> int:
        self.write([data], transport_timeout_s)
        return len(data)

    def wait(self, timeout: float) -> bytes:
        try:
            # To libusb, 0 means no timeout.
            return bytes(self._usb.bulk_read(HEADER_BYTES, max(timeout, 0.001)))
        except exceptions.UsbReadFailedError as error:
            if type(error.usb_error).__name__ == "USBErrorTimeout":
                return b""
            raise self._lost(error) from error

    def read(self, size: int, timeout: float) -> Buffer:
        data = bytearray()
        while len(data) < size:
            try:
                data += self._usb.bulk_read(size - len(data), timeout)
            except exceptions.UsbReadFailedError as error:
                raise self._lost(error) from error
        return data

    def write(self, buffers: Sequence[Payload], timeout: float) -> None:
        for buffer in buffers:
            data = buffer.read() if isinstance(buffer, FilePayload) else buffer
            rest = memoryview(data)
            while rest:
                rest = rest[self._send_some(bytes(rest), timeout) :]
            # A read of the device ends when it is full or at a packet that is not. After full packets it would take the
            # next message too, so an empty packet ends it (AOSP, adb/docs/dev/zero_length_packet.md; usb_linux.cpp).
            if len(data) and len(data) % self._packet_bytes == 0:
                self._send_some(b"", timeout)

    def _send_some(self, data: bytes, timeout: float) -> int:
        try:
            count: int = self._usb.bulk_write(data, timeout)
        except exceptions.UsbWriteFailedError as error:
            raise self._lost(error) from error
        return count

    def is_alive(self) -> bool:
        return self._open

    def _name(self) -> str:
        return str(self._usb.usb_info or "USB device")

    def _lost(self, error: Exception) -> ConnectionLost:
        self._open = False
        return ConnectionLost(self._name(), found=str(error), remedy="check the cable")


def usb_fault(name: str, error: Exception) -> DeviceFault:
    """The fault for an error of libusb, with its meaning and remedy."""
    kind = type(error).__name__
    if kind == "USBErrorAccess":
        remedy = "install Debian's package android-sdk-platform-tools-common (udev rules) and log in again"
        return DeviceFault(name, found="no permission to read and write the USB device", remedy=remedy)
    if kind == "USBErrorBusy":
        remedy = "end the other gemma-edge that uses it or, if it is adb's server, run adb kill-server"
        return DeviceFault(name, found="another program holds the USB device", remedy=remedy)
    if kind == "USBErrorNoDevice":
        return ConnectionLost(name, found="the device is gone", remedy="check the cable")
    return DeviceFault(name, found=f"the USB device does not open ({kind}: {error})")


def has_usb() -> bool:
    """Whether libusb and its Python binding are installed (pip install gemma-edge[usb])."""
    return UsbTransport is not None


def usb_devices() -> Iterator[tuple[str, UsbPort]]:
    """Yield the serial number and port of each adb device on USB.

    Its place replaces a serial number that is missing or cannot be read: `usb:1-4.2`, as adb's server names it.
    """
    if UsbTransport is None:
        return
    for transport in UsbTransport.find_all_adb_devices():
        try:
            serial = transport.serial_number
        except Exception:  # libusb's own classes: without permission, the serial cannot be read
            serial = None
        bus, *ports = transport.port_path
        yield str(serial or f"usb:{bus}-{'.'.join(map(str, ports))}"), UsbPort(transport)


class Handshake(_AdbIOManager):  # type: ignore[misc]
    """adb-shell's connection set-up, extended to keep the device's banner."""

    def __init__(self, port: Port) -> None:
        super().__init__(port)
        self._port = port
        self._banner = b""
        self._version = VERSION
        self._asked_for_key = False

    @property
    def sums(self) -> bool:
        """Whether the device verifies checksums, as those before Android 9 do."""
        return self._version < VERSION_SKIP_CHECKSUM

    def run(self, name: str, signers: Sequence[Signer], *, timeout: float, auth_timeout: float) -> tuple[Banner, int]:
        """Connect; return the device's banner, and the maximum payload in bytes of a message to it."""
        info = _AdbTransactionInfo(None, None, timeout, timeout, None)
        try:
            _, most = self.connect(_own_banner(), list(signers), auth_timeout, lambda _: ask_to_confirm(name), info)
        except exceptions.DeviceAuthError as error:
            raise unauthorized(name, "the device asks for a key, and this computer has none") from error
        except (*_ADB_SHELL_FAULTS, ConnectionLost) as error:
            self._port.close()
            if self._asked_for_key:
                raise unauthorized(name, "the device does not know this computer's key") from error
            if isinstance(error, ConnectionLost):
                raise
            raise DeviceTimeout(name, found=f"no answer within {timeout:g} s") from error
        except BaseException as error:
            self._port.close()
            if isinstance(error, ToolkitError) or not isinstance(error, Exception):
                raise
            # adb-shell and the libraries for keys raise errors of many kinds for bytes that they do not expect.
            found = f"an answer that is not adb's protocol ({type(error).__name__})"
            raise ProtocolFault(f"{name} connection", found=found) from error
        if most < LEGACY_PAYLOAD_BYTES // 4:
            raise ProtocolFault(name, found=f"messages of {most} bytes at most", wanted=f"{LEGACY_PAYLOAD_BYTES}")
        return parse_banner(self._banner), min(most, MAX_PAYLOAD_BYTES)

    @property
    def counts_bytes(self) -> bool:
        """Whether each OKAY tells how many bytes it acknowledges, which both sides must support."""
        return DELAYED_ACK in FEATURES & parse_banner(self._banner).features

    def _read_packet_from_device(self, adb_info: _AdbTransactionInfo) -> tuple[bytes, int, int, bytes]:
        start = self._port.wait(adb_info.transport_timeout_s)
        if not start:
            raise exceptions.AdbTimeoutError("no answer")
        header, payload = read_rest(self._port, start, adb_info.transport_timeout_s)
        if header.command == "STLS":
            remedy = "run adb pair and adb connect, after which adb's server is used, or connect it by USB"
            raise DeviceFault("adb", found="wireless debugging with pairing (TLS)", wanted="plain adb", remedy=remedy)
        if header.command == "AUTH" and (header.arg0, len(payload)) != (AUTH_TOKEN, TOKEN_BYTES):
            found = f"type {header.arg0} with {len(payload)} bytes"
            raise ProtocolFault("adb message AUTH", found=found, wanted=f"a token of {TOKEN_BYTES} bytes")
        self._asked_for_key |= header.command == "AUTH"
        if header.command == "CNXN":
            self._banner = bytes(payload)
            self._version = header.arg0
        return header.command.encode(), header.arg0, header.arg1, bytes(payload)

    def _send(self, msg: AdbMessage, adb_info: _AdbTransactionInfo) -> None:
        command = int(msg.command).to_bytes(4, "little").decode()
        # adb-shell always announces checksums, and the lower version wins; so announce the version without them.
        arg0 = VERSION_SKIP_CHECKSUM if command == "CNXN" else msg.arg0
        header = pack_header(command, arg0, msg.arg1, msg.data)
        self._port.write([header, msg.data], adb_info.transport_timeout_s)


def read_rest(port: Port, start: Buffer, timeout: float) -> tuple[Header, Buffer]:
    """Read the rest of the message that starts with the bytes `start`, and verify its checksum."""
    header = parse_header(start)
    payload = port.read(header.length, timeout) if header.length else b""
    require_checksum(header, payload)
    return header, payload


def _own_banner() -> bytes:
    """What adb-shell sends after `host::`."""
    return f"features={','.join(sorted(FEATURES))}".encode()


def ask_to_confirm(name: str) -> None:
    """Log at once what the device is waiting for; otherwise its user and this program would wait for each other."""
    _log.warning("%s: confirm this computer's key on the device's screen", name)


def unauthorized(name: str, found: str) -> Unauthorized:
    """The fault that only someone at the device can fix."""
    remedy = "unlock the device, allow this computer's key on its screen, and try again"
    return Unauthorized(name, found=found, remedy=remedy)
