"""The emulated device: a context manager that runs it in a separate thread."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from device_harness.adb.wire import MAX_PAYLOAD_BYTES, VERSION_SKIP_CHECKSUM, Banner
from device_harness.emulator.daemon import Access, Daemon, Identity, features
from device_harness.emulator.faults import Faults
from device_harness.emulator.memory import MemoryLimit
from device_harness.emulator.store import Store
from device_harness.emulator.templates import properties
from device_harness.emulator.userland import DEVICE_FILES, Isolation, Userland
from toolkit.base.errors import EnvironmentFault, system_reason
from toolkit.base.outputs import Output

_HOST = "127.0.0.1"
_START_S = 30.0


@dataclass(frozen=True, slots=True)
class EmulatorSettings:
    """The properties of the emulated device; `port` 0 takes a free port."""

    port: int = 0
    root: Path | None = None
    """The folder for the device's files; None for a temporary one, removed at the end."""
    force: bool = False
    """Use `root` even if it contains files that no emulated device made."""
    isolation: Isolation = "auto"
    memory_bytes: int | None = None
    storage_bytes: int | None = None
    access: Access = field(default_factory=Access)
    faults: Faults = field(default_factory=Faults)
    features: frozenset[str] = field(default_factory=features)
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    version: int = VERSION_SKIP_CHECKSUM
    """The protocol's VERSION, with which the device verifies checksums, as before Android 9."""


class Emulator:
    """A device at `serial` (127.0.0.1:PORT) from `__enter__` to `__exit__`; reachable from this computer only.

    >>> with Emulator() as device:
    ...     device.serial.startswith("127.0.0.1:")
    True
    """

    def __init__(self, settings: EmulatorSettings | None = None) -> None:
        self.settings = settings or EmulatorSettings()
        self.port = self.settings.port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._first: socket.socket | None = None
        self._userland: Userland | None = None

    def __enter__(self) -> Emulator:
        if not hasattr(os, "splice"):
            found, remedy = "a system without splice(2)", "run it on Linux, or use Android's own emulator"
            raise EnvironmentFault("emulated device", found=found, wanted="Linux", remedy=remedy)
        if self.settings.root is not None:
            Output(self.settings.root, DEVICE_FILES, force=self.settings.force).require()
        self._first = _listen(self.port)
        self.port = self._first.getsockname()[1]
        self._scratch = None if self.settings.root else Path(tempfile.mkdtemp(prefix="gemma-edge-emulator-"))
        self._memory: MemoryLimit | None = None
        try:
            self._start()
        except BaseException:
            self._first.close()
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
        self._clean_up()

    @property
    def serial(self) -> str:
        """HOST:PORT, for `--device`."""
        return f"{_HOST}:{self.port}"

    @property
    def userland(self) -> Userland:
        """The device's files and programs, also available after it has stopped."""
        if self._userland is None:
            raise EnvironmentFault("emulated device", found="it was never started")
        return self._userland

    @property
    def reboots(self) -> int:
        """How often the device has rebooted."""
        return self._daemon.reboots

    def path(self, remote: str) -> Path:
        """The host's path for a path on the device."""
        return self.userland.local(remote)

    def set_faults(self, faults: Faults) -> None:
        """Replace the faults; byte counts start again at 0."""
        done = threading.Event()

        def apply() -> None:
            self.userland.show_faults(faults)
            self._daemon.store.set_faults(faults)
            done.set()

        if self._loop is None:
            raise EnvironmentFault("emulated device", found="it is not running")
        self._loop.call_soon_threadsafe(apply)
        if not done.wait(_START_S):
            raise EnvironmentFault("emulated device", found="its daemon does not respond")

    def _start(self) -> None:
        settings = self.settings
        if settings.memory_bytes is not None:
            self._memory = MemoryLimit(settings.memory_bytes)
        root = settings.root or self._scratch
        assert root is not None
        self._userland = Userland(
            root,
            f"emulated{self.port}",
            isolation=settings.isolation,
            memory=self._memory,
            limits_storage=settings.storage_bytes is not None,
        )
        store = Store(settings.storage_bytes, self.userland.stored_bytes)
        store.set_faults(settings.faults)
        self.userland.show_faults(settings.faults)
        facts = properties(f"emulated{self.port}")
        names = ("ro.product.name", "ro.product.model", "ro.product.device")
        banner = Banner("device", {name: facts[name] for name in names}, settings.features)
        identity = Identity(banner, settings.max_payload_bytes, settings.version)
        self._daemon = Daemon(identity, settings.access, self.userland, store)
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="emulated device", daemon=True)
        self._thread.start()
        if not started.wait(_START_S):
            raise EnvironmentFault("emulated device", found=f"it did not start within {_START_S:g} s")

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._daemon.serve(self._listener))
            started.set()
            await asyncio.gather(self._task, return_exceptions=True)

        asyncio.run(main())

    def _listener(self) -> socket.socket:
        first, self._first = self._first, None
        return first or _listen(self.port)

    def _clean_up(self) -> None:
        if self._userland is not None:
            self._userland.close()
        if self._memory is not None:
            self._memory.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        remedy = "choose another --port"
        raise EnvironmentFault(f"{_HOST}:{port}", found=system_reason(error), remedy=remedy) from error
    listener.listen()
    listener.setblocking(False)
    return listener
