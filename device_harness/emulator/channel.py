"""A stream of an adb connection on the device's side: flow control, and a service's reads and writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from device_harness.adb.payload import Buffer
from device_harness.adb.wire import pack_taken, parse_taken
from device_harness.emulator.pipe import Pipe, Piped, at_hand

Send = Callable[[str, int, int, Buffer], Awaitable[None]]


WINDOW_BYTES = 32 * 1024 * 1024
"""What a host that counts bytes may have in flight: INITIAL_DELAYED_ACK_BYTES of AOSP's adb.h."""


class ChannelClosed(Exception):
    """The host has closed the stream."""


class Channel:
    """A stream of the emulated device; each side may have only one unacknowledged message, or a window of bytes.

    As AOSP's adbd does, it acknowledges each part of a message that was passed on.
    """

    def __init__(
        self, send: Send, local_id: int, remote_id: int, max_payload_bytes: int, *, window_bytes: int | None = None
    ) -> None:
        """`window_bytes`: how many bytes the host lets us send ahead; None: it does not count bytes (`DELAYED_ACK`)."""
        self.local_id = local_id
        self.remote_id = remote_id
        self.is_closed = False
        self._send = send
        self._max_payload_bytes = max_payload_bytes
        self._counts_bytes = window_bytes is not None
        self._room = window_bytes or 0
        self._inbox: asyncio.Queue[Buffer | Piped | None] = asyncio.Queue()
        self._pipe: Pipe | None = None
        self._okay = asyncio.Event()
        self._writing = asyncio.Lock()
        self._said_close = False
        self._rest: memoryview | Piped = memoryview(b"")

    async def accept(self) -> None:
        """Tell the host that the service is running."""
        self._okay.set()
        await self._acknowledge(WINDOW_BYTES)

    async def read(self) -> Buffer | Piped:
        """Take the next message or part of one; ChannelClosed at the end, after all that the host has sent before."""
        if self.is_closed and self._inbox.empty():
            raise ChannelClosed
        item = await self._inbox.get()
        if item is None:
            raise ChannelClosed
        if not self.is_closed:
            await self._acknowledge(len(item))
        return item

    async def read_some(self, most: int) -> memoryview | Piped:
        """Read between 1 and `most` bytes."""
        while not self._rest:
            data = await self.read()
            self._rest = data if isinstance(data, Piped) else memoryview(data)
        if isinstance(self._rest, Piped):
            return self._rest.split(most)
        some, self._rest = self._rest[:most], self._rest[most:]
        return some

    async def read_exactly(self, count: int) -> bytes:
        """Read `count` bytes, from as many messages as needed."""
        parts = bytearray()
        while len(parts) < count:
            parts += at_hand(await self.read_some(count - len(parts)))
        return bytes(parts)

    async def write(self, data: Buffer) -> None:
        """Send all of it, message by message, and let other writers wait: a program's output and errors are two."""
        view = memoryview(data)
        async with self._writing:
            for start in range(0, len(view), self._max_payload_bytes):
                await self._okay.wait()
                if self.is_closed:
                    raise ChannelClosed
                part = view[start : start + self._max_payload_bytes]
                self._room -= len(part)
                if not self._counts_bytes or self._room <= 0:
                    self._okay.clear()
                await self._send("WRTE", self.local_id, self.remote_id, part)

    async def close(self) -> None:
        """Send the closing message, once."""
        if not self._said_close:
            self._said_close = True
            await self._send("CLSE", self.local_id, self.remote_id, b"")

    def take(self, data: Buffer | Piped) -> None:
        """A message from the host, or a part of one."""
        self._inbox.put_nowait(data)

    def open_pipe(self) -> Pipe:
        """The pipe in which messages may stay until they are read; created on first use."""
        if self._pipe is None:
            self._pipe = Pipe()
        return self._pipe

    def end(self) -> None:
        """Stop taking data from the host."""
        if self._pipe is not None:
            self._pipe.close()

    def take_okay(self, payload: Buffer = b"") -> None:
        """Note that the host has taken our last message, or how many bytes."""
        if self._counts_bytes:
            self._room += parse_taken(payload)
        if not self._counts_bytes or self._room > 0:
            self._okay.set()

    async def _acknowledge(self, count: int) -> None:
        await self._send("OKAY", self.local_id, self.remote_id, pack_taken(count) if self._counts_bytes else b"")

    def take_close(self) -> None:
        """Take the host's closing message, and wake whatever waits for it."""
        self.is_closed = True
        self._inbox.put_nowait(None)
        self._okay.set()
