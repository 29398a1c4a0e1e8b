"""Joules: from readings made by hand, from each kind of emulated device, and from this computer's battery."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from fake_usb import FakeUsb, plug_in
from stand_ins import SAMPLED

from device_harness.adb.devices import connect
from device_harness.bench.job import JobSettings, Subject, run_job
from device_harness.bench.power import (
    EnergyMeter,
    PowerSource,
    choose_source,
    find_power_source,
    phases,
)
from device_harness.bench.process import ProcessRun
from device_harness.bench.readiness import ReadinessSettings
from device_harness.bench.sampler import MachineReading
from device_harness.bench.state import read_device
from device_harness.emulator.device import Emulator
from device_harness.emulator.faults import Faults
from device_harness.emulator.power import BUSY_WATTS, IDLE_WATTS, RAILS
from device_harness.machines.device import AdbDevice
from device_harness.parsers.power import BatteryReading
from device_harness.runners.interface import Job, Reading, Workload
from toolkit.results.json_lines import dump_record, parse_record
from toolkit.results.record import BenchRecord, EnergyRecord, Figures, ModelRecord

RAILS_SOURCE = PowerSource("odpm")
POWER, CHARGE = PowerSource("battery_power"), PowerSource("battery_charge")
COUNTS: Figures = {"prefill_tokens_count": 10, "decode_tokens_count": 4}
PHASES = {"prompt": (10.5, 12.5), "decode": (13.0, 15.0)}
BATTERY = BatteryReading("Discharging", 4.0, 0.5, None, 10_000.0, None)


def rails(times: Sequence[float], watts: float = 2.0) -> tuple[MachineReading, ...]:
    """Two rails, which use this power together."""
    return tuple(MachineReading(t, {"A": 100 + 0.75 * watts * t, "B": 7 + 0.25 * watts * t}) for t in times)


def battery(times: Sequence[float], **changes: object) -> tuple[MachineReading, ...]:
    """2 W, and a counter that goes down as it should."""
    fixed = replace(BATTERY, **changes)  # type: ignore[arg-type]
    used = [None if fixed.coulombs is None else fixed.coulombs - 0.5 * (t - times[0]) for t in times]
    return tuple(MachineReading(t, battery=replace(fixed, coulombs=left)) for t, left in zip(times, used, strict=True))


def run(readings: tuple[MachineReading, ...], reading: Reading | None = None, end_s: float = 16.0) -> ProcessRun:
    return ProcessRun(reading or Reading(COUNTS, phases=PHASES), 10.0, end_s, (), False, readings)


def measured(
    source: PowerSource, readings: tuple[MachineReading, ...], idle: float | None = None
) -> tuple[Figures, EnergyRecord]:
    meter = EnergyMeter(source)
    if idle is not None:
        meter.take_idle(run(rails(EVERY, idle)))
    return meter.figures(run(readings)), meter.record()


EVERY = [9.9 + 0.2 * i for i in range(32)]


@pytest.mark.parametrize(
    ("source", "readings"),
    [(RAILS_SOURCE, rails(EVERY)), (POWER, battery(EVERY)), (CHARGE, battery(EVERY, amperes=None))],
)
def test_energy_is_of_the_process_its_prompt_and_its_tokens(
    source: PowerSource, readings: tuple[MachineReading, ...]
) -> None:
    figures, record = measured(source, readings)
    assert figures == {
        "energy_joules": pytest.approx(12.0), "energy_s": pytest.approx(6.0), "prompt_joules": pytest.approx(4.0),
        "prompt_joules_per_token": pytest.approx(0.4), "decode_joules": pytest.approx(4.0),
        "decode_joules_per_token": pytest.approx(1.0),
    }  # fmt: skip
    assert record.unavailable is None and record.source == source.kind


def test_idle_energy_is_told_apart_and_not_taken_off() -> None:
    figures, record = measured(RAILS_SOURCE, rails(EVERY), idle=0.5)
    assert record.idle_watts == pytest.approx(0.5) and record.idle_s == pytest.approx(6.2)
    assert figures["prompt_joules"] == pytest.approx(4.0) and figures["prompt_idle_joules"] == pytest.approx(1.0)
    assert figures["energy_joules"] == pytest.approx(12.0) and figures["idle_joules"] == pytest.approx(3.0)


def test_each_rail_has_its_share() -> None:
    _, record = measured(RAILS_SOURCE, rails(EVERY))
    assert record.rails_joules["A"] == pytest.approx(3 * record.rails_joules["B"])


@pytest.mark.parametrize(
    ("source", "readings", "reason"),
    [
        (RAILS_SOURCE, (), "too short: 0 readings of the power rails"),
        (RAILS_SOURCE, rails([9.9, 16.1]), "too short: 2 readings of the power rails"),
        (RAILS_SOURCE, rails([9.9, 11, 15, 16.1][::-1]), "a power rail's counter went back"),
        (RAILS_SOURCE, rails(EVERY, 0.0), "too short: fewer than 3 different readings during the process"),
        (POWER, battery(EVERY, status="Charging"), "the battery is charging: unplug the device"),
        (POWER, battery(EVERY, amperes=None), "the battery reports no current"),
        (POWER, battery(EVERY, volts=0.004), "the battery reports 0.004 V, so its values are not in the units"),
        (CHARGE, battery(EVERY, coulombs=None), "the battery does not count its charge"),
        (CHARGE, battery([9.9, 16.1]), "too short: 2 readings of the battery"),
    ],
)
def test_without_energy_there_is_a_reason(
    source: PowerSource, readings: tuple[MachineReading, ...], reason: str
) -> None:
    figures, record = measured(source, readings)
    assert figures == {} and (record.unavailable or "").startswith(reason)


def test_a_phase_that_is_too_short_has_no_energy_and_the_process_has() -> None:
    figures, record = measured(RAILS_SOURCE, rails([9.9, 10.4, 12.6, 13.5, 14, 14.5, 16.1]))
    assert {"energy_joules", "decode_joules_per_token"} <= set(figures) and "prompt_joules" not in figures
    assert record.unavailable == "too short: fewer than 3 different readings during the prompt"


@pytest.mark.parametrize(
    ("change", "agrees"),
    [({}, True), ({"amperes": 0.0005}, False), ({"amperes": 500.0}, False), ({"coulombs": None}, None)],
)
def test_charge_times_voltage_is_held_against_integrated_power(change: dict[str, object], agrees: bool | None) -> None:
    """Milliamperes that are taken for microamperes make power a thousandth."""
    figures, record = measured(POWER, battery(EVERY, **change))
    assert figures["energy_joules"] > 0, "it is flagged, not repaired or hidden"
    assert (None if record.check is None else record.check.agrees) is agrees


def test_a_counter_of_few_steps_checks_nothing() -> None:
    coarse = tuple(
        replace(reading, battery=replace(BATTERY, coulombs=10_000.0 - 4 * (i // 10)))
        for i, reading in enumerate(battery(EVERY))
    )
    assert measured(POWER, coarse)[1].check is None


@pytest.mark.parametrize(("watts", "agrees"), [(1.5, True), (2.0, True), (30.0, False)])
def test_rails_use_no_more_than_the_battery_gives(watts: float, agrees: bool) -> None:
    both = tuple(
        replace(reading, battery=other.battery)
        for reading, other in zip(rails(EVERY, watts), battery(EVERY), strict=True)
    )
    check = measured(RAILS_SOURCE, both)[1].check
    assert check is not None and check.agrees is agrees


def test_a_program_that_only_says_how_long_its_phases_took_is_measured_if_they_fill_its_time() -> None:
    lengths: Figures = {**COUNTS, "init_s": 1.0, "prefill_tokens_per_s": 10 / 2.0, "decode_s": 2.8}
    found = phases(run((), Reading(lengths), 15.9))
    assert found["prompt"] == pytest.approx((11.05, 13.05))
    assert found["decode"] == pytest.approx((13.05, 15.85))
    assert set(phases(run((), Reading(lengths), 16.06))) == {"decode"}, "the shorter phase is not known well enough"
    assert phases(run((), Reading(lengths), 17.0)) == {} == phases(run((), Reading(lengths), 15.7))
    figures = EnergyMeter(RAILS_SOURCE).figures(run(rails(EVERY), Reading(lengths), 15.9))
    assert figures["decode_joules_per_token"] == pytest.approx(2 * 2.8 / 4)


def test_a_program_that_says_neither_has_the_energy_of_its_process_only() -> None:
    meter = EnergyMeter(RAILS_SOURCE)
    assert set(meter.figures(run(rails(EVERY), Reading(COUNTS)))) == {"energy_joules", "energy_s"}
    assert meter.record().unavailable == "the runner does not say when it computes the prompt and the answer"


PARTS = {"rails": "", "meter": "", "listed": "", "supplies": "", "battery": ""}
LISTED = "PowerStatsService dumpsys: available Channels\nChannelId: 0, ChannelName: A, ChannelSubsystem: CPU\n"
SUPPLY = "/x/battery/type:Battery\n/x/battery/status:{}\n/x/battery/voltage_now:4000000\n/x/battery/current_now:{}\n"


@pytest.mark.parametrize(
    ("parts", "kind", "reason"),
    [
        ({}, "none", "no power rails, and no battery"),
        ({"listed": LISTED}, "none", "1 power rails are listed, but adb's shell may not read their energy"),
        ({"supplies": SUPPLY.format("Discharging", -5)}, "battery_power", ""),
        ({"supplies": SUPPLY.format("Full", 0)}, "none", "the battery is full: unplug"),
        ({"supplies": SUPPLY.format("Charging", 5)}, "none", "the battery is charging: unplug"),
        ({"supplies": SUPPLY.format("Discharging", 0)}, "none", "reports neither current nor charge"),
        ({"supplies": SUPPLY.format("Discharging", 0) + "/x/battery/charge_counter:5\n"}, "battery_charge", ""),
        ({"battery": "  status: 3\n  voltage: 4000\n  Charge counter: 9\n"}, "battery_charge", ""),
        ({"battery": "  status: 2\n  voltage: 4000\n  Charge counter: 9\n"}, "none", "the battery is charging: unplug"),
    ],
)
def test_the_source_is_chosen_by_what_a_machine_tells(parts: dict[str, str], kind: str, reason: str) -> None:
    found = choose_source({**PARTS, **parts})
    assert found.kind == kind and reason in found.reason


# --- whole jobs -------------------------------------------------------------------------------------------------------

MODEL = ModelRecord("stand-in", "bundle", None, "0" * 64, 1, None)
SCRIPT = f"{SAMPLED}; cat /proc/uptime; sleep 1.2; cat /proc/uptime; sleep 1.2; cat /proc/uptime"
TALKATIVE = f"(while sleep 0.02; do echo talk; done) & {SCRIPT}; kill $!"


def read(output: str) -> Reading:
    begin, middle, end = (float(line.split()[0]) for line in output.split("\n") if line and line[0].isdigit())
    return Reading(
        {**COUNTS, "prefill_tokens_per_s": 10 / (middle - begin), "decode_tokens_per_s": 4 / (end - middle)},
        phases={"prompt": (begin, middle), "decode": (middle, end)},
    )


def bench(machine: AdbDevice, script: str = SCRIPT) -> BenchRecord:
    tests = {"pp10": "prefill_tokens_per_s", "tg4": "decode_tokens_per_s"}
    job = Job(tests, ("sh", "-c", script), read, MODEL, ())  # type: ignore[arg-type]
    settings = JobSettings(
        repetitions=1,
        readiness=ReadinessSettings(timeout_s=0.3, poll_s=0.1),
        interval_s=0.05,
        power=find_power_source(machine),
        idle_s=0.5,
    )
    subject = Subject(machine, read_device(machine), "stand_in", job)
    outcome = run_job(subject, Workload(start="cold"), settings, progress=lambda *_: None, note=lambda text: None)
    assert outcome.ended_by is None and outcome.record is not None
    assert parse_record(dump_record(outcome.record)) == outcome.record
    return outcome.record


@pytest.fixture
def shows(folder_device: Emulator) -> Callable[[Faults], None]:
    return folder_device.set_faults


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        (Faults(power="odpm"), "odpm"),
        pytest.param(Faults(power="hal"), "power_stats_hal", marks=pytest.mark.full),
        (Faults(battery_percent=60), "battery_power"),
        pytest.param(Faults(battery_percent=60, power="no-files"), "battery_charge", marks=pytest.mark.full),
        pytest.param(Faults(battery_percent=60, power="milliamperes"), "battery_power", marks=pytest.mark.full),
    ],
)
@pytest.mark.slow
def test_a_device_is_measured_by_what_it_tells(
    folder_device: Emulator, machine: AdbDevice, faults: Faults, kind: str
) -> None:
    folder_device.set_faults(faults)
    try:
        record = bench(machine)
    finally:
        folder_device.set_faults(Faults())
    assert record.energy is not None and record.energy.source == kind
    if (record.energy.unavailable or "").startswith("too short"):
        pytest.skip(f"this computer was too busy to sample: {record.energy.unavailable}")
    figures = record.iterations[0].figures
    assert record.tests["tg4:energy"] == "decode_joules_per_token"
    watts = figures["decode_joules"] / (4 / figures["decode_tokens_per_s"])
    if faults.power == "milliamperes":
        assert "energy_disagrees" in record.flags and watts < 0.01
        return
    # The emulated device's step, and the sampler's, are the only errors; both are far smaller than a second.
    assert 0.7 * IDLE_WATTS < watts < 1.3 * BUSY_WATTS
    assert record.energy.unavailable is None and "energy_disagrees" not in record.flags
    assert IDLE_WATTS * 0.5 < (record.energy.idle_watts or 0) < BUSY_WATTS * 1.5
    assert set(record.energy.rails_joules) == (set(RAILS) if kind in ("odpm", "power_stats_hal") else set())


@pytest.mark.parametrize(
    ("how", "kind"), [("odpm", "odpm"), pytest.param("hal", "power_stats_hal", marks=pytest.mark.full)]
)
@pytest.mark.slow
def test_rails_are_sampled_on_the_one_connection_of_a_cable_while_the_program_talks_on_it(
    folder_device: Emulator, monkeypatch: pytest.MonkeyPatch, how: Literal["odpm", "hal"], kind: str
) -> None:
    cable = FakeUsb(folder_device.port)
    plug_in(monkeypatch, ("R58M123", cable))
    folder_device.set_faults(Faults(power=how))
    try:
        with connect("R58M123") as transport:
            machine = AdbDevice(transport)
            assert not machine.has_second_connection
            record = bench(machine, TALKATIVE)
    finally:
        folder_device.set_faults(Faults())
    assert cable.connections == 1 and "sampler_failed" not in record.flags
    assert record.energy is not None and record.energy.source == kind
    (iteration,) = record.iterations
    begin_s, end_s = iteration.begin_s or 0.0, iteration.end_s or 0.0
    during = [t for t in record.samples.columns["t_s"] if t is not None and begin_s <= t <= end_s]
    assert len(during) > 3, "the program writes all the time; samples wait for none of it"
    if (record.energy.unavailable or "").startswith("too short"):
        pytest.skip(f"this computer was too busy to sample: {record.energy.unavailable}")
    watts = iteration.figures["decode_joules"] / (4 / iteration.figures["decode_tokens_per_s"])
    assert 0.7 * IDLE_WATTS < watts < 1.3 * BUSY_WATTS
    assert set(record.energy.rails_joules) == set(RAILS)


@pytest.mark.slow
def test_a_device_on_a_cable_says_why_it_has_no_energy(folder_device: Emulator, machine: AdbDevice) -> None:
    folder_device.set_faults(Faults())
    record = bench(machine)
    assert record.energy is not None and record.energy.source == "none" and "tg4:energy" not in record.tests
    assert record.energy.unavailable == "the battery is full: unplug the device, and connect over Wi-Fi"


PROGRAM = """
import dataclasses, json
from device_harness.bench.power import find_power_source
from device_harness.machines.host import Host
print(json.dumps(dataclasses.asdict(find_power_source(Host()))))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap (apt-get install bubblewrap)")
@pytest.mark.parametrize(("status", "kind"), [("Discharging", "battery_power"), ("Charging", "none")])
def test_this_computer_s_battery_is_found(tmp_path: Path, status: str, kind: str) -> None:
    for name, text in {"type": "Battery", "status": status, "voltage_now": "11890000", "power_now": "7654000"}.items():
        (tmp_path / "BAT0").mkdir(exist_ok=True)
        (tmp_path / "BAT0" / name).write_text(text + "\n")
    view = ["--dev-bind", "/", "/", "--bind", str(tmp_path), "/sys/class/power_supply"]
    done = subprocess.run(["bwrap", *view, sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    if done.returncode and "bwrap:" in done.stderr:
        pytest.skip(f"bubblewrap may not make namespaces here: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    assert found["kind"] == kind
    assert ("/sys/class/power_supply/BAT0/power_now" in found["watched"]["files"]) == (kind != "none")
