"""The daemon's ends of a command's standard streams: sockets, or the master of a pseudo-terminal."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import re
import socket
import struct
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from device_harness.adb.payload import Buffer
from device_harness.emulator.pipe import Piped, at_hand

_READ_BYTES = 256 * 1024
_INPUT_BYTES = 1024 * 1024
"""How much input may wait for a program: about a message, so that none waits for another; the kernel may allow less."""
_LOOK_S, _QUIET_LOOKS = 0.05, 10
_WINDOW = re.compile(rb"(\d{1,5})x(\d{1,5}),(\d{1,5})x(\d{1,5})\0?")


class End(Protocol):
    """An end that a command's input is written to and its output read from."""

    async def read(self) -> bytes:
        """Some output; empty at its end."""

    async def put(self, data: Buffer | Piped) -> None:
        """Write all of it; what no program reads is dropped."""

    def end_input(self) -> None:
        """Let the command see the end of its input."""

    def close(self) -> None: ...

    def linger(self) -> None:
        """Drop the output of a command that keeps running, and close at its end."""


class SocketEnd:
    """One of a pair of sockets."""

    def __init__(self) -> None:
        self._socket, self.theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _INPUT_BYTES)

    async def read(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, _READ_BYTES)
        except OSError:
            return b""

    async def put(self, data: Buffer | Piped) -> None:
        try:
            if isinstance(data, Piped):
                await data.send(self._socket)
            else:
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except (BrokenPipeError, ConnectionResetError):
            at_hand(data)  # input that no program reads must not stay in front of later input

    def end_input(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def linger(self) -> None:
        with suppress(OSError):
            self.end_input()
        _drain(self._socket.fileno(), self._socket.close)


class TerminalEnd:
    """The master of a pseudo-terminal, whose other side is a command's controlling terminal."""

    def __init__(self, *, is_raw: bool) -> None:
        """`is_raw`: without echo and without control characters."""
        self._master, self.theirs = pty.openpty()
        self._name = os.ttyname(self.theirs)
        os.set_blocking(self._master, False)
        if is_raw:
            tty.setraw(self.theirs)

    async def read(self) -> bytes:
        while True:
            try:
                return os.read(self._master, _READ_BYTES)
            except BlockingIOError:
                await _ready(self._master, is_write=False)
            except OSError:  # EIO: no program has the other side any more
                return b""

    async def put(self, data: Buffer | Piped) -> None:
        rest = memoryview(at_hand(data))
        while rest:
            try:
                rest = rest[os.write(self._master, rest) :]
            except BlockingIOError:
                await _ready(self._master, is_write=True)
            except OSError:
                return

    def end_input(self) -> None:
        """Do nothing: a terminal has no input side that could be closed alone."""

    def resize(self, text: bytes) -> None:
        """Set the size of the host's window, such as `24x80,0x0` (rows, columns, and pixels)."""
        match = _WINDOW.fullmatch(text)
        if match is not None:
            size = struct.pack("4H", *(min(int(number), 0xFFFF) for number in match.groups()))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        os.close(self._master)

    def linger(self) -> None:
        _drain(self._master, self.close)

    def hang_up(self, is_running: Callable[[], bool]) -> None:
        """Close a moment after the command has read what it was sent: a hangup drops input that it has not read."""
        slave = os.open(self._name, os.O_RDWR | os.O_NOCTTY)
        unread = struct.Struct("i")

        def look(quiet: int) -> None:
            (count,) = unread.unpack(fcntl.ioctl(slave, termios.FIONREAD, bytes(unread.size)))
            if is_running() and quiet < _QUIET_LOOKS:
                asyncio.get_running_loop().call_later(_LOOK_S, look, 0 if count else quiet + 1)
                return
            os.close(slave)
            self.close()

        look(0)


def _drain(file: int, close: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def drop() -> None:
        with suppress(BlockingIOError):
            try:
                if os.read(file, _READ_BYTES):
                    return
            except (ConnectionResetError, BrokenPipeError):
                pass
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
            loop.remove_reader(file)
            close()

    loop.add_reader(file, drop)


async def _ready(file: int, *, is_write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if is_write else (loop.add_reader, loop.remove_reader)
    add(file, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(file)
