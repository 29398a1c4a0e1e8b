"""Runs commands on the device; where it lacks shell v2, a marker in the output gives the exit code."""

from __future__ import annotations

import math
import secrets
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from device_harness.adb.connection import Connection, Stream
from device_harness.adb.faults import ConnectionLost, DeviceRefusal, DeviceTimeout, ProtocolFault
from device_harness.adb.payload import Payload, part_of
from device_harness.adb.wire import CLOSE_STDIN, EXIT, STDERR, STDIN, STDOUT, ShellParser, pack_shell_header

StreamName = Literal["stdout", "stderr"]

KILLED_EXIT_CODE = 137
"""128 + SIGKILL: the exit code after `timeout -s KILL`."""
_FAULTS = {132: "SIGILL", 134: "SIGABRT", 135: "SIGBUS", 136: "SIGFPE", 139: "SIGSEGV"}
"""The signals of a program that crashes, by the exit code that a shell gives them: 128 + Linux's number."""

MAX_OUTPUT_BYTES = 256 * 1024 * 1024
"""The most output of a command that is read as it arrives: more than hours of samples."""
MAX_RESULT_BYTES = 64 * 1024 * 1024
"""The most output of a command whose output is kept."""
_MOST_WORDS = 300
"""How many characters of a device's message an error quotes."""
_MOST_CODE_DIGITS = 5
_GRACE_S = 2.0
"""How many seconds we wait beyond the time limit that the command has on the device."""


def fault_signal(exit_code: int) -> str | None:
    """The signal with which a command crashed, if its exit code from a shell shows one.

    >>> fault_signal(134), fault_signal(KILLED_EXIT_CODE)
    ('SIGABRT', None)
    """
    return _FAULTS.get(exit_code)


@dataclass(frozen=True, slots=True)
class ShellResult:
    """A command's output; `stderr` is empty on devices with shell v1, which mix it into `stdout`."""

    stdout: str
    stderr: str
    exit_code: int

    def require(self, what: str) -> str:
        """Return `stdout`; DeviceRefusal with the last line of output if the exit code is not 0."""
        if self.exit_code:
            words = (self.stderr.strip() or self.stdout.strip()).splitlines()
            found = f"exit code {self.exit_code}" + (f": {words[-1][:_MOST_WORDS]}" if words else "")
            raise DeviceRefusal(what, found=found)
        return self.stdout


class ShellStream:
    """A running command: iterate over its output, then read `exit_code`. Leaving the context abandons it.

    An abandoned command gets a hangup on the device, and ends at the latest at its time limit there.
    """

    def __init__(self, link: Connection, command: str, *, timeout: float, most_bytes: int = MAX_OUTPUT_BYTES) -> None:
        """`timeout`: seconds after which the device kills the command. `most_bytes`: the limit of its output."""
        self._most_bytes = most_bytes
        self._bytes = 0
        self._what = f"{link.name} shell"
        self._deadline = time.monotonic() + timeout + _GRACE_S
        self._exit_code: int | None = None
        self._v2 = "shell_v2" in link.banner.features
        self._marker = f"exit-{secrets.token_hex(8)}:"
        limited = _limited(command, timeout, self._marker)
        v1 = f"( {limited}\n) 2>&1; echo {self._marker}$?"
        service = f"shell,v2,raw:{limited}" if self._v2 else f"shell:{v1}"
        self._stream = link.open(service, timeout=min(timeout, 30.0))

    def __enter__(self) -> ShellStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[tuple[StreamName, bytes]]:
        return self._packets_v2() if self._v2 else self._packets_v1()

    @property
    def exit_code(self) -> int:
        """The command's exit code, known once the iteration has ended."""
        if self._exit_code is None:
            raise ConnectionLost(self._what, found="no exit code at the end of the command's output")
        return self._exit_code

    def _packets_v2(self) -> Iterator[tuple[StreamName, bytes]]:
        parser = ShellParser()
        errors = _MarkerFilter(self._marker)
        while data := self._read():
            for packet in parser.feed(data):
                if packet.id == STDOUT:
                    yield "stdout", packet.data
                elif packet.id == STDERR and (text := errors.feed(packet.data)):
                    yield "stderr", text
                elif packet.id == EXIT and packet.data:
                    if text := errors.rest():
                        yield "stderr", text
                    self._exit_code = packet.data[0] if errors.code is None else errors.code
                    return

    def _packets_v1(self) -> Iterator[tuple[StreamName, bytes]]:
        output = _MarkerFilter(self._marker)
        while data := self._read():
            # On old devices the output passes through a terminal, which ends lines with CR LF.
            if text := output.feed(data).replace(b"\r\n", b"\n"):
                yield "stdout", text
        if text := output.rest():
            yield "stdout", text
        self._exit_code = output.code

    def _read(self) -> bytes:
        try:
            if not self._left():
                raise DeviceTimeout(self._what, found="the command still prints after its time limit")
            data = bytes(self._stream.read(timeout=self._left()))
        except DeviceTimeout as error:
            raise DeviceTimeout(
                self._what, found="the command does not end in time", remedy="allow it longer"
            ) from error
        self._bytes += len(data)
        _require_bounded(self._what, self._bytes, self._most_bytes)
        return data

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


class ExecStream:
    """A command's input and output in one stream, without its exit code.

    Uses shell v2, which connects the command to sockets; or, on devices that lack it, `exec:`, which connects it to a
    terminal that takes a few kB at once and cannot tell it that its input ends. A command that reads exactly the bytes
    it is sent, such as `head -c N >> FILE`, ends by itself.
    """

    def __init__(self, link: Connection, command: str, *, timeout: float) -> None:
        """`timeout`: the maximum number of seconds without progress."""
        self._what = f"{link.name} shell"
        self._timeout = timeout
        self._parser = ShellParser() if "shell_v2" in link.banner.features else None
        self._ended = False
        self._bytes = 0
        service = "exec" if self._parser is None else "shell,v2,raw"
        self._stream: Stream = link.open(f"{service}:{command}", timeout=timeout)

    def __enter__(self) -> ExecStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def has_input(self) -> bool:
        """Whether `read` would return at once, as far as messages have been received; `write` receives them too."""
        return self._ended or self._stream.has_input

    def write(self, data: Payload) -> bool:
        """Send all of `data`, receiving output meanwhile; return False if the command has ended."""
        if self._ended or (self._parser is not None and not self._send(pack_shell_header(STDIN, len(data)))):
            return False
        most = self._stream.max_write_bytes
        return all(self._send(part_of(data, start, most)) for start in range(0, len(data), most))

    def end_input(self) -> None:
        """Tell the command that its input ends; with `exec:`, only closing the stream does."""
        if self._parser is not None and not self._ended:
            self._send(pack_shell_header(CLOSE_STDIN, 0))

    def read(self) -> bytes:
        """The next piece of output; empty at its end. ConnectionLost if it ends although the command keeps running."""
        output = b""
        deadline = time.monotonic() + self._timeout
        while not output and not self._ended:
            data = bytes(self._stream.read(timeout=max(0.0, deadline - time.monotonic())))
            self._bytes += len(data)
            _require_bounded(self._what, self._bytes, MAX_RESULT_BYTES)
            if not data and self._parser is not None:
                raise ConnectionLost(self._what, found="no exit code at the end of the command's output")
            self._ended = not data
            output = data if self._parser is None else self._unpacked(self._parser, data)
        return output

    def _unpacked(self, parser: ShellParser, data: bytes) -> bytes:
        output = b""
        for packet in parser.feed(data):
            if packet.id in (STDOUT, STDERR):
                output += packet.data
            self._ended |= packet.id == EXIT
        return output

    def _send(self, data: Payload) -> bool:
        if not self._stream.drain(timeout=self._timeout):
            return False
        self._stream.write(data, timeout=self._timeout)
        return True


def run_shell(link: Connection, command: str, *, timeout: float) -> ShellResult:
    """Run a command to its end; DeviceTimeout if the device had to kill it."""
    parts: dict[StreamName, list[bytes]] = {"stdout": [], "stderr": []}
    started = time.monotonic()
    with ShellStream(link, command, timeout=timeout, most_bytes=MAX_RESULT_BYTES) as stream:
        for name, data in stream:
            parts[name].append(data)
        code = stream.exit_code
    require_in_time(f"{link.name} shell", code, time.monotonic() - started, timeout)
    stdout, stderr = (b"".join(parts[name]).decode("utf-8", "replace") for name in ("stdout", "stderr"))
    return ShellResult(stdout, stderr, code)


def require_in_time(what: str, code: int, seconds: float, limit: float) -> None:
    """DeviceTimeout if a command was killed after its limit in seconds; one killed before it lacked memory, say."""
    if code == KILLED_EXIT_CODE and seconds >= limit:
        raise DeviceTimeout(what, found=f"the command ran over {limit:g} s and was killed", remedy="allow it longer")


def _require_bounded(what: str, count: int, most: int) -> None:
    if count > most:
        raise ProtocolFault(what, found=f"over {most:,} bytes of output", wanted="less")


class _MarkerFilter:
    """Removes the marker lines with the exit code from output received in pieces; the first one counts."""

    def __init__(self, marker: str) -> None:
        self.code: int | None = None
        self._marker = marker.encode()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        text, self._held = self._held + data, b""
        shown = b""
        while (at := text.find(self._marker)) >= 0:
            line, newline, rest = text[at:].partition(b"\n")
            shown += text[:at]
            if not newline:
                self._held = line[: len(self._marker) + _MOST_CODE_DIGITS + 1]  # no exit code is longer
                return shown
            self._note(line)
            text = rest
        keep = _overlap(text, self._marker)
        self._held = text[len(text) - keep :]
        return shown + text[: len(text) - keep]

    def rest(self) -> bytes:
        """The text held back so far, if it turned out not to be a marker."""
        text, self._held = self._held, b""
        if not text.startswith(self._marker):
            return text
        self._note(text)
        return b""

    def _note(self, line: bytes) -> None:
        code = line.removeprefix(self._marker).strip()
        if self.code is None and code.isdigit() and len(code) <= _MOST_CODE_DIGITS:
            self.code = int(code)


def _overlap(text: bytes, marker: bytes) -> int:
    """How many bytes at the end of the text could be the start of the marker.

    >>> _overlap(b"so far so", b"some"), _overlap(b"so far", b"some")
    (2, 0)
    """
    return next((n for n in range(min(len(text), len(marker)), 0, -1) if marker.startswith(text[-n:])), 0)


def _limited(command: str, timeout: float, marker: str) -> str:
    """The command with a time limit on the device, where a command may continue if the client disconnects.

    The shell itself prints the exit code, because that of toybox 0.8.9's timeout is 127 for two of five commands that
    end at once. The trap also covers an `exit` in the command; after an `exec`, only timeout's code is left. The umask
    replaces adbd's own, which is 0: everybody could change the files that a command makes.
    """
    traced = f"umask 077; trap 'echo {marker}$? >&2' EXIT\n{command}"
    limited = f"timeout -s KILL {max(1, math.ceil(timeout))} sh -c {shlex.quote(traced)}"
    # The timeout of Android and of busybox kills that shell only, and leaves running what the shell has started.
    end = f"{{ echo {marker}{KILLED_EXIT_CODE} >&2; kill -KILL 0; }}"
    return f"{limited}; code=$?; [ $code != {KILLED_EXIT_CODE} ] || {end}; exit $code"
