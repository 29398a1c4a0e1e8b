"""Parses the output of Android's dumpsys, getprop and settings; values that a device does not report are None."""

from __future__ import annotations

import re
from collections.abc import Mapping

from device_harness.parsers.lines import clean_lines
from toolkit.results.record import (
    BatteryRecord,
    BatteryStatus,
    CpuRecord,
    PowerSource,
    TemperatureRecord,
    ThermalRecord,
    ThermalSource,
)

_PROPERTY = re.compile(r"\[([^\]]+)\]: \[(.*)\]")
_PAIR = re.compile(r"([^:]+): *(.*)")
_TEMPERATURE = re.compile(
    r"Temperature\{mValue=(-?\d{1,9}(?:\.\d{1,9})?), mType=(-?\d{1,9}), mName=([^,{}]*), mStatus=([0-6])\}", re.ASCII
)
_THRESHOLDS = re.compile(
    r"TemperatureThreshold\{mType=-?\d{1,9}, mName=([^,{}]*), mHotThrottlingThresholds=\[([^\]]*)\].*\}", re.ASCII
)
_STATUS = re.compile(r"Thermal Status: ([0-6])", re.ASCII)
_WAKEFULNESS = re.compile(r"mWakefulness(?:Raw)?=(\w+)", re.ASCII)
_KILOHERTZ = re.compile(r"\d{1,12}", re.ASCII)
_HAL_PART, _CACHED_PART = "Current temperatures from HAL:", "Cached temperatures:"
_KINDS = (
    "cpu", "gpu", "battery", "skin", "usb port", "power amplifier", "bcl voltage", "bcl current", "bcl percentage",
    "npu", "tpu", "display", "modem", "soc",
)  # fmt: skip
"""android.hardware.thermal TemperatureType, from 0."""
THROTTLING_SEVERITIES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""android.hardware.thermal ThrottlingSeverity, 0 to 6."""
_NO_TEMPERATURES = ("6", "7", "8")
"""Types of sensors that report volts, milliamperes or percent instead."""
_STATUSES: Mapping[str, BatteryStatus] = {
    "1": "unknown", "2": "charging", "3": "discharging", "4": "not charging", "5": "full",
}  # fmt: skip
"""android.os.BatteryManager BATTERY_STATUS_*."""
_SOURCES: Mapping[str, PowerSource] = {
    "AC powered": "ac", "USB powered": "usb", "Wireless powered": "wireless", "Dock powered": "dock",
}  # fmt: skip

_VIRTUAL_HARDWARE = ("goldfish", "ranchu", "cutf", "vbox86", "redroid")
"""How the hardware of virtual devices is named: Android's emulator (both), Cuttlefish, Genymotion, ReDroid."""


def parse_properties(text: str) -> dict[str, str]:
    """Parse `getprop`: values by name."""
    matches = (_PROPERTY.fullmatch(line) for line in clean_lines(text))
    return {match[1]: match[2] for match in matches if match is not None}


def parse_battery(text: str) -> BatteryRecord | None:
    """Parse `dumpsys battery`; None without the service. Keys are case-sensitive: Samsung has other ones that differ
    only in case."""
    values: dict[str, str] = {}
    for line in clean_lines(text):
        if (match := _PAIR.fullmatch(line)) is not None:
            values.setdefault(match[1], match[2])
    if "level" not in values and "status" not in values:
        return None
    level, scale = _number(values.get("level")), _number(values.get("scale"))
    tenths, millivolts = _number(values.get("temperature")), _number(values.get("voltage"))
    return BatteryRecord(
        level_percent=None if level is None or not scale or not 0 <= level <= scale else 100 * level / scale,
        temperature_celsius=None if tenths is None else tenths / 10,
        voltage_volts=None if millivolts is None or millivolts < 0 else millivolts / 1000,
        status=_STATUSES.get(values.get("status", ""), "unknown"),
        powered_by=tuple(source for key, source in _SOURCES.items() if values.get(key) == "true"),
    )


def parse_thermal(text: str) -> ThermalRecord | None:
    """Parse `dumpsys thermalservice`: the HAL's current values, or else the cached ones, which may be stale."""
    status: int | None = None
    parts: dict[str, list[TemperatureRecord]] = {_HAL_PART: [], _CACHED_PART: []}
    part: str | None = None
    for line in clean_lines(text):
        if (match := _STATUS.fullmatch(line)) is not None:
            status = int(match[1])
        elif (match := _TEMPERATURE.fullmatch(line)) is not None and part in parts:
            parts[part] += [] if match[2] in _NO_TEMPERATURES else [_temperature(match)]
        elif line.endswith(":") or line.startswith("HAL Ready"):
            part = line
    if status is None and not any(parts.values()):
        return None
    source: ThermalSource = "hal" if parts[_HAL_PART] else "cached" if parts[_CACHED_PART] else "none"
    return ThermalRecord(status, source, tuple(parts[_HAL_PART] or parts[_CACHED_PART]))


def parse_light_thresholds(text: str) -> dict[str, float]:
    """Parse `dumpsys thermalservice`: the temperature from which a device throttles lightly, by sensor, if reported.

    The output lists a temperature for each ThrottlingSeverity (none, light, moderate, ...), or NaN.
    """
    found = {}
    for line in clean_lines(text):
        match = _THRESHOLDS.fullmatch(line)
        numbers = match[2].split(", ") if match is not None else []
        if match is not None and len(numbers) > 1 and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", numbers[1], re.ASCII):
            found[match[1]] = float(numbers[1])
    return found


def parse_screen(text: str) -> bool | None:
    """Parse `dumpsys power`: whether the screen is on."""
    found = [match[1] for line in clean_lines(text) if (match := _WAKEFULNESS.match(line)) is not None]
    return found[0] == "Awake" if found else None


def parse_setting(text: str) -> bool | None:
    """Parse `settings get` for a switch: 0, 1, or null if it was never set."""
    return {"0": False, "1": True}.get(text.strip())


def parse_cpus(text: str) -> tuple[CpuRecord, ...]:
    """Parse lines `cpu0|governor|scaling_cur_freq|scaling_max_freq|cpuinfo_max_freq`, in kHz; parts may be empty.

    >>> parse_cpus("cpu1|schedutil|600000||2000000\\n")
    (CpuRecord(cpu=1, governor='schedutil', frequency_hz=600000000, limit_hz=None, maximum_hz=2000000000),)
    """
    cpus = []
    for line in clean_lines(text):
        name, *parts = line.split("|")
        if len(parts) == 4 and re.fullmatch(r"cpu\d{1,4}", name, re.ASCII):
            frequency, limit, maximum = (int(part) * 1000 if _KILOHERTZ.fullmatch(part) else None for part in parts[1:])
            cpus.append(CpuRecord(int(name[3:]), parts[0] or None, frequency, limit, maximum))
    return tuple(sorted(cpus, key=lambda cpu: cpu.cpu))


def _temperature(match: re.Match[str]) -> TemperatureRecord:
    kind = int(match[2])
    name = _KINDS[kind] if 0 <= kind < len(_KINDS) else f"type {kind}"
    return TemperatureRecord(match[3], name, float(match[1]), int(match[4]))


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"-?\d{1,15}", text, re.ASCII) else None


def is_emulated(properties: Mapping[str, str]) -> bool:
    """Whether the properties are a virtual device's, which runs at the speed of the computer that plays it."""
    told = (properties.get(name) for name in ("ro.kernel.qemu", "ro.boot.qemu", "ro.hardware.virtual_device"))
    return "1" in told or properties.get("ro.hardware", "").startswith(_VIRTUAL_HARDWARE)
