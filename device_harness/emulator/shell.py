"""`shell:` (v1), `shell,v2:` and `exec:` of the emulated device."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

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
    WINDOW_SIZE,
    pack_shell,
    parse_shell_header,
)
from device_harness.emulator.channel import Channel
from device_harness.emulator.ends import End, SocketEnd, TerminalEnd
from device_harness.emulator.pipe import Piped, at_hand
from device_harness.emulator.store import Store
from device_harness.emulator.userland import Userland

_MOST_POLL_S = 0.05
_SETSID = "/usr/bin/setsid"
"""The one of util-linux, which makes its standard input the controlling terminal."""


@dataclass(frozen=True, slots=True)
class ShellRequest:
    """A parsed service name."""

    command: str
    is_v2: bool
    is_exec: bool
    """`exec:`: output is passed on untouched."""
    terminal: Literal["raw", "cooked"] | None
    """The command's terminal; None: sockets, which only shell v2 can give it."""
    term: str = "dumb"
    """The TERM that the host asks for."""


def parse_shell_service(service: str) -> ShellRequest | None:
    """Parse a shell service; None for any other. A shell without a command gets a terminal, as does every v1 command.

    >>> parse_shell_service("shell,v2,TERM=xterm,raw:ls -l")
    ShellRequest(command='ls -l', is_v2=True, is_exec=False, terminal=None, term='xterm')
    """
    head, colon, command = service.partition(":")
    name, *options = head.split(",")
    if not colon or name not in ("shell", "exec"):
        return None
    is_v2 = name == "shell" and "v2" in options
    is_interactive = name == "shell" and ("pty" in options or (not command and "raw" not in options))
    terminal: Literal["raw", "cooked"] | None = "cooked" if is_interactive else None if is_v2 else "raw"
    terms = [option.removeprefix("TERM=") for option in options if option.startswith("TERM=")]
    return ShellRequest(command, is_v2, name == "exec", terminal, *terms[:1])


async def serve_shell(channel: Channel, request: ShellRequest, userland: Userland, store: Store) -> None:
    """Run a command to the end of its output, or until the host leaves."""
    if store.limit_bytes is not None:
        userland.show_storage(store.limit_bytes, store.stored_bytes())
    run = _Command(channel, request, userland, store)
    try:
        await run.serve()
    finally:
        run.close()


class _Command:
    """A process with a terminal, or with sockets as its standard streams."""

    def __init__(self, channel: Channel, request: ShellRequest, userland: Userland, store: Store) -> None:
        self._channel = channel
        self._request = request
        self._store = store
        self._prefix = b"" if request.is_exec else userland.output_prefix
        self._errors: SocketEnd | None = None
        self._terminal: TerminalEnd | None = None
        program = userland.program(request.command)
        environment, argv = dict(program.environment), program.argv
        if request.terminal is None:
            main, self._errors = SocketEnd(), SocketEnd()
            self._main: End = main
            theirs, their_errors = main.theirs.detach(), self._errors.theirs.detach()
        else:
            self._main = self._terminal = TerminalEnd(is_raw=request.terminal == "raw")
            theirs = their_errors = self._terminal.theirs
            environment["TERM"] = request.term
            argv = (_SETSID, "--ctty", *argv)
        try:
            self._process = subprocess.Popen(
                argv,
                env=environment,
                cwd=userland.root,
                pass_fds=program.fds,
                stdin=theirs,
                stdout=theirs,
                stderr=their_errors,
                start_new_session=self._terminal is None,
                umask=0,  # as adbd's
            )
        finally:
            for file in {theirs, their_errors}:
                os.close(file)
        self._refusal = b""
        self._packet_left = 0
        self._was_fed = False

    async def serve(self) -> None:
        """Run until the output ends, or the host leaves."""
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
        passing = [self._pass_on(self._main, STDOUT)]
        if self._errors is not None:
            passing.append(self._pass_on(self._errors, STDERR))
        await asyncio.gather(*passing)
        await self._say(STDERR, self._refusal)
        code = await self._exit_code()
        if self._request.is_v2:
            await self._channel.write(pack_shell(EXIT, bytes([code & 0xFF])))

    def close(self) -> None:
        """As adbd does: hang up on a command of shell v2; one of v1 continues, unless the host has sent it input."""
        ends = [self._main, *([self._errors] if self._errors is not None else [])]
        is_running = self._process.poll() is None
        if is_running and self._request.is_v2:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGHUP)
        if is_running and not self._request.is_v2 and self._was_fed and self._terminal is not None:
            self._terminal.hang_up(lambda: self._process.poll() is None)
            return
        for end in ends:
            # A shell that prints a message at its end must not be killed by that before its traps have run.
            if is_running:
                end.linger()
            else:
                end.close()

    async def _pass_on(self, end: End, id_: int) -> None:
        paths = _PathFilter(self._prefix)
        while True:
            data = await end.read()
            await self._say(id_, paths.feed(data) if data else paths.rest())
            if not data:
                return

    async def _say(self, id_: int, text: bytes) -> None:
        """Send output of the command; a v1 stream has its errors among its output."""
        if text:
            await self._channel.write(pack_shell(id_, text) if self._request.is_v2 else text)

    async def _feed(self) -> None:
        """Pass the host's input to the command, which may write it to a file: the disk may be full."""
        room = self._store.room()
        written = 0
        while True:
            piece = await self._next_input()
            try:
                stored = self._store.admit(piece, room, written)
            except OSError as error:
                at_hand(piece)  # input that is not stored must not stay in front of later input
                self._fail(error)
                return
            written += len(stored)
            self._was_fed = True
            await self._main.put(stored)

    async def _next_input(self) -> Buffer | Piped:
        """The next input for the command; packets of shell v2 may be longer than a message."""
        while self._request.is_v2 and not self._packet_left:
            id_, length = parse_shell_header(await self._channel.read_exactly(SHELL_HEADER_BYTES))
            if id_ == STDIN:
                self._packet_left = length
                continue
            if length > MAX_PAYLOAD_BYTES:
                raise ProtocolFault("shell v2 packet", found=f"id {id_}, {length} bytes", wanted="fewer")
            data = await self._channel.read_exactly(length)
            if id_ == CLOSE_STDIN:
                self._main.end_input()
            elif id_ == WINDOW_SIZE and self._terminal is not None:
                self._terminal.resize(data)
        if not self._request.is_v2:
            return await self._channel.read()
        piece = await self._channel.read_some(self._packet_left)
        self._packet_left -= len(piece)
        return piece

    def _fail(self, error: OSError) -> None:
        """Kill the command, with the message of a program whose write fails; it could not continue."""
        self._refusal = f"write error: {error.strerror}\n".encode()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _exit_code(self) -> int:
        pause = 0.001
        while self._process.poll() is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MOST_POLL_S)
        code = self._process.returncode
        return 1 if self._refusal else code if code >= 0 else 128 - code


class _PathFilter:
    """Removes the folder's path from output, so that paths look like the device's, wherever a piece of output ends."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if not self._prefix:
            return data
        text = self._held + data
        # What may continue in the next piece: the start of the prefix, or all of it with its slash still to come.
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
