"""A device over adb as a `Machine` to measure on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from device_harness.adb.devices import connect
from device_harness.adb.faults import DeviceFault
from device_harness.adb.shell import ShellResult, ShellStream
from device_harness.adb.transport import Transport
from device_harness.machines.machine import Machine, MachineKind
from device_harness.push.program import ProgramFiles, push_program
from device_harness.push.push import DEFAULT_FOLDER, default_target, push_source
from device_harness.push.receiver import place_receiver
from device_harness.push.source import PushProgress, PushSource


class AdbDevice:
    """A connected device; files are pushed to it, and its connection may be lost."""

    python = "python3"
    cache_folder = DEFAULT_FOLDER

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def serial(self) -> str:
        return self._transport.serial

    @property
    def kind(self) -> MachineKind:
        return self._transport.kind

    @property
    def available(self) -> bool:
        return self._transport.available

    @property
    def has_second_connection(self) -> bool:
        """False over USB without adb's server, because a cable carries one connection."""
        return self._transport.has_second_connection

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        return self._transport.shell(command, timeout=timeout)

    def stream_shell(self, command: str, *, timeout: float) -> ShellStream:
        return self._transport.stream_shell(command, timeout=timeout)

    def open_dialogue(self, command: str, *, silence: float) -> DeviceDialogue:
        return DeviceDialogue(self._transport, command, silence)

    @contextmanager
    def second_connection(self) -> Iterator[Machine]:
        with self._transport.another() as other:
            yield AdbDevice(other)

    def recover(self, *, timeout: float) -> None:
        """Connect again, because the old connection may be in the middle of a message."""
        self._transport.reconnect(timeout=timeout)

    def place_files(self, source: PushSource, *, progress: PushProgress | None = None) -> str:
        """Push the files that differ from those on the device; return their folder there."""
        target = default_target(source)
        receiver = place_receiver(self._transport, "auto")
        push_source(self._transport, source, target=target, receiver=receiver, progress=progress)
        return target

    def fetch_file(self, path: str, target: Path, *, most_bytes: int) -> int:
        return self._transport.pull_file(path, target, most_bytes=most_bytes)

    def place_program(self, files: ProgramFiles) -> str:
        """Push the files that are missing, to a folder named after their hashes; return that folder."""
        return push_program(self._transport, files, place_receiver(self._transport, "auto"))


class DeviceDialogue:
    """A command on a device to write to and read from; the connection may be lost in the middle of it."""

    def __init__(self, transport: Transport, command: str, silence: float) -> None:
        self._stream = transport.stream_exec(f"{{ {command}\n}} 2>&1", timeout=silence)

    def __enter__(self) -> DeviceDialogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream, suppress(DeviceFault):
            self._stream.end_input()

    def write(self, data: bytes) -> bool:
        return self._stream.write(data)

    def read(self) -> bytes:
        return self._stream.read()


@contextmanager
def connected_device(name: str | None = None) -> Iterator[AdbDevice]:
    """Connect to the device `name` (None: ANDROID_SERIAL, else the only one) for the duration of the context."""
    with connect(name) as transport:
        yield AdbDevice(transport)
