"""`shell:` (v1), `shell,v2:` and `exec:` of the emulated device."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from device_harness.adb.faults import ProtocolFault
from device_harness.adb.payload import Buffer
from device_harness.adb.wire import (
    CLOSE_STDIN,
    EXIT,
    MAX_PAYLOAD_BYTES,
    SHELL_HEADER_BYTES,
    STDERR,
    STDIN,
    STDOUT,
    pack_shell,
    parse_shell_header,
)
from device_harness.emulator.channel import Channel
from device_harness.emulator.pipe import Piped, at_hand
from device_harness.emulator.store import Store
from device_harness.emulator.userland import Userland

_READ_BYTES = 256 * 1024
_INPUT_BYTES = 1024 * 1024
"""What a program has not read yet: about a message, so that none waits for another; the kernel may allow less."""
_MOST_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ShellRequest:
    """A parsed service name."""

    command: str
    is_v2: bool
    is_raw: bool
    """`exec:`: output is passed on untouched."""


def parse_shell_service(service: str) -> ShellRequest | None:
    """None for any other service.

    >>> parse_shell_service("shell,v2,TERM=xterm,raw:ls -l")
    ShellRequest(command='ls -l', is_v2=True, is_raw=False)
    """
    head, colon, command = service.partition(":")
    name, *options = head.split(",")
    if not colon or name not in ("shell", "exec"):
        return None
    return ShellRequest(command, is_v2=name == "shell" and "v2" in options, is_raw=name == "exec")


async def serve_shell(channel: Channel, request: ShellRequest, userland: Userland, store: Store) -> None:
    """Run a command to the end of its output. A host that leaves does not end it, as on a real device."""
    if store.limit_bytes is not None:
        userland.show_storage(store.limit_bytes, store.stored_bytes())
    run = _Command(channel, request, userland, store)
    try:
        await run.serve()
    finally:
        run.close()


class _Command:
    """A process whose standard streams are sockets, as adbd's are."""

    def __init__(self, channel: Channel, request: ShellRequest, userland: Userland, store: Store) -> None:
        self._channel = channel
        self._request = request
        self._store = store
        self._prefix = b"" if request.is_raw else userland.output_prefix
        self._main, theirs = socket.socketpair()
        self._errors, their_errors = socket.socketpair()
        program = userland.program(request.command)
        with theirs, their_errors:
            self._process = subprocess.Popen(
                program.argv,
                env=dict(program.environment),
                cwd=userland.root,
                pass_fds=program.fds,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=their_errors.fileno() if request.is_v2 else theirs.fileno(),
                start_new_session=True,
            )
        for end in (self._main, self._errors):
            end.setblocking(False)
        self._main.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _INPUT_BYTES)
        self._refusal = b""
        self._packet_left = 0

    async def serve(self) -> None:
        """Until the output ends, or the host leaves: a command goes on then, with what it was sent."""
        feeder = asyncio.ensure_future(self._feed())
        speaker = asyncio.ensure_future(self._speak())
        try:
            await asyncio.wait({feeder, speaker}, return_when=asyncio.FIRST_COMPLETED)
            fault = feeder.exception() if feeder.done() else None
            if isinstance(fault, ProtocolFault):
                raise fault
            if not speaker.done() and not self._channel.is_closed:
                await asyncio.wait({speaker})
        finally:
            feeder.cancel()
            speaker.cancel()
            await asyncio.gather(feeder, speaker, return_exceptions=True)

    async def _speak(self) -> None:
        await asyncio.gather(self._pass_on(self._main, STDOUT), self._pass_on(self._errors, STDERR))
        await self._say(STDERR, self._refusal)
        code = await self._exit_code()
        if self._request.is_v2:
            await self._channel.write(pack_shell(EXIT, bytes([code & 0xFF])))

    def close(self) -> None:
        self._main.close()
        self._errors.close()

    async def _pass_on(self, end: socket.socket, id_: int) -> None:
        loop = asyncio.get_running_loop()
        paths = _PathFilter(self._prefix)
        while True:
            try:
                data = await loop.sock_recv(end, _READ_BYTES)
            except OSError:
                data = b""
            await self._say(id_, paths.feed(data) if data else paths.rest())
            if not data:
                return

    async def _say(self, id_: int, text: bytes) -> None:
        """A v1 stream has its errors among its output."""
        if text:
            await self._channel.write(pack_shell(id_, text) if self._request.is_v2 else text)

    async def _feed(self) -> None:
        """From the host to the command's input, which is where files are written from: the disk may be full."""
        room = self._store.room()
        written = 0
        while True:
            piece = await self._next_input()
            try:
                stored = self._store.admit(piece, room, written)
            except OSError as error:
                at_hand(piece)  # what is not stored must not stand before what comes next
                self._fail(error)
                return
            written += len(stored)
            await self._put(stored)

    async def _next_input(self) -> Buffer | Piped:
        """What comes in for the command; the packets of shell v2 may be longer than a message."""
        while self._request.is_v2 and not self._packet_left:
            id_, length = parse_shell_header(await self._channel.read_exactly(SHELL_HEADER_BYTES))
            if id_ == STDIN:
                self._packet_left = length
                continue
            if length > MAX_PAYLOAD_BYTES:
                raise ProtocolFault("shell v2 packet", found=f"id {id_}, {length} bytes", wanted="fewer")
            await self._channel.read_exactly(length)
            if id_ == CLOSE_STDIN:
                self._main.shutdown(socket.SHUT_WR)
        if not self._request.is_v2:
            return await self._channel.read()
        piece = await self._channel.read_some(self._packet_left)
        self._packet_left -= len(piece)
        return piece

    async def _put(self, data: Buffer | Piped) -> None:
        try:
            if isinstance(data, Piped):
                await data.send(self._main)
            else:
                await asyncio.get_running_loop().sock_sendall(self._main, data)
        except (BrokenPipeError, ConnectionResetError):
            at_hand(data)  # what no program reads must not stand before what comes next

    def _fail(self, error: OSError) -> None:
        """What a program says when its write fails; it could not go on."""
        self._refusal = f"write error: {error.strerror}\n".encode()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)

    async def _exit_code(self) -> int:
        pause = 0.001
        while self._process.poll() is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MOST_POLL_S)
        code = self._process.returncode
        return 1 if self._refusal else code if code >= 0 else 128 - code


class _PathFilter:
    """Takes the folder's name out of output, so that paths read as the device's, wherever the output was cut."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if not self._prefix:
            return data
        text = self._held + data
        # What may go on in the next piece: the start of the prefix, or all of it with its slash still to come.
        most = min(len(self._prefix), len(text))
        keep = next((n for n in range(most, 0, -1) if self._prefix.startswith(text[-n:])), 0)
        if text[: len(text) - keep].endswith(self._prefix):
            keep += len(self._prefix)
        self._held = text[len(text) - keep :]
        return self._shown(text[: len(text) - keep])

    def rest(self) -> bytes:
        rest, self._held = self._held, b""
        return self._shown(rest) if self._prefix else rest

    def _shown(self, text: bytes) -> bytes:
        return text.replace(self._prefix + b"/", b"/").replace(self._prefix, b"/")
