"""`gemma-edge demo --device`: pushes the tiny model to a device, measures it there, and writes a report."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from device_harness.bench.placement import open_model, place_model
from device_harness.bench.readiness import ReadinessSettings, resting_limit
from device_harness.bench.run import BenchRequest, BenchSettings, bench
from device_harness.bench.state import read_device
from device_harness.emulator.device import Emulator
from device_harness.machines.device import connected_device
from device_harness.machines.machine import Machine
from device_harness.runners.interface import Workload
from gemma_edge.api.bench import results_file
from gemma_edge.terminal import Terminal, one_line
from gemma_edge.words.benchmarks import TerminalListener
from toolkit.base.errors import EnvironmentFault, QualityError, errors_about
from toolkit.base.files import write_bytes
from toolkit.base.outputs import Output
from toolkit.bundle.manifest import Manifest
from toolkit.report.bench_table import bench_table
from toolkit.report.page import PAGE, render_page
from toolkit.report.results_page import results_page
from toolkit.results.json_lines import ResultsWriter
from toolkit.results.record import BenchRecord, Start

EMULATED = "emulated"
"""The value of `--device` that starts an emulated device for the duration of the demo."""

_PROMPT_TOKENS, _GENERATED_TOKENS, _REPETITIONS = 128, 32, 3
_SESSION, _NATIVE, _PROBE, _ENGINE = "session", "native", "flash_probe", "litert_lm_python"
_ASK_S = 30.0
_INTERVAL_S = 0.05
"""A short interval, since the tiny model's processes end within a second."""


@dataclass(frozen=True, slots=True)
class DeviceDemo:
    """What to measure on which device, and where to write the results."""

    bundle: Path
    device: str
    page: Path
    results: Path | None
    checkpoint: Path
    force: bool = False

    def page_output(self) -> Output:
        """The page as an output, which must not replace the checkpoint or another output."""
        others = (self.checkpoint, self.bundle, *(() if self.results is None else (self.results,)))
        return Output(self.page, PAGE, others, self.force)

    def results_file(self) -> AbstractContextManager[ResultsWriter | None]:
        """The results file, opened, or None if none is wanted."""
        return results_file(self.results, (self.checkpoint, self.bundle), force=self.force)


@dataclass(frozen=True, slots=True)
class _Measurement:
    """One call of the benchmark."""

    runner: str
    size: str | None
    start: Start = "warm"
    drops_page_cache: bool = False
    """Whether cold starts also empty the page cache; the flash probe does that itself."""
    may_fail: bool = False
    """Whether a failure is only reported: no read is cold in a temporary folder that is in memory, LiteRT has no
    library for some processors, and a model may end its answer at once in the benchmark of Google's engine."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, and by the name of each other runner, why it did not measure."""

    records: tuple[BenchRecord, ...]
    left_out: Mapping[str, str]
    page: Path | None
    """The page that was written; None if there was nothing to show."""


def measure_on_device(demo: DeviceDemo, terminal: Terminal) -> Measured:
    """Measure every size with every runner that works on the device, cold and warm; write records and a report."""
    records: list[BenchRecord] = []
    with demo.results_file() as writer, _device(demo.device) as machine:
        device = read_device(machine)
        kind = ", emulated: its speeds are this computer's" if device.emulated else ""
        terminal.say(one_line(f"4. on {machine.serial} ({device.model}{kind})"))
        readiness = ReadinessSettings()
        limit = resting_limit(machine, terminal.note, timeout_s=readiness.timeout_s)
        settings = BenchSettings(_REPETITIONS, replace(readiness, limit_celsius=limit), interval_s=_INTERVAL_S)
        started = time.monotonic()
        model = open_model(demo.bundle)
        place_model(machine, model)
        terminal.say(f"5. pushed in {time.monotonic() - started:.1f} s, every chunk verified by the device")
        assert model.manifest is not None
        left_out = _left_out(machine)
        for name, why in left_out.items():
            terminal.note(one_line(f"not measured by {name}: {why}"))
        for measurement in _measurements(model.manifest, left_out):
            for record in _measure(measurement, demo.bundle, machine, settings, terminal, left_out):
                records.append(record)
                if writer is not None:
                    writer.append(record)
    if not records:
        return Measured((), left_out, None)
    terminal.say(f"6. measured:\n{bench_table(records, 'md')}")
    demo.page_output().require()
    write_bytes(demo.page, render_page(results_page(records, left_out)))
    return Measured(tuple(records), left_out, demo.page)


def require_places(demo: DeviceDemo) -> None:
    """Check that the device can be reached and report and results can be written, before anything takes time."""
    with errors_about("--report"):
        demo.page_output().require()
    with demo.results_file():
        pass
    if demo.device != EMULATED:
        with connected_device(demo.device):
            pass


def _left_out(machine: Machine) -> dict[str, str]:
    """The runners that cannot measure on this machine, and why."""
    found: dict[str, str] = {}
    has_python = machine.shell(f"command -v {machine.python}", timeout=_ASK_S).exit_code == 0
    if not has_python:
        found |= dict.fromkeys((_SESSION, _ENGINE), f"the device has no {machine.python}")
    elif find_spec("litert_lm") is None:
        found[_ENGINE] = "litert_lm is not installed"
    if find_spec("ziglang") is None:
        why = "ziglang is missing to build it (pip install 'gemma-edge[probe]')"
        found |= {_PROBE: why} if has_python else {_NATIVE: why, _PROBE: why}
    return found


def _measurements(manifest: Manifest, left_out: Collection[str]) -> Iterator[_Measurement]:
    """The benchmarks to run. The flash probe also empties the page cache for others.

    A device with Python measures our session; one without, our program in C.
    """
    if _SESSION not in left_out:
        for size in manifest.sizes:
            yield _Measurement(_SESSION, size)
        yield _Measurement(_SESSION, manifest.default_size, "cold", drops_page_cache=_PROBE not in left_out)
    elif _NATIVE not in left_out:
        for size in manifest.sizes:
            yield _Measurement(_NATIVE, size, may_fail=True)
    if _PROBE not in left_out:
        yield _Measurement(_PROBE, None, "cold", may_fail=True)
        yield _Measurement(_PROBE, None)
    if _ENGINE not in left_out:
        yield _Measurement(_ENGINE, None, may_fail=True)


def _measure(
    what: _Measurement,
    bundle: Path,
    machine: Machine,
    settings: BenchSettings,
    terminal: Terminal,
    left_out: dict[str, str],
) -> Iterator[BenchRecord]:
    """Run one benchmark and return its records, or raise its error. If `what` may fail, the error is only reported, and
    noted in `left_out` if nothing was measured."""
    workload = Workload(_PROMPT_TOKENS, _GENERATED_TOKENS, what.start)
    request = BenchRequest(bundle, what.runner, size=what.size, workload=workload)
    title = f"{what.runner} {what.size or bundle.name} {what.start}"
    settings = replace(settings, drop_page_cache=what.drops_page_cache)
    measured = 0
    try:
        for record in bench(machine, request, settings, listener=TerminalListener(terminal, title)):
            measured += 1
            yield record
    except EnvironmentFault as fault:
        if not what.may_fail:
            raise
        terminal.warn(f"{title}: {fault}")
        if not measured:
            left_out.setdefault(what.runner, str(fault))
        return
    if not measured:
        raise QualityError(title, found="no iterations", wanted=str(_REPETITIONS))


@contextmanager
def _device(name: str) -> Iterator[Machine]:
    if name == EMULATED:
        with Emulator() as emulator, connected_device(emulator.serial) as device:
            yield device
    else:
        with connected_device(name) as device:
            yield device
