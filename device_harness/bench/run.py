"""Benchmarks a model on a machine with a runner: turns a request into records, without terminal output.

`gemma-edge bench`, `gemma-edge demo` and `gemma_edge.bench` all go through `bench`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from device_harness.adb.turns import in_turn
from device_harness.bench.job import JobSettings, Subject, run_job
from device_harness.bench.placement import LITERTLM, exported_model, model_kind, open_model, place_model
from device_harness.bench.power import DEFAULT_IDLE_S, energy_tests, find_power_source
from device_harness.bench.readiness import ReadinessSettings, prepared_device, resting_limit
from device_harness.bench.sampler import DEFAULT_INTERVAL_S
from device_harness.bench.state import read_device
from device_harness.flash.page_cache import place_page_cache
from device_harness.machines.machine import Machine
from device_harness.runners import ALL
from device_harness.runners.interface import LocalModel, Workload
from device_harness.runners.spec import BenchListener, RunnerOptions, RunnerRequest, RunnerSpec
from toolkit.base.errors import UsageError
from toolkit.results.record import BenchRecord, DeviceRecord

_PHONE_COOL_DOWN_S = 5.0


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """The model, runner and workload to benchmark."""

    model: Path
    """A bundle's directory, or a .litertlm file."""
    runner: str | None = None
    """The name in the runner's spec; None: the default runner for this kind of model."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The runner's own options, by the names in its spec."""
    size: str | None = None
    """One of a bundle's sizes; None: its default."""
    workload: Workload = field(default_factory=Workload)
    lengths_given: bool = False
    """Whether the workload's numbers of tokens were asked for, and are not the defaults."""
    later: tuple[Workload, ...] = ()
    """Workloads to benchmark afterwards: what cannot be measured of them is refused before this one is measured."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How to measure, and how to treat the machine."""

    repetitions: int = 5
    """The number of iterations, each of them one process."""
    readiness: ReadinessSettings = field(default_factory=ReadinessSettings)
    """The settings of the gates; a missing temperature limit is found first, a little above the value at rest."""
    cool_down_s: float | None = None
    """The pause between iterations; None: 5 s on a phone, else 0."""
    interval_s: float = DEFAULT_INTERVAL_S
    """The time between memory samples."""
    idle_s: float = DEFAULT_IDLE_S
    """For how long power at rest is measured before anything runs, where energy can be measured; 0: not at all."""
    drop_page_cache: bool = False
    """Drop the model's files from the page cache before each iteration; only with a cold start."""
    trace_folder: Path | None = None
    """A folder here for a Perfetto trace of one more run of each job; None for no trace."""
    stay_awake: bool = False
    airplane_mode: bool = False


def choose_runner(
    request: BenchRequest, runners: Sequence[RunnerSpec] = ALL, *, is_phone: bool | None = None
) -> RunnerSpec:
    """Choose the requested runner; UsageError if it is unknown, does not take the model, or lacks a given option.

    Needs no machine, so that mistakes show at once. `is_phone`: whether the machine is a real device, where the default
    may be another runner; None if that is not known yet, and then it is enough that one of the defaults takes the
    options.
    """
    faults: list[UsageError] = []
    for spec in _candidates(request, runners, is_phone):
        try:
            _check_choice(spec, request, runners)
        except UsageError as error:
            faults.append(error)
        else:
            return spec
    raise faults[0]


def runner_on(machine: Machine, request: BenchRequest, runners: Sequence[RunnerSpec] = ALL) -> RunnerSpec:
    """The runner that `bench` uses on this machine."""
    return choose_runner(request, runners, is_phone=_is_phone(read_device(machine)))


def _is_phone(device: DeviceRecord) -> bool:
    return device.kind == "adb" and not device.emulated


def _check_choice(spec: RunnerSpec, request: BenchRequest, runners: Sequence[RunnerSpec]) -> None:
    if model_kind(request.model) == "litertlm" and "litertlm" not in spec.takes:  # (a bundle is exported instead)
        found = f"a {LITERTLM}"
        raise UsageError(file=request.model, found=found, wanted=f"a bundle's directory for {spec.name}")
    if request.lengths_given and not spec.has_lengths:
        found = f"cannot be used with --runner {spec.name}, which has no prompt and no answer"
        raise UsageError("-p and -n", found=found)
    known = {option.name for option in spec.options}
    given = [option for other in runners for option in other.options if request.options.get(option.name)]
    for option in given:
        if option.name not in known:
            owners = [other.name for other in runners if option in other.options]
            found = f"cannot be used with --runner {spec.name}, only with {' or '.join(owners)}"
            raise UsageError(option.flag, found=found)
    for workload in (request.workload, *request.later):
        spec.check(RunnerOptions(request.options), workload)


def _candidates(request: BenchRequest, runners: Sequence[RunnerSpec], is_phone: bool | None) -> list[RunnerSpec]:
    """The runner that was named, or the defaults for the model, the usual one first."""
    kind, name = model_kind(request.model), request.runner
    if name is None:
        usual = [spec for spec in runners if kind in spec.default_for]
        on_phones = [spec for spec in runners if kind in spec.default_on_phones] or usual
        # On other machines, an option that only the phones' default has selects that runner.
        found = on_phones if is_phone else [*usual, *on_phones]
    else:
        found = [spec for spec in runners if spec.name == name]
    if not found:
        wanted = " or ".join(spec.name for spec in runners)
        raise UsageError("--runner", found=name or f"none for a {kind}", wanted=wanted)
    return found


def bench(
    machine: Machine,
    request: BenchRequest,
    settings: BenchSettings | None = None,
    *,
    runners: Sequence[RunnerSpec] = ALL,
    listener: BenchListener | None = None,
) -> Generator[BenchRecord, None, None]:
    """Benchmark a model on a machine; yields a record for each job of the runner when it is complete.

    Waits for another benchmark on the machine by this user, and lets none begin until it is exhausted or closed.

    An interrupt or error that ends a job early is raised after the record of its iterations so far. UsageError for a
    request that does not fit the model or runner, BundleError for an invalid model, EnvironmentFault for all problems
    with the machine. `runners`: the runners to choose from.
    """
    settings, listener = settings or BenchSettings(), listener or BenchListener()
    choose_runner(request, runners)
    if settings.drop_page_cache and request.workload.start != "cold":
        raise UsageError("--drop-page-cache", found="can be used with --cold only")
    with (
        in_turn("benchmarks", machine.serial, waiting_for="another benchmark on it to end", required=False),
        prepared_device(machine, stay_awake=settings.stay_awake, airplane_mode=settings.airplane_mode),
    ):
        device = read_device(machine)
        if device.emulated:
            listener.note(f"{machine.serial} is emulated: speeds are this computer's")
        spec = choose_runner(request, runners, is_phone=_is_phone(device))
        runner = spec.make(RunnerRequest(RunnerOptions(request.options), request.workload, device, listener))
        with _opened(request, spec, listener, machine.serial) as model:
            # Refuses what does not fit, before anything takes long.
            plan, *_ = [runner.plan(model, workload) for workload in (request.workload, *request.later)]
            job_settings = _job_settings(settings, machine, device, listener)
            with listener.pushing(machine.serial) as progress:
                placed = place_model(machine, model, progress=progress)
            for job in plan(machine, placed):
                subject = Subject(machine, device, spec.name, job)
                tell = partial(listener.iteration, {**job.tests, **energy_tests(job.tests)})
                outcome = run_job(subject, request.workload, job_settings, progress=tell, note=listener.note)
                if outcome.record is not None:
                    yield outcome.record
                if outcome.ended_by is not None:
                    raise outcome.ended_by


@contextmanager
def _opened(request: BenchRequest, spec: RunnerSpec, listener: BenchListener, serial: str) -> Iterator[LocalModel]:
    """Open the model; a bundle is exported for a runner that does not take bundles."""
    with listener.pushing(serial) as progress:
        model = open_model(request.model, request.size, progress=progress)
    if model.manifest is None or "bundle" in spec.takes:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="gemma-edge-bench-") as scratch:
        listener.note(f"exporting {request.model} as one {LITERTLM} for {spec.name}")
        yield exported_model(model, Path(scratch))


def _job_settings(
    settings: BenchSettings, machine: Machine, device: DeviceRecord, listener: BenchListener
) -> JobSettings:
    """The settings for all jobs; the temperature at rest is read before any job can warm the machine."""
    readiness = settings.readiness
    if readiness.limit_celsius is None:
        limit = resting_limit(machine, listener.note, timeout_s=readiness.timeout_s)
        readiness = replace(readiness, limit_celsius=limit)
    default_s = _PHONE_COOL_DOWN_S if _is_phone(device) else 0.0
    return JobSettings(
        repetitions=settings.repetitions,
        readiness=readiness,
        cool_down_s=default_s if settings.cool_down_s is None else settings.cool_down_s,
        interval_s=settings.interval_s,
        folder=machine.cache_folder,
        power=find_power_source(machine),
        idle_s=settings.idle_s,
        trace_folder=settings.trace_folder,
        page_cache=place_page_cache(machine, listener.note) if settings.drop_page_cache else None,
    )
