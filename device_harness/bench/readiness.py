"""Waits until a device is cool and has enough power; changes its settings for a run and restores them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from device_harness.adb.transport import DeviceRefusal
from device_harness.bench.state import (
    LOW_BATTERY_PERCENT,
    READ_S,
    device_temperature,
    power_flags,
    read_light_threshold,
    read_power,
    read_thermal,
)
from device_harness.machines.machine import Machine
from device_harness.parsers.android import THROTTLING_SEVERITIES
from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.base.strict_json import shorten
from toolkit.results.record import Flag, ThermalRecord

Note = Callable[[str], None]
"""Called with a message for the user, such as what is being waited for."""

_STAY_ON = ("stay_on_while_plugged_in", "7")
"""android.os.BatteryManager: on AC, USB and wireless power."""

_MARGIN_CELSIUS = 2.0
"""How far the limit is above the temperature at rest, to which a phone does not cool down between runs."""
_HEADROOM_CELSIUS = 5.0
"""How far below its first throttling a device counts as at rest; chosen as the margin plus what one run adds."""
_SETTLE_S = 30.0
_RECOVER_S = 10.0
_SETTLED_CELSIUS = 0.5
"""A device that cools by less than this in `_SETTLE_S` is at rest."""

_log = logging.getLogger(__name__)


OnLowPower = Literal["flag", "wait", "refuse"]
ON_LOW_POWER: tuple[OnLowPower, ...] = get_args(OnLowPower)


@dataclass(frozen=True, slots=True)
class ReadinessSettings:
    """The settings of the gates: when a device is cool enough, and when it has enough power for full speed."""

    limit_celsius: float | None = None
    """The limit for skin (else battery, else CPU), see `resting_limit`; None: wait only while the device throttles."""
    timeout_s: float = 300.0
    refuses: bool = False
    """Whether a device that stays hot is an error; otherwise its results are flagged."""
    low_battery_percent: float = LOW_BATTERY_PERCENT
    on_low_power: OnLowPower = "flag"
    """What to do if the battery is below that level, or the device saves power."""
    poll_s: float = 2.0


@dataclass(frozen=True, slots=True)
class GateWait:
    """How long a gate waited, and how that ended."""

    waited_s: float
    timed_out: bool
    flags: frozenset[Flag] = frozenset()
    """The flags for a run that begins in this state."""


def resting_limit(machine: Machine, note: Note, *, timeout_s: float, interval_s: float = _SETTLE_S) -> float | None:
    """Find a temperature limit in degrees Celsius for this device in this room: a little above its value at rest.

    The device may still be hot at first. It is at rest if it is well below the temperature at which it reports
    throttling, or if it has stopped cooling, which takes `interval_s` to see; the wait is at most `timeout_s`. None
    for a machine that reports no temperature.
    """
    started = time.monotonic()
    thermal = read_thermal(machine)
    found = device_temperature(thermal)
    if found is None:
        return None
    sensor, lowest = found
    light = read_light_threshold(machine, sensor)
    cool = None if light is None else light - _HEADROOM_CELSIUS
    told = False
    while cool is None or lowest > cool or is_throttling(thermal):
        if (left := timeout_s - (time.monotonic() - started)) <= 0:
            note(f"{machine.serial} did not come to rest in {timeout_s:.0f} s; its minimum, {lowest:.1f} °C, is used")
            break
        if not told:
            note(f"waiting for {machine.serial} to come to rest: {_describe(thermal)}")
            told = True
        time.sleep(min(interval_s, left))
        thermal = read_thermal(machine)
        found = device_temperature(thermal)
        before, lowest = lowest, lowest if found is None else min(lowest, found[1])
        if before - lowest < _SETTLED_CELSIUS and left > interval_s:
            break
    return lowest + _MARGIN_CELSIUS


def is_throttling(thermal: ThermalRecord | None) -> bool:
    """Whether Android reports throttling, which some devices never do."""
    return thermal is not None and (thermal.status or 0) > 0


class PowerGate:
    """Checks the power before each iteration; a machine that reports neither battery nor power saving passes."""

    def __init__(self, machine: Machine, settings: ReadinessSettings, note: Note) -> None:
        self._machine = machine
        self._settings = settings
        self._note = note
        self._told: frozenset[Flag] = frozenset()

    def wait(self) -> GateWait:
        """Check the power, and wait up to `timeout_s` if the settings say so; the flags say whether it is still low.

        DeviceRefusal if the power is low and the settings say `refuse`.
        """
        found = self._look()
        if not found or self._settings.on_low_power == "flag":
            self._tell(found, "the results are flagged")
            return GateWait(0.0, timed_out=False, flags=frozenset(found))
        if self._settings.on_low_power == "refuse":
            remedy = "charge it, turn power saving off, or leave out --on-low-power"
            wanted = f"a battery of at least {self._settings.low_battery_percent:g} % and no power saving"
            raise DeviceRefusal(
                f"{self._machine.serial} power", found=", ".join(found.values()), wanted=wanted, remedy=remedy
            )
        started = time.monotonic()
        self._tell(found, f"waiting up to {self._settings.timeout_s:.0f} s")
        while found and (left := self._settings.timeout_s - (time.monotonic() - started)) > 0:
            time.sleep(min(self._settings.poll_s, left))
            found = self._look()
        return GateWait(time.monotonic() - started, timed_out=bool(found), flags=frozenset(found))

    def _look(self) -> dict[Flag, str]:
        """What is wrong with the device's power, described by flag."""
        battery, power_save = read_power(self._machine)
        level = (battery.level_percent if battery is not None else None) or 0
        words: dict[Flag, str] = {"low_battery": f"battery {level:g} %", "power_save": "power saving on"}
        low = power_flags(battery, power_save, self._settings.low_battery_percent)
        return {flag: text for flag, text in words.items() if flag in low}

    def _tell(self, found: Mapping[Flag, str], what: str) -> None:
        """Tell the user about a state, only once until it changes."""
        if found and frozenset(found) != self._told:
            self._note(f"{self._machine.serial}: {', '.join(found.values())}; {what}")
        self._told = frozenset(found)


class ThermalGate:
    """Checks the temperature before each iteration; a machine without a thermal service passes."""

    def __init__(self, machine: Machine, settings: ReadinessSettings, note: Note) -> None:
        self._machine = machine
        self._settings = settings
        self._note = note

    def wait(self) -> GateWait:
        """Wait until the device is cool, up to `timeout_s`; if it is still hot, DeviceRefusal if set to refuse."""
        started = time.monotonic()
        told = False
        while True:
            thermal = read_thermal(self._machine)
            waited = time.monotonic() - started
            if self._is_cool(thermal):
                return GateWait(waited if told else 0.0, timed_out=False)
            if waited >= self._settings.timeout_s:
                return self._give_up(thermal, waited)
            if not told:
                self._note(f"waiting for {self._machine.serial} to cool: {_describe(thermal)}")
                told = True
            time.sleep(min(self._settings.poll_s, self._settings.timeout_s))

    def _is_cool(self, thermal: ThermalRecord | None) -> bool:
        found, limit = device_temperature(thermal), self._settings.limit_celsius
        return not is_throttling(thermal) and (found is None or limit is None or found[1] <= limit)

    def _give_up(self, thermal: ThermalRecord | None, waited: float) -> GateWait:
        words = _describe(thermal)
        if self._settings.refuses:
            found = f"{words} after {waited:.0f} s"
            remedy = "let it cool, set a higher --max-celsius or --gate-timeout, or leave out --refuse-hot"
            celsius = self._settings.limit_celsius
            limit = "" if celsius is None else f" and at most {celsius:.1f} °C"
            wanted = f"throttling status none{limit}"
            raise DeviceRefusal(f"{self._machine.serial} thermal gate", found=found, wanted=wanted, remedy=remedy)
        self._note(f"{self._machine.serial} is still hot after {waited:.0f} s ({words}); the results are flagged")
        return GateWait(waited, timed_out=True)


def _describe(thermal: ThermalRecord | None) -> str:
    found = device_temperature(thermal)
    status = "unknown" if thermal is None or thermal.status is None else THROTTLING_SEVERITIES[thermal.status]
    return f"throttling status {status}" + (f", {found[0]} {found[1]:.1f} °C" if found else "")


@contextmanager
def prepared_device(machine: Machine, *, stay_awake: bool = False, airplane_mode: bool = False) -> Iterator[None]:
    """Change device settings, and restore them however the work ends; logs a warning for one that it cannot restore."""
    if machine.kind == "host" and (stay_awake or airplane_mode):
        option = "--stay-awake" if stay_awake else "--airplane-mode"
        raise UsageError(option, found="this computer", wanted="an Android device")
    is_local = machine.serial.startswith(("127.0.0.1:", "emulator-"))
    if airplane_mode and machine.kind == "tcp" and not is_local:
        remedy = "connect it by USB"
        raise UsageError("--airplane-mode", found=f"{machine.serial} over a network", wanted="USB", remedy=remedy)
    undo: list[str] = []
    try:
        if stay_awake:
            name, value = _STAY_ON
            old = _setting(machine, name)
            restore = f"settings delete global {name}" if old == "null" else f"settings put global {name} {old}"
            undo.append(restore)
            _run(machine, f"settings put global {name} {value}")
        if airplane_mode and _setting(machine, "airplane_mode_on") != "1":
            undo.append("cmd connectivity airplane-mode disable")
            said = _run(machine, "cmd connectivity airplane-mode enable").strip()
            if _setting(machine, "airplane_mode_on") != "1":  # Android before 11 has no such command, and no exit code
                remedy = "switch it on by hand, and leave out --airplane-mode"
                found = f"it stays off{f' ({shorten(said)})' if said else ''}"
                raise DeviceRefusal(f"{machine.serial} airplane mode", found=found, remedy=remedy)
        yield
    finally:
        for command in reversed(undo):
            _put_back(machine, command)


def _put_back(machine: Machine, command: str) -> None:
    try:
        # After an interrupt the connection may be in the middle of a message.
        machine.recover(timeout=_RECOVER_S)
        _run(machine, command)
    except EnvironmentFault as error:
        _log.warning("%s could not be restored (%s); run this on it: %s", machine.serial, error, command)


def _setting(machine: Machine, name: str) -> str:
    found = _run(machine, f"settings get global {name}").strip()
    if not found.replace("null", "0").isdecimal():
        raise DeviceRefusal(f"{machine.serial} settings get {name}", found=repr(found), wanted="a number or null")
    return found


def _run(machine: Machine, command: str) -> str:
    return machine.shell(command, timeout=READ_S).require(f"{machine.serial} {command}")
