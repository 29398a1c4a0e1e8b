"""``gemma-edge bench``: measures a model on a device, or on this computer."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from device_harness.bench.bench import BenchSettings, Subject, run_job
from device_harness.bench.gates import ON_LOW_POWER, GateSettings, prepared_device, resting_limit
from device_harness.bench.placement import LITERTLM, exported_model, place_model
from device_harness.bench.sampler import DEFAULT_INTERVAL_S
from device_harness.bench.state import LOW_BATTERY_PERCENT, read_device
from device_harness.flash.page_cache import PageCache, place_page_cache
from device_harness.machines.device import connected_device
from device_harness.machines.host import Host
from device_harness.machines.machine import Machine
from device_harness.programs.build import FLASH_PROBE
from device_harness.push.push import DEFAULT_FOLDER
from device_harness.runners.benchmark_model.runner import BenchmarkModelRunner
from device_harness.runners.flash_probe.runner import FlashProbeRunner
from device_harness.runners.interface import Job, PlacedModel, Runner, Workload
from device_harness.runners.litert_lm.runner import LiteRtLmPythonRunner, LiteRtLmRunner, Program
from device_harness.runners.session.runner import SessionRunner
from gemma_edge.commands.push import step_bars
from gemma_edge.options.programs import (
    PROGRAMS,
    add_program_options,
    program_path,
    refuse_program_options,
    require_program,
)
from gemma_edge.options.session import number, positive
from gemma_edge.terminal import Terminal
from toolkit.base.errors import UsageError
from toolkit.bundle.manifest_json import read_manifest
from toolkit.report.bench_table import bench_table
from toolkit.report.tables import FORMS, Form
from toolkit.results.json_lines import ResultsWriter, open_results
from toolkit.results.quantities import quantity
from toolkit.results.record import BenchRecord, DeviceRecord, Figures

EXAMPLES = (
    "gemma-edge bench BUNDLE --host",
    "gemma-edge bench model.litertlm --binary-version latest -p 512 -n 128 -r 10 --results results.jsonl",
    "gemma-edge bench model.litertlm --binary litert_lm_advanced_main --backend gpu --cold",
    "gemma-edge bench BUNDLE --device BOARD:5555",
    "gemma-edge bench BUNDLE --runner benchmark_model --binary-version 2.2.0 --signature 'text_decoder:*'",
)
BENCHMARK_MODEL = "benchmark_model"
LITERT_LM: Program = "litert_lm_advanced_main"
RUNNERS = ("session", "litert_lm_python", *PROGRAMS, FLASH_PROBE)
_COOL_DOWN_S = 5.0
_SHORTEST_S = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="BUNDLE|FILE", type=Path, help="a bundle's directory, or a .litertlm file")
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--device", metavar="SERIAL|HOST:PORT", help="where (default: ANDROID_SERIAL, else the only device)"
    )
    place.add_argument("--host", action="store_true", help="this computer, in a process of its own")
    parser.add_argument(
        "--runner", choices=RUNNERS,
        help="what runs the model: session (ours) or litert_lm_python (Google's engine), for which the machine needs "
        "Python with gemma-edge; or a program of Google's; flash_probe reads per-layer embeddings as gemma-edge probe "
        "does (default: session for a bundle, litert_lm_advanced_main for a .litertlm)",
    )  # fmt: skip
    _add_workload(parser)
    add_program_options(parser)
    _add_care(parser)
    output = parser.add_argument_group("results")
    output.add_argument("-o", "--output", choices=FORMS, default="md", help="how they are printed (default: md)")
    output.add_argument(
        "--results", metavar="FILE", type=Path,
        help="append the whole records, with each iteration and sample, to a file of JSON lines",
    )  # fmt: skip
    output.add_argument("--drop-torn-line", action="store_true", help="remove what a crash left of FILE's last line")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument("-p", "--prompt-tokens", metavar="N", type=positive, default=512, help="default: 512")
    group.add_argument("-n", "--generated-tokens", metavar="N", type=positive, default=128, help="default: 128")
    group.add_argument("-r", "--repetitions", metavar="N", type=positive, default=5, help="processes (default: 5)")
    group.add_argument(
        "--cold", action="store_true",
        help="remove the runner's weight cache before each iteration (default: kept, and filled by an unmeasured run)",
    )  # fmt: skip
    group.add_argument(
        "--drop-page-cache", action="store_true",
        help="with --cold: take the model's files out of the kernel's page cache too, and record what stayed",
    )  # fmt: skip
    group.add_argument(
        "--context", metavar="N", type=positive,
        help="positions that the engine is told to make room for (default: the model's own number)",
    )  # fmt: skip
    group.add_argument("--size", metavar="NAME", help="one of the bundle's sizes (default: its own default)")
    group.add_argument("--backend", choices=("cpu", "gpu", "npu"), default="cpu", help="default: cpu")
    group.add_argument("--threads", metavar="N", type=positive, help="CPU threads (default: the runner's choice)")
    group.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=600.0,
        help="a process that takes longer is killed (default: 600)",
    )


def _add_care(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the device's state")
    group.add_argument(
        "--max-celsius", metavar="C", type=number,
        help="wait before each iteration until skin (else battery, else CPU) is no hotter (default: 2 above rest)",
    )  # fmt: skip
    group.add_argument(
        "--gate-timeout", metavar="S", type=_seconds, default=300.0, help="wait no longer (default: 300)"
    )
    group.add_argument("--refuse-hot", action="store_true", help="a device still hot then is an error, not a flag")
    group.add_argument(
        "--min-battery", metavar="PERCENT", type=_percent, default=LOW_BATTERY_PERCENT,
        help="a battery below it is low (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--on-low-power", choices=ON_LOW_POWER, default="flag",
        help="before an iteration with a low battery, or while the device saves power: flag the results, wait up to "
        "--gate-timeout and then flag them, or refuse (default: flag)",
    )  # fmt: skip
    group.add_argument(
        "--cool-down", metavar="S", type=_seconds, help="pause between iterations (default: 5; here and emulated: 0)"
    )
    group.add_argument("--stay-awake", action="store_true", help="keep the screen on meanwhile; put back afterwards")
    group.add_argument("--airplane-mode", action="store_true", help="radios off meanwhile; put back afterwards")
    group.add_argument(
        "--interval", metavar="S", type=_interval, default=DEFAULT_INTERVAL_S,
        help="between samples of memory (default: %(default)s)",
    )  # fmt: skip


def _seconds(text: str) -> float:
    """From 0."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {text}, wanted seconds")
    return value


def _percent(text: str) -> float:
    """0: no battery is low."""
    value = number(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"found {text}, wanted 0 to 100")
    return value


def _interval(text: str) -> float:
    """Shorter ones would measure the sampler."""
    value = number(text)
    if value < _SHORTEST_S:
        raise argparse.ArgumentTypeError(f"found {text}, wanted at least {_SHORTEST_S} seconds")
    return value


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0; what was measured before an interrupt or a fault is kept and printed first."""
    name = runner_name(arguments)
    if arguments.drop_page_cache and not arguments.cold:
        raise UsageError("--drop-page-cache", found="a warm start", wanted="it with --cold")
    records: list[BenchRecord] = []
    kept = results_writer(arguments.results, drop_torn_line=arguments.drop_torn_line)
    with kept as writer, opened_machine(arguments) as machine:
        try:
            for record in measured(arguments, name, machine, terminal):
                records.append(record)
                if writer is not None:
                    writer.append(record)
        finally:
            if records:
                _print(records, arguments.output, terminal)
    if writer is None:
        terminal.note("not kept; --results FILE appends each iteration and sample to a file for gemma-edge report")
    return 0


def measured(arguments: argparse.Namespace, name: str, machine: Machine, terminal: Terminal) -> Iterator[BenchRecord]:
    """A record for each job of the runner; then what ended the last one early, if something did, is raised."""
    workload = Workload(
        prompt_tokens=arguments.prompt_tokens,
        generated_tokens=arguments.generated_tokens,
        start="cold" if arguments.cold else "warm",
        backend=arguments.backend,
        threads=arguments.threads,
        context=arguments.context,
        timeout_s=arguments.timeout,
    )
    with prepared_device(machine, stay_awake=arguments.stay_awake, airplane_mode=arguments.airplane_mode):
        device = read_device(machine)
        if device.emulated:
            terminal.note(f"{machine.serial} is emulated: speeds are this computer's")
        page_cache = place_page_cache(machine, terminal.note) if arguments.drop_page_cache else None
        settings = _settings(arguments, device, page_cache, _limit_celsius(arguments, machine, terminal))
        runner = make_runner(arguments, name, device, terminal)
        with _placed(arguments, runner, machine, workload, terminal) as model:
            for job in runner.jobs(machine, model, workload):
                tell = partial(tell_iteration, terminal, f"{machine.serial} {runner.name}", job)
                subject = Subject(machine, device, runner.name, job)
                outcome = run_job(subject, workload, settings, progress=tell, note=terminal.note)
                if outcome.record is not None:
                    yield outcome.record
                if outcome.ended_by is not None:
                    raise outcome.ended_by


def runner_name(arguments: argparse.Namespace) -> str:
    """What ``--runner`` names, or the model's kind asks for; UsageError for options that it does not have."""
    name: str = arguments.runner or (LITERT_LM if arguments.model.suffix == LITERTLM else "session")
    if name in PROGRAMS:
        require_program(arguments, name)
    else:
        refuse_program_options(arguments, name)
    if arguments.context is not None and name in (BENCHMARK_MODEL, FLASH_PROBE):
        raise UsageError("--context", found=arguments.context, wanted=f"none with {name}, which runs no conversation")
    return name


def make_runner(arguments: argparse.Namespace, name: str, device: DeviceRecord, terminal: Terminal) -> Runner:
    """A program of Google's is downloaded here if that is wanted, before anything large is pushed."""
    if name == FLASH_PROBE:
        return FlashProbeRunner()
    if name == "session":
        return SessionRunner()
    if name == "litert_lm_python":
        return LiteRtLmPythonRunner()
    binary = program_path(arguments, name, device, terminal)
    version, extra = arguments.binary_version, tuple(arguments.runner_arg)
    if name == BENCHMARK_MODEL:
        signatures = tuple(arguments.signature) or ("*",)
        return BenchmarkModelRunner(binary, signatures, version=version, extra=extra)
    program: Program = "litert_lm_main" if name == "litert_lm_main" else LITERT_LM
    return LiteRtLmRunner(binary, program, version=version, extra=extra)


@contextmanager
def opened_machine(arguments: argparse.Namespace) -> Iterator[Machine]:
    """``--host``, or the device that is meant."""
    if arguments.host:
        yield Host()
    else:
        with connected_device(arguments.device) as device:
            yield device


def _limit_celsius(arguments: argparse.Namespace, machine: Machine, terminal: Terminal) -> float | None:
    """Once for all jobs, and before anything of them has warmed the device."""
    if arguments.max_celsius is not None:
        limit: float = arguments.max_celsius
        return limit
    return resting_limit(machine, terminal.note, timeout_s=arguments.gate_timeout)


def _settings(
    arguments: argparse.Namespace, device: DeviceRecord, page_cache: PageCache | None, limit_celsius: float | None
) -> BenchSettings:
    is_phone = device.kind == "adb" and not device.emulated
    pause = arguments.cool_down
    return BenchSettings(
        repetitions=arguments.repetitions,
        gate=GateSettings(
            limit_celsius=limit_celsius,
            timeout_s=arguments.gate_timeout,
            refuses=arguments.refuse_hot,
            low_battery_percent=arguments.min_battery,
            on_low_power=arguments.on_low_power,
        ),
        cool_down_s=(_COOL_DOWN_S if is_phone else 0.0) if pause is None else pause,
        interval_s=arguments.interval,
        folder=DEFAULT_FOLDER,
        page_cache=page_cache,
    )


@contextmanager
def _placed(
    arguments: argparse.Namespace, runner: Runner, machine: Machine, workload: Workload, terminal: Terminal
) -> Iterator[PlacedModel]:
    """The model where it runs, once the runner has nothing against it; a bundle for one that takes none is exported."""
    path: Path = arguments.model
    size: str | None = arguments.size
    with tempfile.TemporaryDirectory(prefix="gemma-edge-bench-") as scratch:
        if path.is_dir() and "bundle" not in runner.takes:
            terminal.note(f"exporting {path} as one {LITERTLM} for {runner.name}")
            path, size = exported_model(path, Path(scratch), size), None
        elif path.suffix == LITERTLM and "litertlm" not in runner.takes:
            raise UsageError(str(path), found=f"a {LITERTLM}", wanted=f"a bundle's directory for {runner.name}")
        if path.is_dir() or path.suffix == LITERTLM:
            manifest = read_manifest(path) if path.is_dir() else None
            if manifest is not None:
                manifest.size(size)
            runner.require(path, manifest, workload)
        with step_bars(terminal, machine.serial) as progress:
            model = place_model(machine, path, size=size, progress=progress)
        yield model


@contextmanager
def results_writer(path: Path | None, *, drop_torn_line: bool = False) -> Iterator[ResultsWriter | None]:
    """Opened before anything is measured, so that nothing is measured in vain; None: nothing is kept."""
    if path is None:
        yield None
    else:
        with open_results(path, drop_torn_line=drop_torn_line) as writer:
            yield writer


def _print(records: Sequence[BenchRecord], form: Form, terminal: Terminal) -> None:
    if terminal.as_json:
        for row in json.loads(bench_table(records, "json")):
            terminal.result(row, "")
    else:
        terminal.result(None, bench_table(records, form))


def tell_iteration(terminal: Terminal, title: str, job: Job, done: int, total: int, figures: Figures | None) -> None:
    """A line for each iteration: a run may take minutes, and nobody should have to wait to see that it goes wrong."""
    if figures is None:
        return
    parts = [f"{test} {quantity(figure, figures[figure])}" for test, figure in job.tests.items() if figure in figures]
    terminal.note(f"{title} {done}/{total}: {', '.join(parts)}")
