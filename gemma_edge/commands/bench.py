"""`gemma-edge bench`: measures a model on a device, or on this computer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from device_harness.bench.power import DEFAULT_IDLE_S
from device_harness.bench.readiness import ON_LOW_POWER, ReadinessSettings
from device_harness.bench.run import BenchRequest, BenchSettings
from device_harness.bench.sampler import DEFAULT_INTERVAL_S
from device_harness.bench.state import LOW_BATTERY_PERCENT
from device_harness.runners import ALL
from device_harness.runners.interface import GENERATED_TOKENS, PROMPT_TOKENS, Workload
from device_harness.runners.spec import RunnerOption
from gemma_edge.api.bench import bench_records, trace_folder
from gemma_edge.api.bench_devices import BenchFailure, bench_each
from gemma_edge.api.devices import chosen_devices
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.session import number, positive, positive_seconds, seconds
from gemma_edge.options.unused import refuse_unused
from gemma_edge.terminal import Terminal
from gemma_edge.words.benchmarks import TerminalListener
from gemma_edge.words.wide_tables import fitted
from toolkit.base.errors import UsageError
from toolkit.report.bench_table import bench_table
from toolkit.report.tables import FORMS, Form
from toolkit.results.record import BenchRecord

EXAMPLES = (
    "gemma-edge bench BUNDLE --host",
    "gemma-edge bench model.litertlm --host -p 64,512 --format jsonl",
    "gemma-edge bench model.litertlm --binary-version latest -p 512 -n 128 -r 10 --results results.jsonl",
    "gemma-edge bench model.litertlm --binary litert_lm_advanced_main --backend gpu --cold",
    "gemma-edge bench BUNDLE --device PHONE",
    "gemma-edge bench BUNDLE --device BOARD:5555 --runner session",
    "gemma-edge bench model.litertlm --binary-version latest --device all --results results.jsonl",
    "gemma-edge bench BUNDLE --runner benchmark_model --binary-version 2.2.0 --signature 'text_decoder:*'",
)
_SHORTEST_S = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="BUNDLE|FILE", type=Path, help="a bundle directory, or a .litertlm file")
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--device",
        metavar="SERIAL|HOST:PORT",
        action="append",
        default=[],
        help="the device to measure on; may be repeated, or all, to measure several at the same time (default: "
        "ANDROID_SERIAL, else the only device)",
    )
    place.add_argument("--host", action="store_true", help="measure on this computer, in a separate process")
    parser.add_argument(
        "--runner", choices=[spec.name for spec in ALL], help=f"the program that runs the model: {_runners_help()}"
    )
    _add_workload(parser)
    _add_runner_options(parser)
    _add_care(parser)
    output = parser.add_argument_group("results")
    forms = output.add_mutually_exclusive_group()
    forms.add_argument("--format", choices=FORMS, help="the format of the printed results (default: md)")
    forms.add_argument("-o", "--output", metavar="FORMAT", type=_old_format, help="the former name of --format")
    output.add_argument(
        "--results", metavar="FILE", type=Path,
        help="append the full records, with every iteration and sample, to a file of JSON lines",
    )  # fmt: skip
    output.add_argument(
        "--trace", action="store_true",
        help="also record a Perfetto trace of one extra, unmeasured run, in a folder beside FILE, if the device has "
        "perfetto",
    )  # fmt: skip
    output.add_argument(
        "--drop-torn-line", action="store_true", help="remove an incomplete last line left in FILE by a crash"
    )
    add_force_option(output, "FILE if it is not a results file")


def _old_format(text: str) -> str:
    """What -o meant before --format; everywhere else it is a path."""
    if text not in FORMS:
        remedy = "--format chooses how results are printed, --results FILE keeps the records"
        raise UsageError(found=text, wanted=" or ".join(FORMS), remedy=remedy)
    return text


def _runners_help() -> str:
    """A description of each runner, with the kind of model for which it is the default."""
    kinds = {"bundle": "a bundle", "litertlm": "a .litertlm"}
    parts = []
    for spec in ALL:
        phones = [f"{kinds[kind]} on a phone" for kind in spec.default_on_phones]
        defaults = " and ".join([*(kinds[kind] for kind in spec.default_for), *phones])
        parts.append(f"{spec.name} ({spec.about}{f'; the default for {defaults}' if defaults else ''})")
    return ", ".join(parts)


def _add_runner_options(parser: argparse.ArgumentParser) -> None:
    """Add the runners' own options, in a group for each set of runners that share them."""
    groups: dict[str, list[RunnerOption]] = {}
    for option in _runner_options():
        owners = " and ".join(spec.name for spec in ALL if option in spec.options)
        groups.setdefault(owners, []).append(option)
    for owners, options in groups.items():
        group = parser.add_argument_group(f"options of {owners}")
        for option in options:
            action = "append" if option.repeats else "store"
            group.add_argument(option.flag, metavar=option.metavar, action=action, help=option.help)


def _runner_options() -> list[RunnerOption]:
    """The options of all runners, each only once."""
    return list(dict.fromkeys(option for spec in ALL for option in spec.options))


def _given_options(arguments: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """The runners' own options that were given, by name."""
    given: dict[str, tuple[str, ...]] = {}
    for option in _runner_options():
        value: str | list[str] | None = getattr(arguments, option.name)
        if value:
            given[option.name] = tuple(value) if option.repeats else (str(value),)
    return given


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "-p", "--prompt-tokens", metavar="N[,N...]", type=_counts,
        help=f"length of the prompt in tokens (default: {PROMPT_TOKENS}); several lengths are measured one after the "
        "other",
    )  # fmt: skip
    group.add_argument(
        "-n", "--generated-tokens", metavar="N[,N...]", type=_counts,
        help=f"tokens to generate (default: {GENERATED_TOKENS}); each of several numbers is measured with each prompt "
        "length",
    )  # fmt: skip
    group.add_argument(
        "-r", "--repetitions", metavar="N", type=positive, default=5,
        help="iterations, each in a new process (default: 5)",
    )  # fmt: skip
    group.add_argument(
        "--cold", action="store_true",
        help="remove the runner's weight cache before each iteration (default: keep it, filled by an unmeasured run)",
    )  # fmt: skip
    group.add_argument(
        "--drop-page-cache", action="store_true",
        help="with --cold: also remove the model's files from the kernel's page cache, and record how much stayed",
    )  # fmt: skip
    group.add_argument(
        "--context", metavar="N", type=positive,
        help="context length in tokens that the engine is told to allocate (default: the model's own)",
    )  # fmt: skip
    group.add_argument("--size", metavar="NAME", help="one of the bundle's sizes (default: the bundle's default size)")
    group.add_argument(
        "--backend",
        choices=("cpu", "gpu", "npu"),
        default="cpu",
        help="the processor that runs the model (default: cpu)",
    )
    group.add_argument("--threads", metavar="N", type=positive, help="CPU threads (default: the runner's choice)")
    group.add_argument(
        "--timeout",
        metavar="S",
        type=positive_seconds,
        default=600.0,
        help="kill a process that takes longer (default: 600)",
    )


def _add_care(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the device's state")
    group.add_argument(
        "--max-celsius", metavar="C", type=number,
        help="before each iteration, wait until the skin sensor (else battery, else CPU) is no hotter than this "
        "many degrees (default: 2 degrees above its temperature at rest)",
    )  # fmt: skip
    group.add_argument(
        "--gate-timeout", metavar="S", type=seconds, default=300.0, help="wait at most so many seconds (default: 300)"
    )
    group.add_argument(
        "--refuse-hot",
        action="store_true",
        help="fail if the device is still too hot then, instead of flagging the results",
    )
    group.add_argument(
        "--min-battery", metavar="PERCENT", type=_percent, default=LOW_BATTERY_PERCENT,
        help="a battery charged to less than this counts as low (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--on-low-power", choices=ON_LOW_POWER, default="flag",
        help="if the battery is low or the device saves power before an iteration: flag the results, wait up to "
        "--gate-timeout and then flag them, or fail (default: flag)",
    )  # fmt: skip
    group.add_argument(
        "--cool-down",
        metavar="S",
        type=seconds,
        help="pause between iterations (default: 5; with --host or an emulated device 0)",
    )
    group.add_argument(
        "--stay-awake", action="store_true", help="keep the screen on during the run, and restore it afterwards"
    )
    group.add_argument(
        "--airplane-mode", action="store_true", help="switch radios off during the run, and restore them afterwards"
    )
    group.add_argument(
        "--interval", metavar="S", type=_interval, default=DEFAULT_INTERVAL_S,
        help="seconds between samples of memory, frequencies and power (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--idle-seconds", metavar="S", type=seconds, default=DEFAULT_IDLE_S,
        help="first measure the power of the device at rest for so many seconds, if it reports its power; 0: skip this "
        "(default: %(default)g)",
    )  # fmt: skip


def _counts(text: str) -> tuple[int, ...]:
    """Numbers of tokens, separated by commas, each once."""
    counts = tuple(positive(part.strip()) for part in text.split(","))
    if len(set(counts)) < len(counts):
        raise UsageError(found=text, wanted="each number once")
    return counts


def _percent(text: str) -> float:
    """A percentage; 0 means that no battery counts as low."""
    value = number(text)
    if not 0 <= value <= 100:
        raise UsageError(found=text, wanted="0 to 100")
    return value


def _interval(text: str) -> float:
    """An interval in seconds; much shorter ones would mostly measure the sampler itself."""
    value = seconds(text)
    if value < _SHORTEST_S:
        raise UsageError(found=text, wanted=f"at least {_SHORTEST_S} seconds")
    return value


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0, or raise the error of the first device that failed, once all have ended.

    An interrupt comes after the results so far are printed.
    """
    form: Form = arguments.output or arguments.format or "md"
    without_file = arguments.results is None
    refuse_unused("--drop-torn-line", arguments.drop_torn_line and without_file, "without --results")
    refuse_unused("--force", arguments.force and without_file, "without --results")
    refuse_unused(f"--format {form}", terminal.as_json and (arguments.output or arguments.format), "with --json")
    if arguments.output:
        terminal.note(f"-o {form} is the former name of --format {form}")
    records: list[BenchRecord] = []
    failures: list[BenchFailure] = []
    devices = chosen_devices(arguments.device, terminal.warn)
    try:
        for found in _measure(arguments, devices, terminal):
            if isinstance(found, BenchFailure):
                failures.append(found)
                terminal.warn(f"{found.device} failed, the others continue: {found.error}")
            elif terminal.as_json or form == "jsonl":  # line by line, as they come
                _print_lines(found, terminal)
            else:
                records.append(found)
    finally:
        if records:
            terminal.say(bench_table(records, form, fitted))
    if without_file:
        terminal.note(
            "results not kept; --results FILE appends every iteration and sample to FILE for gemma-edge report"
        )
    if failures:
        raise failures[0].error
    return 0


def _measure(
    arguments: argparse.Namespace, devices: Sequence[str], terminal: Terminal
) -> Iterator[BenchRecord | BenchFailure]:
    """Measure all lengths in turn; with several devices, stop after a length that failed on one of them."""
    workloads = _workloads(arguments)
    for place, workload in enumerate(workloads, 1):
        failed = False
        later = workloads[1:] if place == 1 else ()  # the first one judges them all
        for found in _measure_one(arguments, workload, later, devices, terminal):
            failed |= isinstance(found, BenchFailure)
            yield found
        if failed:
            return


def _measure_one(
    arguments: argparse.Namespace,
    workload: Workload,
    later: Sequence[Workload],
    devices: Sequence[str],
    terminal: Terminal,
) -> Iterator[BenchRecord | BenchFailure]:
    """Measure one device in this process, several each in a process of its own."""
    options = _given_options(arguments)
    lengths_given = arguments.prompt_tokens is not None or arguments.generated_tokens is not None
    request = BenchRequest(
        arguments.model, arguments.runner, options, arguments.size, workload, lengths_given, tuple(later)
    )
    settings = _settings(arguments)
    if len(devices) > 1:
        yield from bench_each(
            request,
            settings,
            devices,
            results=arguments.results,
            drop_torn_line=arguments.drop_torn_line,
            force=arguments.force,
            listener=lambda device, spec: TerminalListener(terminal, f"{device} {spec.name}"),
        )
        return
    yield from bench_records(
        request,
        settings,
        device=devices[0] if devices else None,
        host=arguments.host,
        results=arguments.results,
        drop_torn_line=arguments.drop_torn_line,
        force=arguments.force,
        listener=lambda machine, spec: TerminalListener(terminal, f"{machine.serial} {spec.name}"),
    )


def _workloads(arguments: argparse.Namespace) -> list[Workload]:
    return [
        Workload(
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            start="cold" if arguments.cold else "warm",
            backend=arguments.backend,
            threads=arguments.threads,
            context=arguments.context,
            timeout_s=arguments.timeout,
        )
        for prompt_tokens, generated_tokens in product(
            arguments.prompt_tokens or (PROMPT_TOKENS,), arguments.generated_tokens or (GENERATED_TOKENS,)
        )
    ]


def _settings(arguments: argparse.Namespace) -> BenchSettings:
    return BenchSettings(
        repetitions=arguments.repetitions,
        readiness=ReadinessSettings(
            limit_celsius=arguments.max_celsius,
            timeout_s=arguments.gate_timeout,
            refuses=arguments.refuse_hot,
            low_battery_percent=arguments.min_battery,
            on_low_power=arguments.on_low_power,
        ),
        cool_down_s=arguments.cool_down,
        interval_s=arguments.interval,
        idle_s=arguments.idle_seconds,
        trace_folder=trace_folder(arguments.results) if arguments.trace else None,
        drop_page_cache=arguments.drop_page_cache,
        stay_awake=arguments.stay_awake,
        airplane_mode=arguments.airplane_mode,
    )


def _print_lines(record: BenchRecord, terminal: Terminal) -> None:
    for line in bench_table([record], "jsonl").splitlines():
        terminal.result(json.loads(line), line)
