"""`tcp:` and `reverse:` of the emulated device: streams to its ports, and its ports that lead to the host.

Its ports are this computer's, on 127.0.0.1. Source: AOSP `adb.cpp` (handle_forward_request), `adb_listeners.cpp`.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from device_harness.emulator.channel import Channel, ChannelClosed
from device_harness.emulator.pipe import Piped

_LOCAL = "127.0.0.1"
_READ_BYTES = 256 * 1024
_TCP = re.compile(r"tcp:(\d{1,5})", re.ASCII)

OpenToHost = Callable[[str], Awaitable[Channel]]


def parse_port(spec: str) -> int | None:
    """The port in `tcp:PORT`; None for any other.

    >>> parse_port("tcp:5566"), parse_port("tcp:99999"), parse_port("localabstract:x")
    (5566, None, None)
    """
    match = _TCP.fullmatch(spec)
    return int(match[1]) if match is not None and int(match[1]) < 65536 else None


class Forwards:
    """The ports of one connection's device that lead to its host."""

    def __init__(self, open_to_host: OpenToHost) -> None:
        self._open_to_host = open_to_host
        self._targets: dict[int, str] = {}
        self._accepting: dict[int, asyncio.Task[None]] = {}
        self._relays: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """End all of them, and what goes through them."""
        for port in list(self._targets):
            self._remove(port)
        for relay in self._relays:
            relay.cancel()

    async def connect(self, port: int) -> socket.socket:
        """A socket to a port of the device; OSError if nothing listens there."""
        if port in self._targets:
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self._start(theirs, self._targets[port])
        else:
            ours = socket.socket()
            ours.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(ours, (_LOCAL, port))
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    async def serve(self, channel: Channel, request: str) -> None:
        """Answer one request, such as `forward:tcp:5566;tcp:6655`."""
        verb, _, rest = request.partition(":")
        if verb == "list-forward":
            lines = "".join(f"host-1 tcp:{port} {target}\n" for port, target in sorted(self._targets.items()))
            await channel.write(_text(lines))
        elif verb == "killforward-all":
            for port in list(self._targets):
                self._remove(port)
            await channel.write(b"OKAY")
        elif verb == "killforward":
            known = parse_port(rest) in self._targets
            if known:
                self._remove(parse_port(rest) or 0)
            await channel.write(b"OKAY" if known else b"FAIL" + _text(f"listener '{rest}' not found"))
        elif verb == "forward":
            await channel.write(self._add(rest))
        else:
            await channel.write(b"FAIL" + _text(f"bad forward: {request}"))

    def _add(self, request: str) -> bytes:
        may_rebind = not request.startswith("norebind:")
        spec, _, target = request.removeprefix("norebind:").partition(";")
        port = parse_port(spec)
        if port is None or not target or target.startswith("*"):
            return b"FAIL" + _text(f"the emulated device forwards from tcp:PORT, not {spec!r}")
        if port in self._targets:
            if not may_rebind:
                return b"FAIL" + _text(f"cannot rebind existing socket {spec}")
            self._targets[port] = target
            return b"OKAY"
        try:
            bound = self._listen(port)
        except OSError as error:
            return b"FAIL" + _text(f"cannot bind listener: {error.strerror}")
        self._targets[bound] = target
        return b"OKAY" + (_text(str(bound)) if not port else b"")

    def _listen(self, port: int) -> int:
        """Listen for the device's programs; return the port. If it is in use here, only `tcp:` reaches it."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_LOCAL, port))
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                return port
            raise
        listener.listen()
        listener.setblocking(False)
        bound = int(listener.getsockname()[1])
        self._accepting[bound] = asyncio.ensure_future(self._accept(listener, bound))
        return bound

    async def _accept(self, listener: socket.socket, port: int) -> None:
        with listener:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                sock.setblocking(False)
                self._start(sock, self._targets[port])

    def _start(self, sock: socket.socket, target: str) -> None:
        async def run() -> None:
            with sock, suppress(ChannelClosed, OSError):  # the host refuses the stream, or has gone
                await relay(await self._open_to_host(target), sock)

        task = asyncio.ensure_future(run())
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)

    def _remove(self, port: int) -> None:
        self._targets.pop(port, None)
        accepting = self._accepting.pop(port, None)
        if accepting is not None:
            accepting.cancel()


async def relay(channel: Channel, sock: socket.socket) -> None:
    """Pass bytes on in both directions until one side ends; what has been sent by then still arrives."""
    loop = asyncio.get_running_loop()

    async def outward() -> None:
        with suppress(ChannelClosed, OSError):
            while data := await loop.sock_recv(sock, _READ_BYTES):
                await channel.write(data)

    async def inward() -> None:
        with suppress(ChannelClosed, OSError):
            while True:
                data = await channel.read()
                if isinstance(data, Piped):
                    await data.send(sock)
                else:
                    await loop.sock_sendall(sock, data)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    tasks = [asyncio.ensure_future(outward()), asyncio.ensure_future(inward())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(OSError):
            await channel.close()
        channel.end()


def _text(text: str) -> bytes:
    """A text as adb's services send it: its length in four hexadecimal digits before it."""
    data = text.encode()
    return b"%04x" % len(data) + data
