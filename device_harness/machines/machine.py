"""What a benchmark needs of the machine it runs on; `device.AdbDevice` and `host.Host` have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal, Protocol

from device_harness.adb.shell import ShellResult, StreamName
from device_harness.push.program import ProgramFiles
from device_harness.push.source import PushProgress, PushSource

MachineKind = Literal["tcp", "usb", "host"]


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
    """A shell with its files and processes, and the ways in which machines differ."""

    @property
    def serial(self) -> str:
        """What the machine is called: HOST:PORT, a USB serial number, or `host`."""

    @property
    def kind(self) -> MachineKind:
        """How it is reached."""

    @property
    def python(self) -> str:
        """The command that starts Python there."""

    @property
    def cache_folder(self) -> str:
        """A folder there for files that may be removed at any time."""

    @property
    def available(self) -> bool:
        """Whether commands can be sent now, as far as is known without sending one."""

    @property
    def has_second_connection(self) -> bool:
        """Whether two commands can run beside each other without waiting for each other's output."""

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        """Run a command to its end; DeviceTimeout after `timeout` seconds, when it is killed."""

    def stream_shell(self, command: str, *, timeout: float) -> RunningCommand:
        """Start a command that is killed after `timeout` seconds."""

    def second_connection(self) -> AbstractContextManager[Machine]:
        """The same machine for a command beside others, such as a sampler."""

    def recover(self, *, timeout: float) -> None:
        """Make commands possible again after a cut or an interrupt; DeviceFault after `timeout` seconds."""

    def place_files(self, source: PushSource, *, progress: PushProgress | None = None) -> str:
        """Bring files to the machine if they are not there; the folder there in which they then lie."""

    def place_program(self, files: ProgramFiles) -> str:
        """Bring a program and its libraries there, so that it can be run; the folder there in which they then lie."""
