"""dumpsys, getprop and settings as recorded, mangled and cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mangling import MANGLINGS, NAMES
from paths import FIXTURES

from device_harness.emulator import templates
from device_harness.parsers.android import (
    is_emulated,
    parse_battery,
    parse_cpus,
    parse_light_thresholds,
    parse_properties,
    parse_screen,
    parse_setting,
    parse_thermal,
)
from toolkit.results.record import BatteryRecord, CpuRecord, TemperatureRecord, ThermalRecord

DEVICE = FIXTURES / "device"
BATTERY = (DEVICE / "dumpsys_battery_samsung.txt").read_text() + "\n"
THERMAL = (DEVICE / "dumpsys_thermalservice_samsung.txt").read_text() + "\n"
however = pytest.mark.parametrize("mangle", [lambda text: text, *MANGLINGS], ids=["as recorded", *NAMES])


@however
def test_the_battery_is_read(mangle: Callable[[str], str]) -> None:
    assert parse_battery(mangle(BATTERY)) == BatteryRecord(100.0, 30.9, 4.312, "full", ("usb",))


def test_a_key_in_another_case_is_another_key() -> None:
    assert parse_battery(BATTERY + "  Level: 3\n  Temperature: 99\n") == parse_battery(BATTERY)


def test_a_cut_battery_gives_none_for_what_is_missing_and_never_another_number() -> None:
    whole = parse_battery(BATTERY)
    assert whole is not None
    for end in range(len(BATTERY)):
        found = parse_battery(BATTERY[:end])
        if found is not None:
            assert found.temperature_celsius in (None, whole.temperature_celsius)
            assert found.level_percent in (None, whole.level_percent)
            assert found.voltage_volts in (None, whole.voltage_volts)


def test_a_device_without_battery_has_none() -> None:
    assert parse_battery("Can't find service: battery\n") is None


@however
def test_temperatures_are_those_that_the_hal_reads_now(mangle: Callable[[str], str]) -> None:
    assert parse_thermal(mangle(THERMAL)) == ThermalRecord(1, "hal", (TemperatureRecord("AP", "cpu", 44.8, 0),))


@however
def test_without_the_hal_cached_temperatures_say_that_they_are_cached(mangle: Callable[[str], str]) -> None:
    found = parse_thermal(mangle(THERMAL.split("HAL Ready")[0] + "HAL Ready: false\n"))
    assert found is not None
    assert (found.status, found.source, len(found.temperatures)) == (1, "cached", 6)
    assert found.temperatures[5] == TemperatureRecord("SKIN", "skin", 38.0, 1)


def test_a_device_that_lists_no_sensor_has_a_status_only() -> None:
    assert parse_thermal("Thermal Status: 0\nCached temperatures:\nHAL Ready: false\n") == ThermalRecord(0, "none", ())


def test_a_device_without_the_service_has_none() -> None:
    assert parse_thermal("Can't find service: thermalservice\n") is None


def test_cooling_devices_and_thresholds_are_no_temperatures() -> None:
    more = "Current cooling devices from HAL:\n\tCoolingDevice{mValue=3, mType=2, mName=cpu}\n"
    more += "Temperature static thresholds from HAL:\n\tTemperature{mValue=95.0, mType=3, mName=SKIN, mStatus=0}\n"
    assert parse_thermal(THERMAL + more) == parse_thermal(THERMAL)


THRESHOLDS = """Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, 39.0, 43.0, 45.0, 46.5, 52.0, 55.0], \
mColdThrottlingThresholds=[NaN, NaN, NaN, NaN, NaN, NaN, NaN]}
\tTemperatureThreshold{mType=0, mName=CPU, mHotThrottlingThresholds=[NaN, NaN, NaN, 95.0, NaN, NaN, NaN], \
mColdThrottlingThresholds=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]}
\tTemperatureThreshold{mType=2, mName=BAT, mHotThrottlingThresholds=[]}
"""
"""In the form that AOSP's ThermalManagerServiceTest expects."""


@however
def test_the_temperature_of_light_throttling_is_read_where_a_sensor_has_one(mangle: Callable[[str], str]) -> None:
    assert parse_light_thresholds(mangle(THERMAL + THRESHOLDS)) == {"SKIN": 39.0}
    assert parse_light_thresholds(mangle(THERMAL)) == {}


def test_a_cut_threshold_is_never_another_one() -> None:
    assert all(parse_light_thresholds(THRESHOLDS[:end]) in ({}, {"SKIN": 39.0}) for end in range(len(THRESHOLDS)))


def test_volts_under_the_name_of_a_temperature_are_left_out() -> None:
    more = "\tTemperature{mValue=4.2, mType=6, mName=vbat, mStatus=0}\n"
    assert parse_thermal(THERMAL + more) == parse_thermal(THERMAL)


def test_a_cut_thermal_report_never_gives_another_temperature() -> None:
    known = {"AP": {38.1, 44.8}, "SUBBAT": {0.0}, "PA": {36.9}, "BAT": {32.2}, "USB": {0.0}, "SKIN": {38.0}}
    for end in range(len(THERMAL)):
        found = parse_thermal(THERMAL[:end])
        for sensor in found.temperatures if found is not None else ():
            assert sensor.celsius in known[sensor.name]


@however
def test_properties_are_read(mangle: Callable[[str], str]) -> None:
    text = "[ro.product.model]: [SM-S928B]\n[ro.build.fingerprint]: [samsung/e3q:15/AP3A/1:user/keys]\n[empty]: []\n"
    expected = {"ro.product.model": "SM-S928B", "ro.build.fingerprint": "samsung/e3q:15/AP3A/1:user/keys", "empty": ""}
    assert parse_properties(mangle(text)) == expected


@however
def test_the_screen_is_on_when_the_device_is_awake(mangle: Callable[[str], str]) -> None:
    awake = templates.power(is_screen_on=True)
    assert parse_screen(mangle(awake)) is True
    assert parse_screen(mangle(awake.replace("Awake", "Dozing"))) is False
    assert parse_screen(mangle(templates.power(is_screen_on=False))) is False
    assert parse_screen(mangle("Can't find service: power\n")) is None


def test_a_switch_that_was_never_set_is_none() -> None:
    assert [parse_setting(text) for text in ("1\n", "0\r\n", "null\n", "", "Failure\n")] == [
        True,
        False,
        None,
        None,
        None,
    ]


@however
def test_cpus_are_read_in_order(mangle: Callable[[str], str]) -> None:
    text = "cpu10|||||\ncpu1|schedutil|300000|1800000|1800000\ncpu0|walt|||2016000\n"
    assert parse_cpus(mangle(text)) == (
        CpuRecord(0, "walt", None, None, 2_016_000_000),
        CpuRecord(1, "schedutil", 300_000_000, 1_800_000_000, 1_800_000_000),
    )


@pytest.mark.parametrize(
    ("lines", "emulated"),
    [
        ("[ro.kernel.qemu]: [1]", True),
        ("[ro.boot.qemu]: [1]\n[ro.hardware]: [ranchu]", True),
        ("[ro.hardware]: [ranchu]", True),
        ("[ro.hardware.virtual_device]: [1]", True),
        ("[ro.hardware]: [cutf_cvm]", True),
        ("[ro.hardware]: [vbox86]", True),
        ("[ro.hardware]: [redroid]", True),
        ("[ro.hardware]: [qcom]\n[ro.kernel.qemu]: [0]", False),
        ("[ro.hardware]: [tensor]\n[ro.hardware.virtual_device]: [0]", False),
        ("", False),
    ],
)
def test_virtual_devices_are_told_from_phones(lines: str, emulated: bool) -> None:
    assert is_emulated(parse_properties(f"{lines}\n")) is emulated
