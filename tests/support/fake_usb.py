"""USB, played by a socket: what the harness has of a cable, without one."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from adb_shell import exceptions  # type: ignore[import-untyped]

from device_harness.adb import port as transport_port
from device_harness.adb.port import UsbPort
from device_harness.adb.wire import HEADER_BYTES, parse_header

PACKET_BYTES = 512
"""wMaxPacketSize of a high-speed endpoint."""
_READ_BYTES = 16 * 1024
"""How much adbd reads at once (AOSP, daemon/usb.cpp)."""


class USBErrorTimeout(Exception):
    """libusb's class of that name."""


class FakeUsb:
    """adb-shell's UsbTransport over a socket: one connection, short writes, and a timeout as an exception.

    What is written arrives as it does at adbd: a read ends when it is full or at a packet that is not, a header has to
    come in a read of its own, and a read that is longer than the rest of a payload ends the connection.
    """

    usb_info = "fake R58M123"

    def __init__(self, port: int, refusal: Exception | None = None) -> None:
        """`port`: an emulated device's; `refusal`: what libusb says when the cable is opened."""
        self._port = port
        self._refusal = refusal
        self._socket: socket.socket | None = None
        self._read = b""
        self._payload_bytes = 0
        """How much of the current message's payload is still to come."""
        endpoints = ((0x81, PACKET_BYTES), (0x01, PACKET_BYTES))
        self._setting = SimpleNamespace(iterEndpoints=lambda: iter([_Endpoint(*endpoint) for endpoint in endpoints]))
        self.connections = 0

    def connect(self, timeout: float) -> None:
        if self._refusal is not None:
            raise self._refusal
        assert self._socket is None, "a cable carries one connection"
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._read, self._payload_bytes = b"", 0
        self.connections += 1

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def bulk_read(self, size: int, timeout: float) -> bytes:
        assert self._socket is not None
        if not select.select([self._socket], [], [], timeout)[0]:
            raise exceptions.UsbReadFailedError("timeout", USBErrorTimeout())
        try:
            data = self._socket.recv(size)
        except ConnectionResetError:
            data = b""
        if not data:
            raise exceptions.UsbReadFailedError("gone", OSError())
        return data

    def bulk_write(self, data: bytes, timeout: float) -> int:
        assert self._socket is not None
        data = data[: 20 * PACKET_BYTES]
        try:
            for at in range(0, max(len(data), 1), PACKET_BYTES):
                packet = data[at : at + PACKET_BYTES]
                self._read += packet
                if len(packet) < PACKET_BYTES or len(self._read) == _READ_BYTES:
                    read, self._read = self._read, b""
                    self._arrive(self._socket, read)
        except OSError as error:
            raise exceptions.UsbWriteFailedError("gone", error) from error
        return len(data)

    def _arrive(self, sock: socket.socket, read: bytes) -> None:
        if not read:
            return
        if self._payload_bytes:
            self._payload_bytes -= len(read)
        elif len(read) == HEADER_BYTES:
            self._payload_bytes = parse_header(read).length
        else:
            self._payload_bytes = -1
        if self._payload_bytes < 0:
            sock.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("bytes of two messages in one read")
        sock.sendall(read)


class _Endpoint:
    """libusb's endpoint of an interface."""

    def __init__(self, address: int, packet_bytes: int) -> None:
        self._address = address
        self._packet_bytes = packet_bytes

    def getAddress(self) -> int:
        return self._address

    def getMaxPacketSize(self) -> int:
        return self._packet_bytes


def plug_in(monkeypatch: pytest.MonkeyPatch, *usb: tuple[str, FakeUsb]) -> None:
    """Let these be the serial numbers and cables that are found on USB."""

    def found() -> Iterator[tuple[str, UsbPort]]:
        return iter([(serial, UsbPort(fake)) for serial, fake in usb])

    monkeypatch.setattr(transport_port, "usb_devices", found)
