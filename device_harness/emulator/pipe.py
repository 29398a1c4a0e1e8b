"""Moves bytes from a socket through a pipe with splice, without copying them to the emulated device's memory."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
from contextlib import suppress

from device_harness.adb.payload import Buffer

_PIPE_BYTES = 1024 * 1024
"""The largest pipe that every user may make (`/proc/sys/fs/pipe-max-size`): about a message."""
_FLAGS = 1 | 2  # SPLICE_F_MOVE and SPLICE_F_NONBLOCK, which Python 3.10 to 3.14 name on Linux alone


class Pipe:
    """`fill` puts bytes in; `Piped` objects take them out, in the same order."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.is_closed = False
        with suppress(PermissionError):  # a user with many pipes gets small ones
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def close(self) -> None:
        """Close both ends; bytes still in the pipe are lost."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self._out)
            os.close(self._in)

    async def fill(self, source: socket.socket, most: int) -> int | None:
        """Move bytes in from a socket; return how many, 0 at the socket's end, or None if the pipe is full."""
        while not self.is_closed:
            try:
                return os.splice(source.fileno(), self._in, most, flags=_FLAGS)
            except BlockingIOError:
                if not select.select([], [self._in], [], 0)[1]:
                    return None
            await _readable(source)
        return None

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, which must be in the pipe."""
        data = b""
        while len(data) < size:
            data += os.read(self._out, size - len(data))
        return data

    def send(self, target: int, size: int) -> int:
        """Send up to `size` bytes to a file or socket; return how many it took. BlockingIOError if it takes none."""
        return os.splice(self._out, target, size, flags=_FLAGS)


class Piped:
    """The next `size` bytes of a pipe, which must be taken out before those behind them."""

    def __init__(self, pipe: Pipe, size: int) -> None:
        self._pipe = pipe
        self._size = size

    def __len__(self) -> int:
        return self._size

    def split(self, most: int) -> Piped:
        """Split off the first of these bytes."""
        size = min(most, self._size)
        self._size -= size
        return Piped(self._pipe, size)

    def read(self) -> bytes:
        """Read all of the bytes out of the pipe."""
        size, self._size = self._size, 0
        return self._pipe.read(size)

    def write(self, file: int) -> None:
        """Write all of the bytes to a file."""
        while self._size:
            self._size -= self._pipe.send(file, self._size)

    async def send(self, target: socket.socket) -> None:
        """Write all of the bytes to a non-blocking socket."""
        while self._size:
            try:
                self._size -= self._pipe.send(target.fileno(), self._size)
            except BlockingIOError:
                await _writable(target)


def at_hand(data: Buffer | Piped) -> Buffer:
    """The data as bytes in memory, read from the pipe if it is there."""
    return data.read() if isinstance(data, Piped) else data


async def _readable(source: socket.socket) -> None:
    loop, file = asyncio.get_running_loop(), source.fileno()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(file, _note, ready)
    try:
        await ready
    finally:
        loop.remove_reader(file)


async def _writable(target: socket.socket) -> None:
    loop, file = asyncio.get_running_loop(), target.fileno()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(file, _note, ready)
    try:
        await ready
    finally:
        loop.remove_writer(file)


def _note(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
