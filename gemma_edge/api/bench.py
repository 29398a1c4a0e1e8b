"""`gemma_edge.bench`: a model measured on an Android device, or on this computer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from device_harness.bench.run import BenchRequest, BenchSettings, choose_runner
from device_harness.bench.run import bench as measure
from device_harness.machines.device import connected_device
from device_harness.machines.host import Host
from device_harness.machines.machine import Machine
from device_harness.runners import ALL
from device_harness.runners.interface import Workload
from device_harness.runners.spec import BenchListener, RunnerSpec
from toolkit.results.json_lines import ResultsWriter, open_results
from toolkit.results.record import BenchRecord


def bench(
    model: Path | str,
    *,
    device: str | None = None,
    host: bool = False,
    runner: str | None = None,
    options: Mapping[str, Sequence[str]] | None = None,
    size: str | None = None,
    prompt_tokens: int = 512,
    generated_tokens: int = 128,
    repetitions: int = 5,
    cold: bool = False,
    backend: Literal["cpu", "gpu", "npu"] = "cpu",
    threads: int | None = None,
    results: Path | str | None = None,
    settings: BenchSettings | None = None,
    runners: Sequence[RunnerSpec] = ALL,
    listener: BenchListener | None = None,
) -> tuple[BenchRecord, ...]:
    """Measure speed, memory and temperature, one process an iteration, and keep every one.

    model: a bundle's directory, or a .litertlm file.
    device: a USB serial number, HOST[:PORT] or emulator-PORT; None is ANDROID_SERIAL's, else the only one. Or with
        `host` this computer.
    runner: what runs the model; None is what suits it. options: the runner's own, by name.
    size: one of a bundle's sizes; None is its default.
    prompt_tokens, generated_tokens: what one iteration computes. cold: without the runner's weight cache.
    threads: None is the runner's own choice.
    results: a file of JSON lines that each record is appended to as soon as it is whole.
    settings: care for the device; its repetitions are those of `repetitions` where it is None.

    UsageError for what cannot be measured so, BundleError for an unsound model, EnvironmentFault for everything about
    the device. What was measured before a fault is in the file of results.
    """
    workload = Workload(prompt_tokens, generated_tokens, "cold" if cold else "warm", backend, threads)
    given = {name: tuple(values) for name, values in (options or {}).items()}
    request = BenchRequest(Path(model), runner, given, size, workload)
    settings = settings or BenchSettings(repetitions)
    found = bench_records(
        request, settings, device=device, host=host, results=results, runners=runners, listener=lambda *_: listener
    )
    return tuple(found)


def bench_records(
    request: BenchRequest,
    settings: BenchSettings,
    *,
    device: str | None = None,
    host: bool = False,
    results: Path | str | None = None,
    drop_torn_line: bool = False,
    runners: Sequence[RunnerSpec] = ALL,
    listener: Callable[[Machine, RunnerSpec], BenchListener | None] = lambda machine, spec: None,
) -> Iterator[BenchRecord]:
    """`bench`, record by record; what ends it early is raised behind those that were measured.

    drop_torn_line: remove what a crash left of the last line of the file of results. listener: what is told, made once
    the machine and the runner are known.
    """
    spec = choose_runner(request, runners)
    with results_file(results, drop_torn_line=drop_torn_line) as writer, _machine(device, host=host) as machine:
        for record in measure(machine, request, settings, runners=runners, listener=listener(machine, spec)):
            if writer is not None:
                writer.append(record)
            yield record


@contextmanager
def _machine(device: str | None, *, host: bool) -> Iterator[Machine]:
    if host:
        yield Host()
    else:
        with connected_device(device) as found:
            yield found


@contextmanager
def results_file(path: Path | str | None, *, drop_torn_line: bool = False) -> Iterator[ResultsWriter | None]:
    """Opened before anything is measured, so that nothing is measured in vain; None: nothing is kept."""
    if path is None:
        yield None
    else:
        with open_results(Path(path), drop_torn_line=drop_torn_line) as writer:
            yield writer
