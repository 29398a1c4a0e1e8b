"""USB, played by a socket: what the harness has of a cable, without one."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
from adb_shell import exceptions  # type: ignore[import-untyped]

from device_harness.adb import port as transport_port
from device_harness.adb.port import UsbPort


class USBErrorTimeout(Exception):
    """libusb's class of that name."""


class FakeUsb:
    """adb-shell's UsbTransport over a socket: one connection, short writes, and a timeout as an exception."""

    usb_info = "fake R58M123"

    def __init__(self, port: int, refusal: Exception | None = None) -> None:
        """`port`: an emulated device's; `refusal`: what libusb says when the cable is opened."""
        self._port = port
        self._refusal = refusal
        self._socket: socket.socket | None = None
        self.connections = 0

    def connect(self, timeout: float) -> None:
        if self._refusal is not None:
            raise self._refusal
        assert self._socket is None, "a cable carries one connection"
        self._socket = socket.create_connection(("127.0.0.1", self._port))
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
        try:
            return self._socket.send(data[:10_000])
        except OSError as error:
            raise exceptions.UsbWriteFailedError("gone", error) from error


def plug_in(monkeypatch: pytest.MonkeyPatch, *usb: tuple[str, FakeUsb]) -> None:
    """Let these be the serial numbers and cables that are found on USB."""

    def found() -> Iterator[tuple[str, UsbPort]]:
        return iter([(serial, UsbPort(fake)) for serial, fake in usb])

    monkeypatch.setattr(transport_port, "usb_devices", found)
