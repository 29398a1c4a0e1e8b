"""`gemma_edge.push`: copies a bundle, or a .litertlm, to Android devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from device_harness.adb.devices import connect, require_distinct
from device_harness.adb.transport import remote_path
from device_harness.push.push import default_target, push_source
from device_harness.push.receiver import Receiver, place_receiver
from device_harness.push.result import PushResult
from device_harness.push.source import PushProgress, PushSource, Step, open_source
from toolkit.base.errors import ToolkitError
from toolkit.litertlm.hashes import require_hashes


def _ignore(step: Step, done: int, total: int) -> None:
    """A progress function that does nothing."""


@dataclass(frozen=True, slots=True)
class PushListener:
    """Functions that are called while pushes run, each device from its own thread."""

    progress: Callable[[str], AbstractContextManager[PushProgress]] = field(default=lambda _: nullcontext(_ignore))
    """Given a device's serial number, opens the progress function of its push."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Called with messages for the user."""
    done: Callable[[PushResult], None] = field(default=lambda _: None)
    """Called when a push is complete."""


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """The results and failures of pushing to several devices."""

    results: tuple[PushResult, ...]
    """In the order of the devices."""
    failures: tuple[ToolkitError, ...]


def push(
    source: Path | str,
    device: str | None = None,
    *,
    groups: Sequence[str] | None = None,
    receiver: Receiver = "auto",
    target: str | None = None,
    listener: PushListener | None = None,
) -> PushResult:
    """Copy a bundle or a .litertlm file to a device; only chunks that differ are sent, and all are verified.

    device: a USB serial number, HOST[:PORT] or emulator-PORT; None for ANDROID_SERIAL's, else the only device.
    groups: the parameter groups to push, where `text` includes its embeddings; None for all. The tokenizer and the chat
        template are always pushed.
    receiver: what stores and hashes files on the device: its own tools (`shell`), or our program (`native`), which is
        faster and takes a minute to build once; `auto` for our program if it is built and runs there.
    target: the folder on the device.

    BundleError for a bundle that differs from its manifest or has graphs that no conversion makes, or a .litertlm that
    differs from the hashes in its header; EnvironmentFault for any fault of the device. After a fault, the next push
    continues where this one ended.
    """
    outcome = push_all(source, [device], groups=groups, receiver=receiver, target=target, listener=listener)
    if outcome.failures:
        raise outcome.failures[0]
    return outcome.results[0]


def push_all(
    source: Path | str,
    devices: Sequence[str | None],
    *,
    groups: Sequence[str] | None = None,
    receiver: Receiver = "auto",
    target: str | None = None,
    listener: PushListener | None = None,
) -> PushOutcome:
    """Push to several devices at once; one that fails does not stop the others.

    BundleError or UsageError if nothing can be pushed to any of them.
    """
    require_distinct([device or "" for device in devices])
    folder = None if target is None else remote_path(target.rstrip("/"))
    opened = open_source(Path(source), None if groups is None else tuple(groups))
    work = _Work(opened, folder or default_target(opened), receiver, listener or PushListener())
    with ThreadPoolExecutor(len(devices) + 1) as pool:
        try:
            work.check = pool.submit(_require_valid, Path(source), opened, work.ended)
            if len(devices) == 1:  # in this thread, the only one that an interrupt reaches at once
                outcome = _outcome([lambda: work.push_to(devices[0])])
            else:
                running: list[Future[PushResult]] = [pool.submit(work.push_to, device) for device in devices]
                outcome = _outcome([future.result for future in running])
            work.raise_fault()
            return outcome
        finally:
            # After an interrupt, each push ends at its next step, so that a later push can continue from there.
            work.ended.set()


def _require_valid(path: Path, source: PushSource, ended: threading.Event) -> None:
    """Check what programs on a device would open unchecked: graphs, and the hashes of a .litertlm.

    The first bytes are sent meanwhile.
    """
    # Imported here because they take flatbuffers and numpy, as long as a small push.
    from toolkit.litertlm.wellformed import require_wellformed_sections
    from toolkit.runtime.judged_files import require_judged_bundle

    def go_on(count: int) -> None:
        if ended.is_set():
            raise KeyboardInterrupt

    if source.manifest is None:
        require_hashes(path, go_on, whole_chunks=False)  # those are compared with what the device has stored
        require_wellformed_sections(path)
    else:
        require_judged_bundle(path, source.manifest, {file.name for file in source.files})


@dataclass(slots=True)
class _Work:
    """What to push, and how: the same for all devices."""

    source: PushSource
    target: str
    receiver: Receiver
    listener: PushListener
    ended: threading.Event = field(default_factory=threading.Event)
    check: Future[None] | None = None
    """The check of the source, which may still run while bytes are sent."""

    def push_to(self, name: str | None) -> PushResult:
        with connect(name) as device, self.listener.progress(device.serial) as show:

            def progress(step: Step, done: int, total: int) -> None:
                if self.ended.is_set():
                    raise KeyboardInterrupt
                self.raise_fault()
                show(step, done, total)

            receiver = place_receiver(device, self.receiver, say=self.listener.note)
            result = push_source(
                device, self.source, target=self.target, receiver=receiver, progress=progress, confirm=self._confirm
            )
        self.listener.done(result)
        return result

    def raise_fault(self) -> None:
        """BundleError if the source's check has failed by now."""
        if self.check is not None and self.check.done():
            self.check.result()

    def _confirm(self) -> None:
        """Wait for the source's check; BundleError if it failed."""
        if self.check is not None:
            self.check.result()


def _outcome(pushes: Sequence[Callable[[], PushResult]]) -> PushOutcome:
    """Wait for all pushes, and collect their results and failures."""
    results, failures = [], []
    for push_one in pushes:
        try:
            results.append(push_one())
        except ToolkitError as error:
            failures.append(error)
    return PushOutcome(tuple(results), tuple(failures))
