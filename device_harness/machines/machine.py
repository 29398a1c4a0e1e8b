"""Where a benchmark runs: a device over adb (``transport.Transport`` is one as it is), or this computer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

from device_harness.adb.faults import DeviceFault, DeviceTimeout
from device_harness.adb.shell import KILLED_EXIT_CODE, ShellResult, StreamName

_BLOCK_BYTES = 65536


class RunningCommand(Protocol):
    """A command that runs: a context to iterate over; leaving it does not end the command on a device."""

    def __enter__(self) -> RunningCommand: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def __iter__(self) -> Iterator[tuple[StreamName, bytes]]: ...

    @property
    def exit_code(self) -> int: ...


class Machine(Protocol):
    """A shell, with its files and processes."""

    @property
    def serial(self) -> str: ...

    @property
    def kind(self) -> str:
        """``tcp``, ``usb`` or ``host``."""

    def shell(self, command: str, *, timeout: float) -> ShellResult: ...

    def stream_shell(self, command: str, *, timeout: float) -> RunningCommand: ...


class Host:
    """This computer, by the same commands that a device gets."""

    serial = "host"
    kind = "host"

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        """DeviceTimeout after ``timeout`` seconds; the command is killed then, as on a device."""
        with self.stream_shell(command, timeout=timeout) as running:
            parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
            for name, data in running:
                parts[name].append(data)
            stdout, stderr = (b"".join(parts[name]).decode("utf-8", "replace") for name in ("stdout", "stderr"))
            if running.exit_code == KILLED_EXIT_CODE:
                found = "a command that does not end"
                raise DeviceTimeout("host shell", found=found, wanted="an end in time", remedy="allow it longer")
            return ShellResult(stdout, stderr, running.exit_code)

    def stream_shell(self, command: str, *, timeout: float) -> HostCommand:
        """Standard error is part of standard output, so that lines stay in order."""
        return HostCommand(command, timeout)


class HostCommand:
    """A command of this computer in a process group of its own: Ctrl-C reaches us, and we end it."""

    def __init__(self, command: str, timeout: float) -> None:
        argv = ["timeout", "-s", "KILL", str(timeout), "sh", "-c", command]
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceFault("host shell", found=error.strerror, wanted="timeout and sh") from error

    def __enter__(self) -> HostCommand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def __iter__(self) -> Iterator[tuple[StreamName, bytes]]:
        assert self._process.stdout is not None
        while data := self._process.stdout.read1(_BLOCK_BYTES):  # type: ignore[attr-defined]
            yield "stdout", data

    @property
    def exit_code(self) -> int:
        """Waits for the end."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code
