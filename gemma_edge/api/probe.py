"""`gemma_edge.probe`: measures how fast a device reads rows of per-layer embeddings from flash."""

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
    require_settings,
    shard_groups,
    shard_names,
)
from device_harness.push.push import default_target, push_source
from device_harness.push.receiver import place_receiver
from device_harness.push.source import PushProgress, Step, open_source
from toolkit.base.errors import UsageError
from toolkit.base.files import Progress
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.ple_shards import read_header


def _ignore(done: int, total: int) -> None:
    """A progress function that does nothing."""


def _ignore_step(step: Step, done: int, total: int) -> None:
    """A progress function of a push that does nothing."""


@dataclass(frozen=True, slots=True)
class ProbeListener:
    """Functions that are called while a probe runs."""

    pushing: Callable[[str], AbstractContextManager[PushProgress]] = field(default=lambda _: nullcontext(_ignore_step))
    """Given a device's serial number, opens the progress function for pushing the shards."""
    reading: Callable[[str], AbstractContextManager[Progress]] = field(default=lambda _: nullcontext(_ignore))
    """Given the machine's name, opens the progress function for the kinds of read."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Called with messages for the user."""


def probe(
    bundle: Path | str,
    *,
    device: str | None = None,
    host: bool = False,
    target: str | None = None,
    settings: ProbeSettings | None = None,
    listener: ProbeListener | None = None,
) -> ProbeResult:
    """Measure reads of a bundle's rows: one by one and in batches, with pread and mmap, cold and warm.

    device: a USB serial number, HOST[:PORT] or emulator-PORT; None for ANDROID_SERIAL's, else the only device. The
        shards are pushed there first.
    host: measure this computer instead, with the bundle as it is.
    target: the bundle's folder on the device.
    settings: how many rows to read, and which.

    UsageError for numbers that the probe does not take, BundleError for invalid shards, EnvironmentFault if the device
    fails or the probe cannot be built for it.
    """
    if host and target is not None:
        raise UsageError("--target", found="it cannot be used together with --host")
    settings, listener = settings or ProbeSettings(), listener or ProbeListener()
    path = Path(bundle)
    manifest = read_manifest(path)
    names = shard_names(manifest)
    require_settings(settings, read_header(path / names[0]).layout.row_bytes)
    if host:
        with tempfile.TemporaryDirectory() as scratch, listener.reading("") as progress:
            shards = [path / name for name in names]
            return probe_host(shards, settings, scratch=Path(scratch), progress=progress, say=listener.note)
    source = open_source(path, shard_groups(manifest), manifest=manifest)
    with connect(device) as found:
        folder = default_target(source) if target is None else remote_path(target.rstrip("/"))
        with listener.pushing(found.serial) as steps:
            push_source(found, source, target=folder, receiver=place_receiver(found, "auto"), progress=steps)
        with listener.reading(found.serial) as progress:
            return probe_device(found, folder, names, settings, progress=progress, say=listener.note)
