"""Reads the state of a machine that affects measurements, before and after them, each time in one command."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from device_harness.machines.machine import Machine
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
from toolkit.results.record import BatteryRecord, DeviceRecord, Flag, StateRecord, ThermalRecord

READ_S = 30.0
_MARK = "@@ "
_CPUS = (
    "for c in /sys/devices/system/cpu/cpu[0-9]*; do f=$c/cpufreq; "
    'echo "${c##*/}|$(cat $f/scaling_governor)|$(cat $f/scaling_cur_freq)|$(cat $f/scaling_max_freq)'
    '|$(cat $f/cpuinfo_max_freq)"; done'
)
_STATE = {
    "battery": "dumpsys battery",
    "thermal": "dumpsys thermalservice",
    "power": "dumpsys power | grep mWakefulness",
    "airplane": "settings get global airplane_mode_on",
    "low_power": "settings get global low_power",
    "cpus": _CPUS,
    "load": "cat /proc/loadavg",
}
_DEVICE = {
    "properties": "getprop",
    "kernel": "uname -r",
    "machine": "uname -m",
    "cpus": "ls -d /sys/devices/system/cpu/cpu[0-9]*",
    "memory": "grep MemTotal /proc/meminfo",
    "cpuinfo": "grep -m1 'model name' /proc/cpuinfo",
    "os": "cat /etc/os-release",
}
LOW_BATTERY_PERCENT = 20.0
"""Above the 15 at which AOSP warns (config_lowBatteryWarningLevel), because a run drains the battery."""
_HOTTEST_CELSIUS = 150.0
"""Values above this, and 0 or below, come from sensors that do not exist."""


def read_state(machine: Machine) -> StateRecord:
    """Read the current state. Parts that the machine does not report are None: a computer has no dumpsys."""
    parts = read_parts(machine, _STATE)
    load = parts["load"].split()
    return StateRecord(
        battery=parse_battery(parts["battery"]),
        thermal=parse_thermal(parts["thermal"]),
        cpus=parse_cpus(parts["cpus"]),
        screen_on=parse_screen(parts["power"]),
        airplane_mode=parse_setting(parts["airplane"]),
        power_save=parse_setting(parts["low_power"]),
        load_1min=float(load[0]) if load and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", load[0], re.ASCII) else None,
    )


def read_thermal(machine: Machine) -> ThermalRecord | None:
    """Read only the temperatures, for a gate that polls them."""
    return parse_thermal(read_parts(machine, {"thermal": _STATE["thermal"]})["thermal"])


def read_light_threshold(machine: Machine, sensor: str) -> float | None:
    """The sensor temperature from which the machine throttles lightly; None if it does not report one."""
    return parse_light_thresholds(read_parts(machine, {"thermal": _STATE["thermal"]})["thermal"]).get(sensor)


def read_power(machine: Machine) -> tuple[BatteryRecord | None, bool | None]:
    """Read the battery, and whether power saving is on."""
    parts = read_parts(machine, {name: _STATE[name] for name in ("battery", "low_power")})
    return parse_battery(parts["battery"]), parse_setting(parts["low_power"])


def read_device(machine: Machine) -> DeviceRecord:
    """Read the manufacturer, model, system, processor and memory of a machine."""
    parts = read_parts(machine, _DEVICE)
    is_host = machine.kind == "host"
    properties = {} if is_host else parse_properties(parts["properties"])

    def known(name: str) -> str | None:
        return properties.get(name) or None

    cpus = len(parts["cpus"].split()) or (os.cpu_count() if is_host else None) or 1
    memory = re.search(r"\b(\d{1,12}) kB", parts["memory"], re.ASCII)
    cpu_name = parts["cpuinfo"].partition(":")[2].strip() or None
    return DeviceRecord(
        kind="host" if is_host else "adb",
        emulated=is_emulated(properties),
        manufacturer=known("ro.product.manufacturer"),
        model=known("ro.product.model") or cpu_name,
        fingerprint=known("ro.build.fingerprint"),
        os_version=known("ro.build.version.release") or _pretty_name(parts["os"]),
        kernel=parts["kernel"].strip() or None,
        abi=known("ro.product.cpu.abi") or parts["machine"].strip() or None,
        soc=known("ro.soc.model"),
        cpus=cpus,
        memory_bytes=int(memory[1]) * 1024 if memory is not None else None,
    )


def device_temperature(thermal: ThermalRecord | None) -> tuple[str, float] | None:
    """The name and value of the sensor for a device's temperature: skin, else battery, else the hottest CPU."""
    found = [item for item in (thermal.temperatures if thermal else ()) if 0 < item.celsius < _HOTTEST_CELSIUS]
    for kind in ("skin", "battery", "cpu"):
        values = [(item.name, item.celsius) for item in found if item.kind == kind]
        if values:
            return max(values, key=lambda value: value[1])
    return None


def power_flags(
    battery: BatteryRecord | None, power_save: bool | None, low_percent: float = LOW_BATTERY_PERCENT
) -> set[Flag]:
    """The flags for power that may slow a device down; a battery that reports no level is not low."""
    level = None if battery is None else battery.level_percent
    flags: set[Flag] = {"power_save"} if power_save else set()
    return flags | {"low_battery"} if level is not None and level < low_percent else flags


def state_flags(
    before: StateRecord, after: StateRecord, *, low_battery_percent: float = LOW_BATTERY_PERCENT
) -> set[Flag]:
    """The flags for reasons to doubt a measurement, from the states before and after it."""
    flags: set[Flag] = set()
    limits = {cpu.cpu: cpu.limit_hz for cpu in before.cpus}
    is_slower = any(
        cpu.limit_hz is not None and cpu.limit_hz < (limits.get(cpu.cpu) or cpu.limit_hz) for cpu in after.cpus
    )
    is_hot = any(state.thermal is not None and (state.thermal.status or 0) > 0 for state in (before, after))
    if is_slower or is_hot:
        flags.add("throttled")
    batteries = [state.battery for state in (before, after) if state.battery is not None]
    # A full battery on a cable does not count as charging, although the cable hides the energy that is used.
    if any(battery.status == "charging" for battery in batteries):
        flags.add("charging")
    if before.screen_on or after.screen_on:
        flags.add("screen_on")
    for state in (before, after):
        flags |= power_flags(state.battery, state.power_save, low_battery_percent)
    return flags


def read_parts(machine: Machine, commands: Mapping[str, str]) -> dict[str, str]:
    """Run several commands in one round trip; the output of one that is missing or fails is empty."""
    script = "\n".join(f"echo; echo '{_MARK}{name}'; {command}" for name, command in commands.items())
    text = machine.shell(f"{{ {script}\n}} 2>/dev/null; true", timeout=READ_S).stdout.replace("\r\n", "\n")
    parts = dict.fromkeys(commands, "")
    for block in f"\n{text}".split(f"\n{_MARK}")[1:]:
        name, _, rest = block.partition("\n")
        if name in parts:
            parts[name] = rest if rest.endswith("\n") or not rest else rest + "\n"
    return parts


def _pretty_name(text: str) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return match[1] if match is not None and match[1] else None
