"""`gemma_edge.probe`: how fast flash gives rows of per-layer embeddings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from device_harness.adb.devices import connect
from device_harness.adb.transport import remote_path
from device_harness.flash.probe import (
    ProbeResult,
    ProbeSettings,
    probe_device,
    probe_host,
    shard_groups,
    shard_names,
)
from device_harness.push.push import default_target, push_source
from device_harness.push.receiver import place_receiver
from device_harness.push.source import PushProgress, Step, open_source
from toolkit.base.errors import UsageError
from toolkit.base.files import Progress
from toolkit.bundle.manifest_json import read_manifest


def _ignore(done: int, total: int) -> None:
    """Nobody asks."""


def _ignore_step(step: Step, done: int, total: int) -> None:
    """Nobody asks."""


@dataclass(frozen=True, slots=True)
class ProbeListener:
    """Told how a probe goes."""

    pushing: Callable[[str], AbstractContextManager[PushProgress]] = field(default=lambda _: nullcontext(_ignore_step))
    """Of a device's serial number: what is told of the steps of bringing the shards there."""
    reading: Callable[[str], AbstractContextManager[Progress]] = field(default=lambda _: nullcontext(_ignore))
    """Of the machine's name: what is told of the kinds of read that are done."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Something that the person who waits should know."""


def probe(
    bundle: Path | str,
    *,
    device: str | None = None,
    host: bool = False,
    target: str | None = None,
    settings: ProbeSettings | None = None,
    listener: ProbeListener | None = None,
) -> ProbeResult:
    """Time reads of a bundle's rows in every way that a reader could: a row, a batch; pread, mmap; cold, warm.

    device: a USB serial number, HOST[:PORT] or emulator-PORT, to which the shards are brought first; None is
        ANDROID_SERIAL's, else the only one. Or with `host` this computer, the bundle where it lies.
    target: the bundle's folder on the device.
    settings: how many rows are read, and which.

    BundleError for shards that are not sound, EnvironmentFault where the device fails or nothing can be built for it.
    """
    if host and target is not None:
        raise UsageError("--target", found="--host beside it", wanted="one of both")
    settings, listener = settings or ProbeSettings(), listener or ProbeListener()
    if settings.batch_rows < 2:
        raise UsageError("--batch", found=str(settings.batch_rows), wanted="at least 2")
    path = Path(bundle)
    manifest = read_manifest(path)
    names = shard_names(manifest)
    if host:
        with tempfile.TemporaryDirectory() as scratch, listener.reading("") as progress:
            shards = [path / name for name in names]
            return probe_host(shards, settings, scratch=Path(scratch), progress=progress, say=listener.note)
    source = open_source(path, shard_groups(manifest))
    with connect(device) as found:
        folder = default_target(source) if target is None else remote_path(target.rstrip("/"))
        with listener.pushing(found.serial) as steps:
            push_source(found, source, target=folder, receiver=place_receiver(found, "auto"), progress=steps)
        with listener.reading(found.serial) as progress:
            return probe_device(found, folder, names, settings, progress=progress, say=listener.note)
