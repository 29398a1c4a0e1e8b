"""``gemma-edge demo --device``: the tiny model pushed to a device, measured there, and shown as a page."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from device_harness.bench.bench import BenchSettings, Subject, run_job
from device_harness.bench.gates import GateSettings, resting_limit
from device_harness.bench.placement import LITERTLM, exported_model, place_model
from device_harness.bench.state import read_device
from device_harness.emulator.device import Emulator
from device_harness.flash.page_cache import PageCache, place_page_cache
from device_harness.machines.device import connected_device
from device_harness.machines.machine import Machine
from device_harness.programs.build import FLASH_PROBE
from device_harness.push.push import DEFAULT_FOLDER
from device_harness.runners.flash_probe.runner import FlashProbeRunner
from device_harness.runners.interface import Runner, Workload
from device_harness.runners.litert_lm.runner import LiteRtLmPythonRunner
from device_harness.runners.session.runner import SessionRunner
from gemma_edge.commands.bench import results_writer, tell_iteration
from gemma_edge.terminal import Terminal
from toolkit.base.errors import EnvironmentFault, QualityError, UsageError
from toolkit.base.files import write_bytes
from toolkit.bundle.manifest_json import read_manifest
from toolkit.report.bench_table import bench_table
from toolkit.report.page import render_page
from toolkit.report.results_page import results_page
from toolkit.results.record import BenchRecord, DeviceRecord, Start

EMULATED = "emulated"
"""In place of a serial number: a device that lives as long as the demo."""

_PROMPT_TOKENS, _GENERATED_TOKENS, _REPETITIONS = 128, 32, 3
_INTERVAL_S = 0.05
"""The tiny model's processes end within a second."""


@dataclass(frozen=True, slots=True)
class DeviceDemo:
    """What to measure, and where it is written."""

    bundle: Path
    device: str
    page: Path
    results: Path | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """One run."""

    runner: Runner
    model: Path
    size: str | None
    start: Start = "warm"
    may_fail: bool = False
    """Some machines cannot: where a temporary folder lies in memory, no read of it is cold."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where it is measured, and with what care."""

    machine: Machine
    device: DeviceRecord
    gate: GateSettings
    page_cache: PageCache | None


def measure_on_device(demo: DeviceDemo, terminal: Terminal) -> list[BenchRecord]:
    """Every runner that the device can run, every size, cold and warm; records, kept one by one, and a page of them."""
    with (
        results_writer(demo.results) as writer,
        _device(demo.device) as machine,
        tempfile.TemporaryDirectory(prefix="gemma-edge-demo-") as scratch,
    ):
        device = read_device(machine)
        kind = ", emulated: its speeds are this computer's" if device.emulated else ""
        terminal.say(f"4. on {machine.serial} ({device.model}{kind})")
        gate = GateSettings()
        limit = resting_limit(machine, terminal.note, timeout_s=gate.timeout_s)
        started = time.monotonic()
        place_model(machine, demo.bundle)
        terminal.say(f"5. pushed in {time.monotonic() - started:.1f} s, every chunk verified by the device")
        records: list[BenchRecord] = []
        has_compiler = find_spec("ziglang") is not None
        page_cache = place_page_cache(machine, terminal.note) if has_compiler else None
        if page_cache is None:
            terminal.note("without ziglang the page cache stays as it is: cold starts lack the weight cache alone")
        place = _Place(machine, device, replace(gate, limit_celsius=limit), page_cache)
        for plan in _plans(demo.bundle, Path(scratch), probes=has_compiler):
            for record in _measure(plan, place, terminal):
                records.append(record)
                if writer is not None:
                    writer.append(record)
    terminal.say(f"6. measured:\n{bench_table(records, 'md')}")
    write_bytes(demo.page, render_page(results_page(records)))
    return records


def require_places(demo: DeviceDemo) -> None:
    """The device is there, and the page and the results can be written: found before anything takes its time."""
    folder = demo.page.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"--report {demo.page}", found=f"no directory {folder}", wanted="one to write into")
    with results_writer(demo.results):
        pass
    if demo.device != EMULATED:
        with connected_device(demo.device):
            pass


def _plans(bundle: Path, scratch: Path, *, probes: bool) -> Iterator[_Plan]:
    manifest = read_manifest(bundle)
    for size in manifest.sizes:
        yield _Plan(SessionRunner(), bundle, size)
    yield _Plan(SessionRunner(), bundle, manifest.default_size, "cold")
    if probes:
        for start in ("cold", "warm"):
            yield _Plan(FlashProbeRunner(), bundle, None, start, may_fail=start == "cold")
    if find_spec("litert_lm") is not None:
        exported = exported_model(bundle, scratch, None)
        assert exported.suffix == LITERTLM
        yield _Plan(LiteRtLmPythonRunner(), exported, None)


def _measure(plan: _Plan, place: _Place, terminal: Terminal) -> Iterator[BenchRecord]:
    """Cold to the kernel too, where that can be; the probe empties the page cache itself. Then what ended it early."""
    workload = Workload(_PROMPT_TOKENS, _GENERATED_TOKENS, plan.start)
    drops = plan.start == "cold" and plan.runner.name != FLASH_PROBE
    settings = BenchSettings(
        _REPETITIONS,
        gate=place.gate,
        interval_s=_INTERVAL_S,
        folder=DEFAULT_FOLDER,
        page_cache=place.page_cache if drops else None,
    )
    machine = place.machine
    for job in plan.runner.jobs(machine, place_model(machine, plan.model, size=plan.size), workload):
        title = f"{plan.runner.name} {plan.size or plan.model.stem} {plan.start}"
        subject = Subject(machine, place.device, plan.runner.name, job)
        tell = partial(tell_iteration, terminal, title, job)
        outcome = run_job(subject, workload, settings, progress=tell, note=terminal.note)
        if isinstance(outcome.ended_by, EnvironmentFault) and plan.may_fail:
            terminal.warn(f"{title}: {outcome.ended_by}")
            return
        if outcome.record is not None:
            yield outcome.record
        if outcome.ended_by is not None:
            raise outcome.ended_by
        if outcome.record is None:
            raise QualityError(title, found="no iterations", wanted=str(_REPETITIONS))


@contextmanager
def _device(name: str) -> Iterator[Machine]:
    if name == EMULATED:
        with Emulator() as emulator, connected_device(emulator.serial) as device:
            yield device
    else:
        with connected_device(name) as device:
            yield device
