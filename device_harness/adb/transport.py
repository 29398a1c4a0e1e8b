"""A device over adb: commands, files and raw streams, each with a timeout; every failure is a fault with a remedy.

`device_harness.adb.devices.connect` makes a `Transport`. Paths on the device are absolute, and their names consist of
`[A-Za-z0-9._-]`: adb joins a command's arguments into one line for a shell, which could interpret other characters.
"""

from __future__ import annotations

import io
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from device_harness.adb.connection import STALL_S, Connection
from device_harness.adb.faults import (
    ConnectionLost,
    DeviceFault,
    DeviceRefusal,
    DeviceTimeout,
    ProtocolFault,
    ServiceRefused,
    Unauthorized,
)
from device_harness.adb.port import Signer
from device_harness.adb.shell import ExecStream, ShellResult, ShellStream, run_shell
from device_harness.adb.sync import SyncSession, size_of
from device_harness.adb.wire import Banner
from toolkit.base.errors import UsageError
from toolkit.base.files import Progress

__all__ = [
    "Banner",
    "ConnectionLost",
    "DeviceFault",
    "DeviceRefusal",
    "DeviceTimeout",
    "Endpoint",
    "ExecStream",
    "ProtocolFault",
    "ServiceRefused",
    "ShellResult",
    "ShellStream",
    "Transport",
    "Unauthorized",
    "quote",
    "remote_path",
]

_COMPONENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_CONNECT_S = 10.0


def remote_path(folder: str, *names: str) -> str:
    """Join `folder` (absolute) and names below it; UsageError for characters that need quoting, and for `..`.

    >>> remote_path("/data/local/tmp", "bundle", "manifest.json")
    '/data/local/tmp/bundle/manifest.json'
    """
    parts = folder.split("/")
    for part in [*parts[1:], *names]:
        if not _COMPONENT.fullmatch(part) or part in (".", ".."):
            wanted = "letters, digits and . _ - between the slashes"
            raise UsageError(f"remote path {'/'.join([folder, *names])!r}", found=repr(part), wanted=wanted)
    if parts[0] or len(parts) < 2:
        raise UsageError(f"remote path {folder!r}", found="a relative path", wanted="one that starts with /")
    return "/".join([folder, *names])


def quote(path: str) -> str:
    """A path on the device as one word of a shell command, checked as `remote_path` does."""
    return shlex.quote(remote_path(path))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach one device: `serial` is HOST:PORT, the USB serial number, or adb's server's name for it."""

    serial: str
    kind: Literal["tcp", "usb"]
    make_link: Callable[[], Connection]
    via_server: bool = False
    """Whether adb's server holds the device."""


class Transport:
    """A connected device; a context manager. Threads may share it."""

    def __init__(self, endpoint: Endpoint, signers: Sequence[Signer] = (), *, auth_timeout: float = 30.0) -> None:
        """`auth_timeout`: seconds to wait for someone to allow this computer's key on the device's screen."""
        self._endpoint = endpoint
        self._signers = tuple(signers)
        self._auth_timeout = auth_timeout
        self._link = endpoint.make_link()

    def connect(self, *, timeout: float = _CONNECT_S) -> Transport:
        """Connect, and return self. Unauthorized, DeviceTimeout (offline) or ConnectionLost (no device)."""
        self._link.connect(self._signers, timeout=timeout, auth_timeout=self._auth_timeout)
        return self

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; commands get a hangup on the device, but may continue until their time limit."""
        self._link.close()

    @property
    def serial(self) -> str:
        return self._endpoint.serial

    @property
    def kind(self) -> Literal["tcp", "usb"]:
        return self._endpoint.kind

    @property
    def has_second_connection(self) -> bool:
        """False over USB without adb's server, because a cable carries one connection."""
        return self.kind != "usb" or self._endpoint.via_server

    @property
    def banner(self) -> Banner:
        """What the device announced about itself at the connection."""
        return self._link.banner

    @property
    def available(self) -> bool:
        """Whether the connection is alive, found without asking the device."""
        return self._link.available

    def reconnect(self, *, timeout: float = 60.0, pause: float = 0.2) -> None:
        """Try to connect until the device is back, as after a cut or a reboot; after `timeout` seconds, raise.

        Streams of the old connection are lost. Call it also after an interrupt, before cleaning up on the device.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._link.close()
            left = deadline - time.monotonic()
            try:
                self._link = self._endpoint.make_link()  # which fails while a cable is out
                self._link.connect(
                    self._signers, timeout=min(_CONNECT_S, max(left, 1.0)), auth_timeout=self._auth_timeout
                )
                return
            except Unauthorized:
                raise
            except DeviceFault:
                if left <= pause:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def another(self) -> Transport:
        """A second transport to the same device, for a sampler beside a push: another connection if there can be one,
        else the same connection, which stays open when the second transport is closed."""
        if not self.has_second_connection:
            return _Shared(self)
        return Transport(self._endpoint, self._signers, auth_timeout=self._auth_timeout).connect()

    def shell(self, command: str, *, timeout: float) -> ShellResult:
        """Run a command to its end; the device kills it after `timeout` seconds (DeviceTimeout)."""
        return run_shell(self._link, command, timeout=timeout)

    def stream_shell(self, command: str, *, timeout: float) -> ShellStream:
        """Start a command; the context manager yields pairs of "stdout" or "stderr" and bytes when iterated over."""
        return ShellStream(self._link, command, timeout=timeout)

    def stream_exec(self, command: str, *, timeout: float = STALL_S) -> ExecStream:
        """Start a command with raw input and output; `timeout`: the longest pause in seconds."""
        return ExecStream(self._link, command, timeout=timeout)

    def push_file(self, path: Path, remote: str, *, mode: int = 0o644, progress: Progress | None = None) -> int:
        """Copy a file to the device, not atomically; return its bytes. DeviceRefusal has the device's message."""
        with open(path, "rb", buffering=0) as source:
            return self._push(source, size_of(source), remote, mode, progress)

    def push_bytes(self, data: bytes, remote: str, *, mode: int = 0o644, progress: Progress | None = None) -> int:
        """Write a small file to the device."""
        return self._push(io.BytesIO(data), len(data), remote, mode, progress)

    def pull_bytes(self, remote: str) -> bytes:
        """Read a small file from the device; DeviceRefusal has the device's message."""
        with SyncSession(self._link, stall_timeout=STALL_S) as session:
            return session.receive(remote_path(remote))

    def pull_file(self, remote: str, path: Path, *, most_bytes: int) -> int:
        """Read a file from the device into one here; return its size. DeviceRefusal has the device's message."""
        with SyncSession(self._link, stall_timeout=STALL_S) as session, open(path, "wb") as file:
            return session.receive_into(remote_path(remote), file.write, most_bytes=most_bytes)

    def _push(self, source: BinaryIO, size: int, remote: str, mode: int, progress: Progress | None) -> int:
        path = remote_path(remote)
        with SyncSession(self._link, stall_timeout=STALL_S) as session:
            session.send(source, size, path, mode, progress)
        return size


class _Shared(Transport):
    """A transport that uses the connection of another one."""

    def __init__(self, owner: Transport) -> None:
        super().__init__(owner._endpoint, owner._signers)
        self._link = owner._link

    def close(self) -> None:
        """Do nothing: the owner closes the connection."""
