"""The page's section on one run: its course over time, and where its figures come from."""

from __future__ import annotations

import shlex
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolkit.report.page import Cell, Table, plain_table, without_empty_columns
from toolkit.report.plots import Line, Panel, TimeSeries
from toolkit.report.run_card import ENERGY_SOURCES
from toolkit.results.figures import FigureName
from toolkit.results.labels import device_name, notes, threads_text
from toolkit.results.quantities import quantity
from toolkit.results.record import BenchRecord, ClusterRecord, StateRecord

_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's throttling status, by number (PowerManager, THERMAL_STATUS_*)."""

_TRACED: tuple[tuple[str, FigureName], ...] = (
    ("the process", "energy_joules"),
    ("the prompt", "prompt_joules"),
    ("a token of the answer", "decode_joules_per_token"),
)
_RESIDENT = "model_resident_bytes"
_TEMPERATURE: FigureName = "temperature_celsius"


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a file beside the page."""

    text: str
    target: str
    """A relative path, quoted for a URL."""


@dataclass(frozen=True, slots=True)
class RunSection:
    """The values for `run.html.jinja`; None or empty if the record has no such data."""

    key: str
    title: str
    flags: tuple[str, ...]
    course: TimeSeries | None
    temperature_sensor: str | None
    facts: tuple[tuple[str, str], ...]
    """Name and value pairs that describe the model, the runner and the settings."""
    trace: Link | None
    command: str
    device: tuple[tuple[str, str], ...]
    programs: Table | None
    clusters: Table | None
    """What the CPUs did during the iterations."""
    states: Table | None
    """The device's state before and after the run."""


def run_name(record: BenchRecord) -> str:
    """Model, runner, settings and device, in one line."""
    model = record.model
    parts = (model.name, model.size, model.quantization, record.runner, record.backend, record.start)
    return f"{' '.join(part for part in parts if part)} on {device_name(record)}"


def run_section(record: BenchRecord, title: str, key: str, folder: str) -> RunSection:
    """Everything that a reader needs to judge or repeat the run.

    `key`: the HTML id of its heading. `folder`: the folder of the results file, relative to the page.
    """
    has_states = record.state_before is not None or record.state_after is not None
    return RunSection(
        key=key,
        title=title,
        flags=notes(record),
        course=_time_series(record),
        temperature_sensor=record.samples.temperature_source if _TEMPERATURE in record.samples.columns else None,
        facts=tuple(_run_facts(record)),
        trace=_trace_link(record, folder),
        command=shlex.join(record.arguments),
        device=tuple(_device_facts(record)),
        programs=_binaries(record) if record.binaries else None,
        clusters=_clusters(record),
        states=_states(record.state_before, record.state_after) if has_states else None,
    )


def _trace_link(record: BenchRecord, folder: str) -> Link | None:
    trace = record.trace
    if trace is None or trace.file is None or trace.folder is None or trace.bytes is None:
        return None
    text = f"{trace.file} ({quantity('bytes', trace.bytes)})"
    return Link(text, urllib.parse.quote(f"{folder}/{trace.folder}/{trace.file}"))


def _time_series(record: BenchRecord) -> TimeSeries | None:
    """A plot of each test's tokens/s over time, above temperature and clock frequency; None if no times are known."""
    panels = []
    for test, figure in record.tests.items():
        measured = [
            ((item.begin_s + item.end_s) / 2, item.figures[figure])
            for item in record.iterations
            if figure in item.figures and item.begin_s is not None and item.end_s is not None
        ]
        if figure.endswith("tokens_per_s") and measured:
            times, values = [time for time, _ in measured], [value for _, value in measured]
            panels.append(Panel("tokens/s", {test: Line(times, values, dots=True)}, from_zero=True))
    if not panels:
        return None
    columns = record.samples.columns
    frequencies = {_cluster_name(item): item.frequency_hz for item in record.clusters or ()}
    if not any(any(values) for values in frequencies.values()):
        frequencies = {"CPU frequency": columns.get("cpu_frequency_hz", ())}
    sampled = (("°C", 1.0, {"temperature": columns.get(_TEMPERATURE, ())}), ("GHz", 1e-9, frequencies))
    for unit, factor, series in sampled:
        lines = {name: _line(columns.get("t_s", ()), values, factor) for name, values in series.items()}
        if found := {name: line for name, line in lines.items() if line is not None}:
            panels.append(Panel(unit, found))
    return TimeSeries("", panels)


def _line(times: Sequence[float | None], values: Sequence[float | None], factor: float) -> Line | None:
    """Sampled values as a line, without the times that have no value."""
    found = [
        (time, value * factor)
        for time, value in zip(times, values, strict=False)
        if time is not None and value is not None
    ]
    return Line([time for time, _ in found], [value for _, value in found]) if found else None


def _cluster_name(cluster: ClusterRecord) -> str:
    """The CPUs of a cluster, such as `CPUs 0-3` or `CPU 7`; its own name if none of them is known."""
    cpus = [core.cpu for core in cluster.cores]
    if not cpus:
        return cluster.name
    if len(cpus) == 1:
        return f"CPU {cpus[0]}"
    is_range = cpus == list(range(cpus[0], cpus[-1] + 1))
    return f"CPUs {cpus[0]}-{cpus[-1]}" if is_range else f"CPUs {', '.join(map(str, cpus))}"


def _clusters(record: BenchRecord) -> Table | None:
    """What each cluster of CPUs did while the runner's processes ran."""
    rows = []
    for cluster in record.clusters or ():
        frequencies = sorted(value for value in cluster.frequency_hz if value is not None)
        idle = [core.idle_fraction for core in cluster.cores if core.idle_fraction is not None]
        ran = [f"{core.cpu}: {quantity('s', core.process_s)}" for core in cluster.cores if core.process_s]
        low, middle, high = (frequencies[i] for i in (0, len(frequencies) // 2, -1)) if frequencies else (None,) * 3
        rows.append(
            [
                Cell(_cluster_name(cluster)),
                Cell(cluster.governor or "-"),
                *(Cell("-" if value is None else quantity("hz", value), numeric=True) for value in (low, middle, high)),
                Cell(f"{sum(idle) / len(idle):.0%}" if idle else "-", numeric=True),
                Cell(", ".join(ran) or "-"),
            ]
        )
    headings = ["cluster", "governor", "lowest", "median", "highest", "idle", "CPU time of the runner by core"]
    return without_empty_columns(plain_table(headings, rows)) if rows else None


def _run_facts(record: BenchRecord) -> Iterator[tuple[str, str]]:
    model, memory = record.model, record.memory
    size = f", size {model.size}" if model.size else ""
    quant = f", {model.quantization}" if model.quantization else ""
    yield "model", f"{model.name} ({model.kind}{size}{quant}, {quantity('bytes', model.bytes)})"
    yield "sha256 of the model", model.sha256
    threads = threads_text(record) or "its own choice of threads"
    yield "ran", f"{record.runner}, {record.backend}, {threads}, {record.start} start, by {record.tool}"
    waits = sum(item.gate_wait_s for item in record.iterations)
    gates = f", {quantity('s', waits)} of it at the thermal gate" if waits else ""
    yield "when", f"{record.started_utc}, for {quantity('s', record.seconds)}{gates}"
    yield "iterations", str(len(record.iterations))
    if record.context is not None:
        yield "context", f"{record.context:,} positions"
    if record.delegation is not None:
        yield "delegation", f"{record.delegation.text or 'unknown'} ({record.delegation.source})"
    resident = [item.figures[_RESIDENT] for item in record.iterations if _RESIDENT in item.figures]
    if resident:
        most = quantity("bytes", max(resident)) if any(resident) else "nothing"
        yield "page cache", f"the model was dropped from it before each iteration; {most} remained"
    statuses = [item.thermal_status for item in record.iterations if item.thermal_status is not None]
    if statuses:
        yield "worst throttling", _THERMAL[max(statuses)]
    if record.trace is not None and record.trace.unavailable is not None:
        yield "trace", f"unavailable: {record.trace.unavailable}"
    if record.fault is not None:
        yield "ended early by", record.fault
    yield from _energy_facts(record)
    yield from _trace_energy_facts(record)
    if memory.major_faults_count is not None:
        yield "major page faults", quantity("faults_count", memory.major_faults_count)
    if memory.read_bytes is not None:
        yield "read from storage", quantity("bytes", memory.read_bytes)


def _trace_energy_facts(record: BenchRecord) -> Iterator[tuple[str, str]]:
    energy = None if record.trace is None else record.trace.energy
    if energy is None:
        return
    if energy.unavailable is not None:
        yield "energy in the trace", f"unavailable: {energy.unavailable}"
    parts = [f"{word} {quantity(name, energy.figures[name])}" for word, name in _TRACED if name in energy.figures]
    if parts:
        yield "energy of the traced run", ", ".join(parts)
    if energy.rails_joules:
        yield "power rails in the trace", _rails_text(energy.rails_joules)


def _rails_text(rails_joules: Mapping[str, float]) -> str:
    """The energy by rail; the rails that used most come first."""
    rails = sorted(rails_joules.items(), key=lambda rail: -rail[1])
    return ", ".join(f"{name} {quantity('joules', joules)}" for name, joules in rails)


def _energy_facts(record: BenchRecord) -> Iterator[tuple[str, str]]:
    energy = record.energy
    if energy is None:
        return
    if energy.source != "none":
        yield "energy from", ENERGY_SOURCES[energy.source]
    if energy.unavailable is not None:
        yield "energy", f"unavailable: {energy.unavailable}"
    if energy.idle_watts is not None and energy.idle_s is not None:
        yield "power at rest", f"{quantity('idle_watts', energy.idle_watts)}, over {quantity('s', energy.idle_s)}"
    if energy.rails_joules:
        yield "power rails", _rails_text(energy.rails_joules)
    if energy.check is not None:
        measured, counted = (
            quantity("joules", value) for value in (energy.check.measured_joules, energy.check.counted_joules)
        )
        word = "agrees" if energy.check.agrees else "DISAGREES"
        yield "energy check", f"{measured} measured {word} with {counted} that the battery counted"


def _device_facts(record: BenchRecord) -> Iterator[tuple[str, str]]:
    device = record.device
    where = "over adb" if device.kind == "adb" else "this computer"
    yield "device", f"{device_name(record)} ({where}{', EMULATED' if device.emulated else ''})"
    known = {
        "build": device.fingerprint,
        "system": device.os_version,
        "kernel": device.kernel,
        "ABI": device.abi,
        "SoC": device.soc,
        "CPUs": str(device.cpus),
        "memory": None if device.memory_bytes is None else quantity("bytes", device.memory_bytes),
    }
    for name, value in known.items():
        yield name, value if value else "unknown"


def _binaries(record: BenchRecord) -> Table:
    rows = [
        [
            Cell(item.name),
            Cell(item.version or "-"),
            Cell(quantity("bytes", item.bytes), numeric=True),
            Cell(item.sha256),
        ]
        for item in record.binaries
    ]
    return plain_table(["program and libraries", "version", "size", "sha256"], rows)


def _states(before: StateRecord | None, after: StateRecord | None) -> Table:
    """The device's state before and after the run, side by side, with dashes for values that could not be read."""
    columns = [{} if state is None else dict(_state_facts(state)) for state in (before, after)]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[Cell(name), *(Cell(column.get(name, "-")) for column in columns)] for name in names]
    return plain_table(["state of the device", "before", "after"], rows)


def _state_facts(state: StateRecord) -> Iterator[tuple[str, str]]:
    thermal, battery = state.thermal, state.battery
    if thermal is not None:
        status = "unknown" if thermal.status is None else _THERMAL[thermal.status]
        yield "throttling", f"{status} (source: {thermal.source})"
        sensors = (f"{item.name} {item.celsius:.1f} °C" for item in thermal.temperatures)
        yield "sensors", ", ".join(sensors) or "-"
    if battery is not None:
        level = None if battery.level_percent is None else f"{battery.level_percent:.0f} %"
        heat = None if battery.temperature_celsius is None else f"{battery.temperature_celsius:.1f} °C"
        power = f"on {', '.join(battery.powered_by)}" if battery.powered_by else None
        yield "battery", ", ".join(text for text in (battery.status, level, heat, power) if text)
    governors = dict.fromkeys(cpu.governor for cpu in state.cpus if cpu.governor)
    yield "governors", ", ".join(governors) or "-"
    yield "CPU limits", _limits(state)
    for name, value in (
        ("screen on", state.screen_on),
        ("airplane mode", state.airplane_mode),
        ("power save", state.power_save),
    ):
        yield name, "unknown" if value is None else ("yes" if value else "no")
    yield "load of the last minute", "unknown" if state.load_1min is None else f"{state.load_1min:.2f}"


def _limits(state: StateRecord) -> str:
    """Each CPU's frequency limit and maximum; equal CPUs are counted together."""
    texts: dict[str, int] = {}
    for cpu in state.cpus:
        if cpu.limit_hz is not None and cpu.maximum_hz is not None:
            text = f"{quantity('hz', cpu.limit_hz)} of {quantity('hz', cpu.maximum_hz)}"
            texts[text] = texts.get(text, 0) + 1
    return ", ".join(f"{count} x {text}" for text, count in texts.items()) or "-"
