"""What devices print about energy, in the forms that docs/energy.md cites, mangled and cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mangling import MANGLINGS, NAMES
from paths import FIXTURES

from device_harness.emulator import templates
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

METER = "/sys/bus/iio/devices/iio:device0/energy_value"
ODPM = f"""{METER}:t=349894
{METER}:CH0(T=349894)[S10M_VDD_TPU], 5578756
{METER}:CH1(T=349894)[VSYS_PWR_MODEM], 29110940
{METER}:CH42(T=349894)[S2M_VDD_CPUCL2], 30203502
"""
"""As a Pixel 6 prints it: milliseconds and microwatt seconds."""
HAL = """
============= PowerStats HAL 2.0 energy consumers ==============
                          CPUCL0         46356.94 mWs

============= PowerStats HAL 2.0 energy meter ==============
                         Channel   Cumulative Energy
       [S2M_VDD_CPUCL2]:CPU(BIG)         30203.50 mWs
                 [S1M_VDD_MIF]:DDR         21091.36 mWs
========== End of PowerStats HAL 2.0 energy meter ==========
          [NOT_A_RAIL]:CPU(MID)             1.00 mWs
"""
DELTA = """
============= PowerStats HAL 2.0 energy meter ==============
Elapsed time: 0 ms
                         Channel   Cumulative Energy (      Delta   )
       [S2M_VDD_CPUCL2]:CPU(BIG)         30203.50 mWs (         12.00)
========== End of PowerStats HAL 2.0 energy meter ==========
"""
LISTED = """ChannelId: 10, ChannelName: S9S_VDD_AOC, ChannelSubsystem: AOC
PowerStatsService dumpsys: available Channels
ChannelId: 0, ChannelName: S10M_VDD_TPU, ChannelSubsystem: TPU
ChannelId: 3, ChannelName: S2M_VDD_CPUCL2, ChannelSubsystem: CPU(BIG)
"""
SUPPLY = "/sys/class/power_supply/battery"
PHONE = f"""{SUPPLY}/type:Battery
{SUPPLY}/present:1
{SUPPLY}/status:Discharging
{SUPPLY}/voltage_now:3763750
{SUPPLY}/current_now:-109375
{SUPPLY}/charge_counter:1018000
"""
"""A phone's: microvolts, microamperes, microampere hours, and a current below 0 while it discharges."""
LAPTOP = """/sys/class/power_supply/BAT0/type:Battery
/sys/class/power_supply/BAT0/status:Discharging
/sys/class/power_supply/BAT0/voltage_now:11890000
/sys/class/power_supply/BAT0/power_now:7654000
/sys/class/power_supply/BAT0/energy_now:41230000
"""
however = pytest.mark.parametrize("mangle", [lambda text: text, *MANGLINGS], ids=["as printed", *NAMES])


@however
def test_a_meter_of_power_rails_counts_microwatt_seconds(mangle: Callable[[str], str]) -> None:
    found = parse_rails(parse_files(mangle(ODPM)))
    assert found == {"S10M_VDD_TPU": 5.578756, "VSYS_PWR_MODEM": 29.11094, "S2M_VDD_CPUCL2": 30.203502}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("t=349894\n", "\n", 1),
        lambda text: text.replace("], 5578756", "] 5578756"),
        lambda text: text.replace("], 5578756", "], -5578756"),
        lambda text: text.replace("], 5578756", "], 5.57"),
        lambda text: text.replace("CH0(T=349894)", "CH0"),
        lambda text: text.replace("[S10M_VDD_TPU]", "[]"),
    ],
)
def test_a_meter_of_another_form_has_no_readings_at_all(damage: Callable[[str], str]) -> None:
    assert parse_rails(parse_files(damage(ODPM))) == {}


def test_a_rail_of_two_meters_is_left_out_and_the_others_stay() -> None:
    other = ODPM.replace("iio:device0", "iio:device1").replace("S10M_VDD_TPU", "S5S_VDDQ_MEM")
    assert set(parse_rails(parse_files(ODPM + other))) == {"S10M_VDD_TPU", "S5S_VDDQ_MEM"}


@pytest.mark.parametrize("text", [ODPM, PHONE, HAL])
def test_a_cut_anywhere_never_gives_another_number(text: str) -> None:
    def values(part: str) -> dict[str, object]:
        files = parse_files(part)
        supply = parse_supply(files, SUPPLY)
        battery = {} if supply is None else {name: getattr(supply, name) for name in ("volts", "amperes", "coulombs")}
        return {**parse_rails(files), **parse_energy_meter(part), **battery}

    whole = values(text)
    for end in range(len(text)):
        assert {value for value in values(text[:end]).values() if value is not None} <= set(whole.values())


@pytest.mark.parametrize("mangle", [lambda text: text, MANGLINGS[0]], ids=["as printed", "CRLF"])
def test_the_hal_s_meter_is_told_from_its_consumers_and_counts_milliwatt_seconds(mangle: Callable[[str], str]) -> None:
    assert parse_energy_meter(mangle(HAL)) == {"S2M_VDD_CPUCL2": 30.2035, "S1M_VDD_MIF": 21.09136}
    assert parse_energy_meter(mangle(DELTA)) == {"S2M_VDD_CPUCL2": 30.2035}


@pytest.mark.parametrize("text", ["", "Can't find service: android.hardware.power.stats\n", HAL.replace("mWs", "mW")])
def test_a_hal_without_such_a_meter_has_no_rails(text: str) -> None:
    assert parse_energy_meter(text) == {}


@however
def test_dumpsys_powerstats_lists_rails_only(mangle: Callable[[str], str]) -> None:
    assert parse_listed_rails(mangle(LISTED)) == ("S10M_VDD_TPU", "S2M_VDD_CPUCL2")
    assert parse_listed_rails("Can't find service: powerstats\n") == ()


@however
def test_a_battery_s_files_are_in_the_kernel_s_units(mangle: Callable[[str], str]) -> None:
    files = parse_files(mangle(PHONE + LAPTOP))
    assert battery_folders(files) == (SUPPLY, "/sys/class/power_supply/BAT0")
    phone, laptop = (parse_supply(files, folder) for folder in battery_folders(files))
    assert phone == BatteryReading("Discharging", 3.76375, 0.109375, None, 1018000 * 3.6e-3, None)
    assert laptop == BatteryReading("Discharging", 11.89, None, 7.654, None, 41230000 * 3.6e-3)


@pytest.mark.parametrize(
    "change",
    [
        ("type:Battery", "type:USB"),
        ("present:1", "present:0"),
        ("type:Battery", f"type:Battery\n{SUPPLY}/scope:Device"),
    ],
)
def test_a_charger_an_empty_slot_and_a_mouse_are_no_battery(change: tuple[str, str]) -> None:
    assert battery_folders(parse_files(PHONE.replace(*change))) == ()


@pytest.mark.parametrize("value", ["", "4.2", "0x10", "1e6", "Unknown", "-", "9" * 16])
def test_a_value_that_is_no_whole_number_is_none(value: str) -> None:
    found = parse_supply(parse_files(PHONE.replace("3763750", value)), SUPPLY)
    assert found is not None and found.volts is None and found.amperes == 0.109375


@however
def test_dumpsys_battery_counts_millivolts_and_microampere_hours(mangle: Callable[[str], str]) -> None:
    text = (FIXTURES / "device/dumpsys_battery_samsung.txt").read_text() + "\n"
    assert parse_battery_service(mangle(text)) == BatteryReading("Full", 4.312, None, None, 2967000 * 3.6e-3, None)
    assert parse_battery_service("Can't find service: battery\n") is None


def test_the_emulated_device_prints_the_same_forms() -> None:
    meter = "".join(f"{METER}:{line}\n" for line in templates.energy_value({"A": 1.5, "B": 2}).splitlines())
    assert parse_rails(parse_files(meter)) == {"A": 1.5, "B": 2.0}
    assert parse_energy_meter(templates.energy_meter({"[A]:CPU(BIG)": 1.5})) == {"A": 1.5}
    files = templates.power_supply(-2_000_000, 3_000_000, is_full=False)
    text = "".join(f"{SUPPLY}/{name}:{value}" for name, value in files.items())
    assert parse_supply(parse_files(text), SUPPLY) == BatteryReading("Discharging", 4.35, 2.0, None, 10800.0, None)
