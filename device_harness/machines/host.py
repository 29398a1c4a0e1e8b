"""This computer as a `Machine` to measure on, with the same commands as a device."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

from device_harness.adb.faults import DeviceFault, DeviceTimeout
from device_harness.adb.shell import ShellResult, StreamName, require_in_time
from device_harness.machines.machine import Machine, MachineKind
from device_harness.push.program import ProgramFiles
from device_harness.push.source import PushProgress, PushSource
from toolkit.base.errors import EnvironmentFault, UsageError, system_reason
from toolkit.runtime.weight_cache import default_directory

_BLOCK_BYTES = 65536
_END_S = 10.0
"""How long a command may take to end after the end of its input."""


class Host:
    """This computer; files stay where they are, and there is no connection that could be lost or be busy."""

    serial = "host"
    kind: MachineKind = "host"
    python = sys.executable
    available = True
    has_second_connection = True

    @property
    def cache_folder(self) -> str:
        return str(default_directory())

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        """Run a command to its end; after `timeout` seconds it is killed, and DeviceTimeout raised, as on a device."""
        started = time.monotonic()
        with self.stream_shell(command, timeout=timeout) as running:
            parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
            for name, data in running:
                parts[name].append(data)
            stdout, stderr = (b"".join(parts[name]).decode("utf-8", "replace") for name in ("stdout", "stderr"))
            require_in_time("host shell", running.exit_code, time.monotonic() - started, timeout)
            return ShellResult(stdout, stderr, running.exit_code)

    def stream_shell(self, command: str, *, timeout: float) -> HostCommand:
        """Start a command; its standard error is part of standard output, so that lines stay in order."""
        return HostCommand(command, timeout)

    def open_dialogue(self, command: str, *, silence: float) -> HostDialogue:
        return HostDialogue(command, silence)

    def second_connection(self) -> AbstractContextManager[Machine]:
        return nullcontext(self)

    def recover(self, *, timeout: float) -> None:
        """Does nothing, because there is no connection."""

    def place_files(self, source: PushSource, *, progress: PushProgress | None = None) -> str:
        """Return the folder of the files, which stay where they are."""
        return str(source.files[0].path.parent.resolve())

    def fetch_file(self, path: str, target: Path, *, most_bytes: int) -> int:
        """DeviceFault if the file cannot be read, or is larger."""
        try:
            size = os.stat(path).st_size
            if size > most_bytes:
                raise DeviceFault(path, found=f"{size:,} bytes", wanted=f"at most {most_bytes:,}")
            shutil.copyfile(path, target)
        except OSError as error:
            raise DeviceFault(path, found=system_reason(error)) from error
        return size

    def place_program(self, files: ProgramFiles) -> str:
        """Return the program's own folder; UsageError if the program is not executable."""
        program = files.program
        if not os.access(program, os.X_OK):
            raise UsageError(file=program, found="no permission to execute it", remedy="chmod +x")
        return str(program.parent.resolve())


def require_measurable() -> None:
    """EnvironmentFault unless this computer reports what is measured: times, memory and processors, in /proc."""
    if not os.path.exists("/proc/uptime"):
        remedy = "measure a device instead, or use gemma-edge run --json, which reports the speed of one answer"
        raise EnvironmentFault(
            "host", found="no /proc: nothing is measured on this system", wanted="Linux", remedy=remedy
        )


class HostCommand:
    """A command on this computer, in its own process group: Ctrl-C reaches only us, and we end the command."""

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
            raise DeviceFault(
                "host shell", found=f"timeout and sh cannot be started ({system_reason(error)})"
            ) from error

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
        """The exit code; waits for the command to end."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code


class HostDialogue:
    """A command on this computer to write to and read from, in its own process group."""

    def __init__(self, command: str, silence: float) -> None:
        self._silence = silence
        try:
            self._process = subprocess.Popen(
                ["sh", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise DeviceFault("host shell", found=f"sh cannot be started ({system_reason(error)})") from error

    def __enter__(self) -> HostDialogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def write(self, data: bytes) -> bool:
        assert self._process.stdin is not None
        left = memoryview(data)
        try:
            while left:
                left = left[self._process.stdin.write(left) :]
        except BrokenPipeError:
            return False
        return True

    def read(self) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._silence)
        if not ready:
            raise DeviceTimeout("host shell", found=f"no output for {self._silence:g} s")
        return os.read(self._process.stdout.fileno(), _BLOCK_BYTES)
