"""`gemma_edge.bench`: measures a model on an Android device, or on this computer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from device_harness.bench.run import BenchRequest, BenchSettings, choose_runner, runner_on
from device_harness.bench.run import bench as measure
from device_harness.machines.device import connected_device
from device_harness.machines.host import Host, require_measurable
from device_harness.machines.machine import Machine
from device_harness.runners import ALL
from device_harness.runners.interface import Workload
from device_harness.runners.spec import BenchListener, RunnerSpec
from toolkit.base.errors import ToolkitError, UsageError
from toolkit.base.files import is_safe_name
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
    prompt_tokens: int | None = None,
    generated_tokens: int | None = None,
    repetitions: int = 5,
    cold: bool = False,
    backend: Literal["cpu", "gpu", "npu"] = "cpu",
    threads: int | None = None,
    results: Path | str | None = None,
    force: bool = False,
    trace: bool = False,
    settings: BenchSettings | None = None,
    runners: Sequence[RunnerSpec] = ALL,
    listener: BenchListener | None = None,
) -> tuple[BenchRecord, ...]:
    """Measure speed, memory and temperature, with one process for each iteration; return a record for each run.

    model: a bundle directory, or a .litertlm file.
    device: a USB serial number, HOST[:PORT] or emulator-PORT; None for ANDROID_SERIAL's, else the only device.
    host: measure on this computer instead.
    runner: the runner's name; None for the default of this kind of model. options: the runner's own options, by name.
    size: one of the bundle's sizes; None for its default.
    prompt_tokens, generated_tokens: the tokens of one iteration; None for 512 and 128, and for runners that have none.
    repetitions: how many iterations are measured.
    cold: remove the runner's weight cache before each iteration.
    backend: the processor that runs the model. threads: CPU threads; None for the runner's choice.
    results: a file of JSON lines, to which each record is appended as soon as it is complete.
    force: replace a file at `results` that is not a results file.
    trace: also take a Perfetto trace of one more run, in a folder beside `results`.
    settings: how to treat the device; if given, its own repetitions replace `repetitions`.
    runners: the runners to choose from. listener: told of the progress.

    UsageError if this cannot be measured, BundleError for an invalid model, EnvironmentFault for any fault of the
    device. Records completed before a fault are in the results file.

    >>> (record,) = bench(bundle, host=True, prompt_tokens=8, generated_tokens=4, repetitions=1)
    >>> record.runner, sorted(record.tests)
    ('session', ['init', 'pp8', 'pp8:first', 'tg4', 'ttft8'])
    """
    workload = Workload(start="cold" if cold else "warm", backend=backend, threads=threads)
    found = bench_records(
        bench_request(model, runner, options, size, workload, (prompt_tokens, generated_tokens)),
        bench_settings(settings, repetitions, results, trace=trace),
        device=device,
        host=host,
        results=results,
        force=force,
        runners=runners,
        listener=lambda *_: listener,
    )
    return tuple(found)


def bench_request(
    model: Path | str,
    runner: str | None,
    options: Mapping[str, Sequence[str]] | None,
    size: str | None,
    workload: Workload,
    lengths: tuple[int | None, int | None],
) -> BenchRequest:
    """The request of `bench`'s arguments; `lengths`: the tokens of the prompt and of the answer, if they were given."""
    given = {name: tuple(values) for name, values in (options or {}).items()}
    prompt, generated = lengths
    workload = replace(
        workload,
        prompt_tokens=workload.prompt_tokens if prompt is None else prompt,
        generated_tokens=workload.generated_tokens if generated is None else generated,
    )
    return BenchRequest(Path(model), runner, given, size, workload, lengths_given=lengths != (None, None))


def bench_settings(
    settings: BenchSettings | None, repetitions: int, results: Path | str | None, *, trace: bool
) -> BenchSettings:
    """The settings of `bench`'s arguments; `results`: the file beside which a trace is kept."""
    settings = settings or BenchSettings(repetitions)
    return replace(settings, trace_folder=trace_folder(results)) if trace else settings


def bench_records(
    request: BenchRequest,
    settings: BenchSettings,
    *,
    device: str | None = None,
    host: bool = False,
    results: Path | str | None = None,
    drop_torn_line: bool = False,
    force: bool = False,
    runners: Sequence[RunnerSpec] = ALL,
    listener: Callable[[Machine, RunnerSpec], BenchListener | None] = lambda machine, spec: None,
) -> Iterator[BenchRecord]:
    """Like `bench`, but yield each record; an error is raised only after the records measured before it.

    drop_torn_line: remove an incomplete last line that a crash left in the results file.
    force: replace a file at `results` that is not a results file.
    listener: makes the listener, once the machine and the runner are known.
    """
    choose_runner(request, runners)
    opened = results_file(results, request_files(request), drop_torn_line=drop_torn_line, force=force)
    with opened as writer, _machine(device, host=host) as machine:
        spec = runner_on(machine, request, runners)
        told = listener(machine, spec)
        with closing(measure(machine, request, settings, runners=runners, listener=told)) as records:
            for record in records:
                fault = None if writer is None else fault_of(writer, record)
                yield record  # even if it could not be kept
                if fault is not None:
                    raise fault


def trace_folder(results: Path | str | None) -> Path:
    """The folder for traces beside a results file; UsageError if there is no results file, or a file in its place."""
    if results is None:
        raise UsageError("--trace", found="no results file to store the trace next to", remedy="give --results FILE")
    path = Path(results)
    folder = path.with_name(f"{path.stem}.traces")
    if not is_safe_name(folder.name):
        wanted = "letters, digits and . _ - in the name of the results file"
        raise UsageError("--trace", file=path, found="a name that cannot be used in a link", wanted=wanted)
    if folder.exists() and not folder.is_dir():
        raise UsageError("--trace", file=folder, found="a file", wanted="a folder for traces, or none")
    return folder


def request_files(request: BenchRequest) -> tuple[Path, ...]:
    """The files that a benchmark may read: its model, and whatever its options name."""
    return (request.model, *(Path(text) for values in request.options.values() for text in values))


def fault_of(writer: ResultsWriter, record: BenchRecord) -> ToolkitError | None:
    """Append a record; return the error if that fails."""
    try:
        writer.append(record)
    except ToolkitError as error:
        return error
    return None


@contextmanager
def _machine(device: str | None, *, host: bool) -> Iterator[Machine]:
    if host:
        require_measurable()
        yield Host()
    else:
        with connected_device(device) as found:
            yield found


@contextmanager
def results_file(
    path: Path | str | None, inputs: Sequence[Path] = (), *, drop_torn_line: bool = False, force: bool = False
) -> Iterator[ResultsWriter | None]:
    """Open the results file, if one is wanted, before anything is measured, so that no measurement is lost.

    inputs: the other files that the same command reads or writes.
    """
    if path is None:
        yield None
    else:
        with open_results(path, drop_torn_line=drop_torn_line, inputs=inputs, force=force) as writer:
            yield writer
