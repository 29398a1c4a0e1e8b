"""Measures energy: finds what a machine reports, and computes joules from samples, or says why there are none.

Power rails count the energy of the chip's parts, whatever powers the device. A battery's current and voltage tell the
power of the whole device, while it discharges. docs/energy.md says what devices print, and where that is documented.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from device_harness.bench.process import ProcessRun
from device_harness.bench.sampler import MachineReading, Watched
from device_harness.bench.state import read_parts
from device_harness.machines.machine import Machine
from device_harness.parsers.perfetto import RailsReading
from device_harness.parsers.power import (
    BatteryReading,
    battery_folders,
    parse_battery_service,
    parse_energy_meter,
    parse_files,
    parse_listed_rails,
    parse_rails,
    parse_supply,
)
from toolkit.results.figures import FigureName
from toolkit.results.record import EnergyCheck, EnergyRecord, EnergySource, Figures, TraceEnergy

METER_COMMAND = "dumpsys android.hardware.power.stats.IPowerStats/default"
BATTERY_COMMAND = "dumpsys battery"
_RAILS = "/sys/bus/iio/devices/iio:device*/energy_value"
_SUPPLY_FILES = ("status", "voltage_now", "current_now", "power_now", "charge_now", "charge_counter", "energy_now")
_LOOK = {
    "rails": f"grep -sH . {_RAILS}",
    "meter": METER_COMMAND,
    "listed": "dumpsys powerstats",
    "supplies": "cd /sys/class/power_supply && for s in *; do for f in type scope present "
    + " ".join(_SUPPLY_FILES)
    + "; do grep -sH . /sys/class/power_supply/$s/$f; done; done",
    "battery": BATTERY_COMMAND,
}
_NAMES: Mapping[str, tuple[FigureName, FigureName]] = {
    "energy": ("energy_joules", "idle_joules"),
    "prompt": ("prompt_joules", "prompt_idle_joules"),
    "decode": ("decode_joules", "decode_idle_joules"),
}
"""The figures for the energy used in a phase, and for what the machine at rest would have used in the same time."""
_SPOKEN = {"prompt": "the prompt", "decode": "the answer"}
DEFAULT_IDLE_S = 5.0
_PLAUSIBLE_VOLTS = (2.0, 60.0)
"""From a phone's empty cell to a laptop's battery; a value outside is in another unit than expected."""
MIN_READINGS = 3
"""The fewest different readings within a phase: with fewer, its energy would depend on when a counter was updated."""
_LOCATED = 0.1
"""A phase is measured if its begin and end are known to within this fraction of its length."""
_AGREEMENT = 0.25
"""How far charge times voltage may be from integrated power; fuel gauges average over seconds."""
_STEPS = 10
"""A counter that has made fewer steps is too coarse to check with."""


@dataclass(frozen=True, slots=True)
class PowerSource:
    """Where a machine's energy is read; `reason` says why it is not, if `kind` is none."""

    kind: EnergySource
    watched: Watched = field(default_factory=Watched)
    reason: str = ""


NO_SOURCE = PowerSource("none", reason="not asked for")


@dataclass(frozen=True, slots=True)
class _Curve:
    """Energy used since some moment: joules at ascending times."""

    times: tuple[float, ...]
    joules: tuple[float, ...]

    def at(self, time: float) -> float:
        right = min(max(bisect.bisect_left(self.times, time), 1), len(self.times) - 1)
        begin, end = self.times[right - 1], self.times[right]
        share = (time - begin) / (end - begin) if end > begin else 0.0
        return self.joules[right - 1] + share * (self.joules[right] - self.joules[right - 1])

    def within(self, begin: float, end: float) -> int:
        """The number of different readings from `begin` to `end`."""
        return len({value for time, value in zip(self.times, self.joules, strict=True) if begin <= time <= end})


class _Unavailable(Exception):
    """The reason why there is no energy."""


def find_power_source(machine: Machine) -> PowerSource:
    """Find what reports a machine's energy: power rails, else a discharging battery, else the reason for neither."""
    return choose_source(read_parts(machine, _LOOK))


def choose_source(parts: Mapping[str, str]) -> PowerSource:
    """Choose from what the machine printed for each command, by the command's name."""
    supplies = parse_files(parts["supplies"])
    folder = next(iter(battery_folders(supplies)), None)
    battery = None if folder is None else parse_supply(supplies, folder)
    files = tuple(path for path in supplies if folder is not None and path.rpartition("/")[0] == folder)
    files = tuple(path for path in files if path.rpartition("/")[2] in _SUPPLY_FILES)
    rails = parse_files(parts["rails"])
    if parse_rails(rails):
        return PowerSource("odpm", Watched((*rails, *files)))
    if parse_energy_meter(parts["meter"]):
        return PowerSource("power_stats_hal", Watched(files, METER_COMMAND))
    listed = parse_listed_rails(parts["listed"])
    hidden = f"; {len(listed)} power rails are listed, but adb's shell may not read their energy" if listed else ""
    service = parse_battery_service(parts["battery"])
    found = battery or service
    if found is None:
        return PowerSource("none", reason=f"no power rails, and no battery{hidden}")
    if (reason := _unfit(found)) is not None:
        return PowerSource("none", reason=f"{reason}{hidden}")
    if battery is not None and (battery.watts or (battery.amperes and battery.volts)):
        return PowerSource("battery_power", Watched(files))
    if battery is not None and (battery.joules is not None or battery.coulombs is not None):
        return PowerSource("battery_charge", Watched(files))
    if service is not None and service.coulombs is not None:
        return PowerSource("battery_charge", Watched((), BATTERY_COMMAND))
    return PowerSource("none", reason=f"the battery reports neither current nor charge{hidden}")


def energy_tests(tests: Mapping[str, FigureName]) -> dict[str, FigureName]:
    """The tests of energy beside those of rates: `pp512:energy` is a prompt's joules, `tg128:energy` those of a token.

    >>> energy_tests({"pp8": "prefill_tokens_per_s", "tg4": "decode_tokens_per_s", "init": "init_s"})
    {'pp8:energy': 'prompt_joules', 'tg4:energy': 'decode_joules_per_token'}
    """
    results: dict[str, FigureName] = {
        "prefill_tokens_per_s": "prompt_joules",
        "decode_tokens_per_s": "decode_joules_per_token",
    }
    return {f"{test}:energy": results[figure] for test, figure in tests.items() if figure in results}


def trace_energy(run: ProcessRun, rails: Sequence[RailsReading]) -> TraceEnergy:
    """The energy of a traced run by the power rails in its trace, which many devices hide from adb's shell."""
    if not rails:
        return TraceEnergy({}, {}, "the trace has no power rails")
    readings = tuple(MachineReading(reading.uptime_s, reading.joules) for reading in rails)
    meter = EnergyMeter(PowerSource("odpm"))
    figures = meter.figures(replace(run, readings=readings))
    found = meter.record()
    return TraceEnergy(figures, dict(found.rails_joules), found.unavailable)


class EnergyMeter:
    """Turns the readings of a job's processes into joules."""

    def __init__(self, source: PowerSource) -> None:
        self.source = source
        self._idle: tuple[float, float] | None = None
        self._rails: dict[str, float] = {}
        self._runs: list[Sequence[MachineReading]] = []
        self._reasons: list[str] = [source.reason] if source.kind == "none" else []
        self._measured = 0

    def take_idle(self, run: ProcessRun) -> None:
        """Take the power of a machine at rest, from a process that only waits."""
        try:
            curve = self._curve(run.readings)
            begin, end = curve.times[0], curve.times[-1]
            if curve.within(begin, end) < MIN_READINGS:
                raise _Unavailable("too short: idle power has fewer than 3 different readings")
            self._idle = ((curve.at(end) - curve.at(begin)) / (end - begin), end - begin)
        except _Unavailable as reason:
            self._reasons.append(str(reason))

    def figures(self, run: ProcessRun) -> Figures:
        """The energy figures of one process; empty, with the reason kept, if it has none."""
        if self.source.kind == "none":
            return {}
        self._runs.append(run.readings)
        try:
            curve = self._curve(run.readings)
            begin, end = run.reading.begin_s or run.begin_s, run.reading.end_s or run.end_s
            begin, end = max(begin, curve.times[0]), min(end, curve.times[-1])
            found = self._phase(curve, "the process", begin, end, "energy")
        except _Unavailable as reason:
            self._reasons.append(str(reason))
            return {}
        self._measured += 1
        self._add_rails(run.readings, begin, end)
        return {**found, "energy_s": end - begin, **self._phases(curve, run)}

    def record(self) -> EnergyRecord:
        """What is known about the energy of all iterations together."""
        reasons = list(dict.fromkeys(self._reasons))
        return EnergyRecord(
            source=self.source.kind,
            unavailable="; ".join(reasons)[:1000] or None,
            idle_watts=None if self._idle is None else self._idle[0],
            idle_s=None if self._idle is None else self._idle[1],
            rails_joules=self._rails,
            check=self._check(),
        )

    def _phases(self, curve: _Curve, run: ProcessRun) -> Figures:
        """The figures of the prompt and of the answer, if it is known when they were computed."""
        figures = run.reading.figures
        counts = {"prompt": figures.get("prefill_tokens_count"), "decode": figures.get("decode_tokens_count")}
        found: Figures = {}
        for name, (begin, end) in phases(run).items():
            count = counts.get(name)
            if not count:
                continue
            try:
                joules = self._phase(curve, _SPOKEN[name], begin, end, name)
            except _Unavailable as reason:
                self._reasons.append(str(reason))
                continue
            found |= joules
            if name == "prompt":
                found["prompt_joules_per_token"] = found["prompt_joules"] / count
            else:
                found["decode_joules_per_token"] = found["decode_joules"] / count
        if any(counts.values()) and not found and not phases(run):
            self._reasons.append("the runner does not say when it computes the prompt and the answer")
        return found

    def _phase(self, curve: _Curve, what: str, begin: float, end: float, name: str) -> Figures:
        if begin < curve.times[0] or end > curve.times[-1] or end <= begin:
            raise _Unavailable(f"too short: no reading before and after {what}")
        if curve.within(begin, end) < MIN_READINGS:
            raise _Unavailable(f"too short: fewer than {MIN_READINGS} different readings during {what}")
        used, rest = _NAMES[name]
        if curve.at(end) < curve.at(begin):
            raise _Unavailable("the battery's counter went up while it discharged")
        idle: Figures = {} if self._idle is None else {rest: self._idle[0] * (end - begin)}
        return {used: curve.at(end) - curve.at(begin), **idle}

    def _curve(self, readings: Sequence[MachineReading]) -> _Curve:
        if self.source.kind in ("odpm", "power_stats_hal"):
            return _rails_curve(readings)
        return _battery_curve(readings, by_charge=self.source.kind == "battery_charge")

    def _add_rails(self, readings: Sequence[MachineReading], begin: float, end: float) -> None:
        inside = [reading for reading in readings if reading.rails and begin <= reading.uptime_s <= end]
        for rail, last in (inside[-1].rails if inside else {}).items():
            self._rails[rail] = self._rails.get(rail, 0.0) + last - inside[0].rails.get(rail, last)

    def _check(self) -> EnergyCheck | None:
        """Compare the measured energy with the battery's counter; power rails may have any part of that."""
        if self.source.kind == "battery_charge":
            return None
        measured = counted = 0.0
        levels: set[float] = set()
        for readings in self._runs:
            try:
                curve, charge = self._curve(readings), _battery_curve(readings, by_charge=True)
            except _Unavailable:
                continue
            measured += curve.joules[-1] - curve.joules[0]
            counted += charge.joules[-1] - charge.joules[0]
            levels |= {_level(reading.battery) for reading in readings if reading.battery is not None}
        if len(levels) <= _STEPS or counted <= 0 or measured < 0:
            return None
        low = 0.0 if self.source.kind in ("odpm", "power_stats_hal") else 1 - _AGREEMENT
        return EnergyCheck(measured, counted, agrees=low <= measured / counted <= 1 + _AGREEMENT)


def phases(run: ProcessRun) -> dict[str, tuple[float, float]]:
    """When a process computed its prompt and its answer, by the machine's uptime.

    Our runners report it. Others report only how long each phase took: if these times fill that of the process but for
    a tenth of a phase, the phase is located well enough, because a process begins by loading the model.
    """
    if run.reading.phases:
        return dict(run.reading.phases)
    figures = run.reading.figures
    lengths = {"prompt": _seconds(figures, "prefill"), "decode": _seconds(figures, "decode")}
    init_s, prompt_s, decode_s = figures.get("init_s"), lengths["prompt"], lengths["decode"]
    if init_s is None or prompt_s is None or decode_s is None:
        return {}
    slack = run.end_s - run.begin_s - init_s - prompt_s - decode_s
    begin = run.begin_s + init_s + slack / 2
    places = {"prompt": (begin, begin + prompt_s), "decode": (begin + prompt_s, begin + prompt_s + decode_s)}
    return {name: place for name, place in places.items() if 0 <= slack <= _LOCATED * (lengths[name] or 0)}


def _seconds(figures: Mapping[FigureName, float], phase: str) -> float | None:
    values: Mapping[str, float] = {str(name): value for name, value in figures.items()}
    count, rate = values.get(f"{phase}_tokens_count"), values.get(f"{phase}_tokens_per_s")
    return values.get(f"{phase}_s") or (count / rate if count and rate else None)


def _rails_curve(readings: Iterable[MachineReading]) -> _Curve:
    found = [reading for reading in readings if reading.rails]
    names = set.intersection(*(set(reading.rails) for reading in found)) if found else set()
    if len(found) < MIN_READINGS or not names:
        raise _Unavailable(f"too short: {len(found)} readings of the power rails")
    sums = tuple(sum(reading.rails[name] for name in names) for reading in found)
    if any(later.rails[name] < earlier.rails[name] for earlier, later in itertools.pairwise(found) for name in names):
        raise _Unavailable("a power rail's counter went back")
    return _Curve(tuple(reading.uptime_s for reading in found), sums)


def _battery_curve(readings: Iterable[MachineReading], *, by_charge: bool) -> _Curve:
    found = [(reading.uptime_s, reading.battery) for reading in readings if reading.battery is not None]
    for _, battery in found:
        if (reason := _unfit(battery)) is not None:
            raise _Unavailable(reason)
    if len(found) < MIN_READINGS:
        raise _Unavailable(f"too short: {len(found)} readings of the battery")
    times = tuple(time for time, _ in found)
    if by_charge:
        volts = mean([battery.volts for _, battery in found if battery.volts is not None] or [0.0])
        left = [_left(battery, volts) for _, battery in found]
        return _Curve(times, tuple(left[0] - value for value in left))
    watts = [_watts(battery) for _, battery in found]
    joules = [0.0]
    for i in range(1, len(times)):
        joules.append(joules[-1] + (times[i] - times[i - 1]) * (watts[i] + watts[i - 1]) / 2)
    return _Curve(times, tuple(joules))


def _watts(battery: BatteryReading) -> float:
    if battery.watts:
        return battery.watts
    if not battery.amperes or battery.volts is None:
        raise _Unavailable("the battery reports no current")
    return battery.amperes * battery.volts


def _left(battery: BatteryReading, volts: float) -> float:
    """The joules left in a battery according to its counter, up to a constant."""
    if battery.joules is not None:
        return battery.joules
    if battery.coulombs is None or not volts:
        raise _Unavailable("the battery does not count its charge")
    return battery.coulombs * volts


def _level(battery: BatteryReading) -> float:
    return battery.joules if battery.joules is not None else battery.coulombs or 0.0


def _unfit(battery: BatteryReading) -> str | None:
    """Why a battery's readings are not the device's power; None if they are."""
    if battery.status != "Discharging":
        return f"the battery is {battery.status.lower()}: unplug the device, and connect over Wi-Fi"
    low, high = _PLAUSIBLE_VOLTS
    if battery.volts is not None and not low <= battery.volts <= high:
        return f"the battery reports {battery.volts:g} V, so its values are not in the units of Linux"
    return None
