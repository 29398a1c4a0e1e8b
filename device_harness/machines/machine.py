"""The interface of a machine to measure on; `device.AdbDevice` and `host.Host` implement it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from device_harness.adb.shell import ShellResult, StreamName
from device_harness.push.program import ProgramFiles
from device_harness.push.source import PushProgress, PushSource

MachineKind = Literal["tcp", "usb", "host"]


class RunningCommand(Protocol):
    """A running command: a context manager to iterate over; leaving it does not end the command on a device."""

    def __enter__(self) -> RunningCommand: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def __iter__(self) -> Iterator[tuple[StreamName, bytes]]: ...

    @property
    def exit_code(self) -> int: ...


class Dialogue(Protocol):
    """A running command that is written to and read from. Leaving the context ends its input, after which it ends."""

    def __enter__(self) -> Dialogue: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def write(self, data: bytes, /) -> bool:
        """Send all of `data`; return False if the command has ended."""

    def read(self) -> bytes:
        """The next piece of output, of both streams; empty at its end. DeviceTimeout after too long without output."""


class Machine(Protocol):
    """A machine with a shell, files and processes."""

    @property
    def serial(self) -> str:
        """The machine's name: HOST:PORT, a USB serial number, or `host`."""

    @property
    def kind(self) -> MachineKind:
        """How the machine is connected."""

    @property
    def python(self) -> str:
        """The command that starts Python on the machine."""

    @property
    def cache_folder(self) -> str:
        """A folder on the machine for files that may be removed at any time."""

    @property
    def available(self) -> bool:
        """Whether commands can be sent now, as far as is known without sending one."""

    @property
    def has_second_connection(self) -> bool:
        """Whether two commands can run at the same time without waiting for each other's output."""

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        """Run a command to its end; after `timeout` seconds it is killed, and DeviceTimeout raised."""

    def stream_shell(self, command: str, *, timeout: float) -> RunningCommand:
        """Start a command that is killed after `timeout` seconds."""

    def open_dialogue(self, command: str, *, silence: float) -> Dialogue:
        """Start a command to write to and read from; `silence`: seconds without output after which a read fails."""

    def second_connection(self) -> AbstractContextManager[Machine]:
        """The same machine over a second connection, for a command that runs alongside another, such as a sampler."""

    def recover(self, *, timeout: float) -> None:
        """Make commands possible again after a lost connection or an interrupt; DeviceFault after `timeout` seconds."""

    def place_files(self, source: PushSource, *, progress: PushProgress | None = None) -> str:
        """Copy files to the machine unless it has them; return their folder on the machine."""

    def fetch_file(self, path: str, target: Path, *, most_bytes: int) -> int:
        """Copy a file of at most `most_bytes` from the machine to this computer; return its size in bytes."""

    def place_program(self, files: ProgramFiles) -> str:
        """Copy a program and its libraries to the machine, ready to run; return their folder on the machine."""
