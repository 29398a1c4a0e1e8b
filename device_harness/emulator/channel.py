"""One stream of an adb connection, seen from the device: flow control, and a service's reads and writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from device_harness.transport_payload import Buffer

Send = Callable[[str, int, int, Buffer], Awaitable[None]]


class ChannelClosed(Exception):
    """The host has closed the stream."""


class Channel:
    """The host has one message at a time on the way, and so have we."""

    def __init__(self, send: Send, local_id: int, remote_id: int, max_payload_bytes: int) -> None:
        self.local_id = local_id
        self.remote_id = remote_id
        self.is_closed = False
        self._send = send
        self._max_payload_bytes = max_payload_bytes
        self._inbox: asyncio.Queue[Buffer | None] = asyncio.Queue()
        self._okay = asyncio.Event()
        self._said_close = False
        self._rest = memoryview(b"")

    async def accept(self) -> None:
        """Tell the host that the service is there."""
        self._okay.set()
        await self._send("OKAY", self.local_id, self.remote_id, b"")

    async def read(self) -> Buffer:
        """The next message, taken; ChannelClosed at the end, after all that the host has sent before."""
        if self.is_closed and self._inbox.empty():
            raise ChannelClosed
        data = await self._inbox.get()
        if data is None:
            raise ChannelClosed
        if not self.is_closed:
            await self._send("OKAY", self.local_id, self.remote_id, b"")
        return data

    async def read_some(self, most: int) -> memoryview:
        """Between 1 and ``most`` bytes."""
        while not self._rest:
            self._rest = memoryview(await self.read())
        some, self._rest = self._rest[:most], self._rest[most:]
        return some

    async def read_exactly(self, count: int) -> bytes:
        """``count`` bytes, whatever messages they came in."""
        parts = bytearray()
        while len(parts) < count:
            parts += await self.read_some(count - len(parts))
        return bytes(parts)

    async def write(self, data: Buffer) -> None:
        """Send all of it, a message at a time."""
        view = memoryview(data)
        for start in range(0, len(view), self._max_payload_bytes):
            await self._okay.wait()
            if self.is_closed:
                raise ChannelClosed
            self._okay.clear()
            part = view[start : start + self._max_payload_bytes]
            await self._send("WRTE", self.local_id, self.remote_id, part)

    async def close(self) -> None:
        """Say goodbye, once."""
        if not self._said_close:
            self._said_close = True
            await self._send("CLSE", self.local_id, self.remote_id, b"")

    def take(self, data: Buffer) -> None:
        """A message from the host."""
        self._inbox.put_nowait(data)

    def take_okay(self) -> None:
        """The host took our last message."""
        self._okay.set()

    def take_close(self) -> None:
        """The host goes: whatever waits, wakes."""
        self.is_closed = True
        self._inbox.put_nowait(None)
        self._okay.set()
