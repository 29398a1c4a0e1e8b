"""Parses what devices print about energy: Pixel's power rails, and batteries of Android and Linux.

All parsers are strict: a line of another form has no reading, and a value in another unit is never guessed.
docs/energy.md cites where each form was found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from device_harness.parsers.lines import clean_lines

_FILE = re.compile(r"(/\S*/([a-z_]+)):(.*)", re.ASCII)
_CHANNEL = re.compile(r"CH\d{1,3}\(T=(\d{1,15})\)\[([\w.()/-]{1,80})\], (\d{1,15})", re.ASCII)
_METER_START = "PowerStats HAL 2.0 energy meter"
_METER_ROW = re.compile(
    r"\[?([\w.()/-]{1,80})\]?(?::(\S{0,80}))? +(\d{1,15}\.\d{2}) mWs(?: +\( *-?\d+\.\d{2}\))?", re.ASCII
)
_LISTED_CHANNEL = re.compile(r"ChannelId: \d+, ChannelName: ([\w.()/-]{1,80}), ChannelSubsystem: .*", re.ASCII)
_PAIR = re.compile(r"([^:]+): *(.*)")
_INTEGER = re.compile(r"-?\d{1,15}", re.ASCII)
_DUMPSYS_STATUSES = {"1": "Unknown", "2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}
"""android.os.BatteryManager BATTERY_STATUS_*, in the words of Linux's power supplies."""
_COULOMBS_PER_MICROAMPERE_HOUR = 3.6e-3
_JOULES_PER_MICROWATT_HOUR = 3.6e-3


@dataclass(frozen=True, slots=True)
class BatteryReading:
    """One look at a battery; a value that it does not report is None. Currents have no sign: drivers differ in it."""

    status: str
    """In the words of Linux: `Discharging`, `Charging`, `Full`, `Not charging`, `Unknown`."""
    volts: float | None
    amperes: float | None
    watts: float | None
    coulombs: float | None
    """The charge left, as its counter says."""
    joules: float | None
    """The energy left, for batteries that count energy in place of charge."""


def parse_files(text: str) -> dict[str, tuple[str, ...]]:
    """Parse `grep -H . FILES`: the lines of each file, by path.

    >>> parse_files("/sys/bus/iio/devices/iio:device0/energy_value:t=1\\n/x/status:Full\\n")
    {'/sys/bus/iio/devices/iio:device0/energy_value': ('t=1',), '/x/status': ('Full',)}
    """
    found: dict[str, list[str]] = {}
    for line in clean_lines(text):
        if (match := _FILE.fullmatch(line)) is not None:
            found.setdefault(match[1], []).append(match[3])
    return {path: tuple(lines) for path, lines in found.items()}


def parse_rails(files: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """The joules that each power rail has used since the device started, from the files `energy_value` of its meters.

    A file is `t=MILLISECONDS` and a line `CH0(T=MILLISECONDS)[RAIL], MICROWATT_SECONDS` for each channel. A meter whose
    file has any other line has no readings, and neither has a rail that two meters report.
    """
    found: dict[str, list[float]] = {}
    for path, lines in files.items():
        if not path.endswith("/energy_value") or not lines or re.fullmatch(r"t=\d+", lines[0], re.ASCII) is None:
            continue
        matches = [_CHANNEL.fullmatch(line) for line in lines[1:]]
        if all(matches):
            for match in matches:
                assert match is not None
                found.setdefault(match[2], []).append(int(match[3]) / 1e6)
    return {rail: values[0] for rail, values in found.items() if len(values) == 1}


def parse_energy_meter(text: str) -> dict[str, float]:
    """The joules that each rail has used since the device started, from the energy meter of the power stats HAL.

    That is the part of `dumpsys android.hardware.power.stats.IPowerStats/default` with lines `[RAIL]:SUBSYSTEM
    NUMBER mWs`; energy consumers, which are sums of rails, are another part.
    """
    _, start, rest = text.partition(_METER_START)
    if not start:
        return {}
    found: dict[str, float] = {}
    for line in clean_lines(rest)[1:]:
        if line.startswith("==="):
            break
        if (match := _METER_ROW.fullmatch(line)) is not None and match[1] not in found:
            found[match[1]] = float(match[3]) / 1000
    return found


def parse_listed_rails(text: str) -> tuple[str, ...]:
    """The names of the rails that `dumpsys powerstats` lists, without their energy, which it does not print."""
    _, start, rest = text.partition("available Channels")
    matches = (_LISTED_CHANNEL.fullmatch(line) for line in clean_lines(rest)) if start else ()
    return tuple(match[1] for match in matches if match is not None)


def battery_folders(files: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The folders of the power supplies that are a battery of the machine, not of a mouse or a pen."""
    folders = dict.fromkeys(path.rpartition("/")[0] for path in files)
    return tuple(
        folder
        for folder in folders
        if _only(files, folder, "type") == "Battery"
        and _only(files, folder, "scope") != "Device"
        and _only(files, folder, "present") != "0"
    )


def parse_supply(files: Mapping[str, tuple[str, ...]], folder: str) -> BatteryReading | None:
    """Read a battery's files in `/sys/class/power_supply`; None if they do not say its status.

    Units are the kernel's: microvolts, microamperes, microwatts, microampere hours, microwatt hours.
    """
    status = _only(files, folder, "status")
    if status is None:
        return None
    volts, amperes = (_micro(files, folder, name) for name in ("voltage_now", "current_now"))
    watts, joules = _micro(files, folder, "power_now"), _integer(_only(files, folder, "energy_now"))
    charge = _integer(_only(files, folder, "charge_now") or _only(files, folder, "charge_counter"))
    return BatteryReading(
        status=status,
        volts=volts,
        amperes=None if amperes is None else abs(amperes),
        watts=None if watts is None else abs(watts),
        coulombs=None if charge is None else charge * _COULOMBS_PER_MICROAMPERE_HOUR,
        joules=None if joules is None else joules * _JOULES_PER_MICROWATT_HOUR,
    )


def parse_battery_service(text: str) -> BatteryReading | None:
    """Parse `dumpsys battery`, which counts in millivolts and microampere hours; None without the service.

    Samsung's `current now` is left out: its unit is not documented.
    """
    values: dict[str, str] = {}
    for line in clean_lines(text):
        if (match := _PAIR.fullmatch(line)) is not None:
            values.setdefault(match[1], match[2])
    if "status" not in values:
        return None
    millivolts, charge = _integer(values.get("voltage")), _integer(values.get("Charge counter"))
    return BatteryReading(
        status=_DUMPSYS_STATUSES.get(values["status"], "Unknown"),
        volts=None if millivolts is None else millivolts / 1000,
        amperes=None,
        watts=None,
        coulombs=None if charge is None else charge * _COULOMBS_PER_MICROAMPERE_HOUR,
        joules=None,
    )


def _only(files: Mapping[str, tuple[str, ...]], folder: str, name: str) -> str | None:
    lines = files.get(f"{folder}/{name}", ())
    return lines[0] if len(lines) == 1 else None


def _micro(files: Mapping[str, tuple[str, ...]], folder: str, name: str) -> float | None:
    value = _integer(_only(files, folder, name))
    return None if value is None else value / 1e6


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and _INTEGER.fullmatch(text) is not None else None
