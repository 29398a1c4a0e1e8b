"""A machine's state, as an emulated device and this computer report it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from mangling import MANGLINGS, NAMES
from paths import FIXTURES

from device_harness.adb.devices import connect
from device_harness.bench.state import device_temperature, power_flags, read_device, read_parts, read_state, state_flags
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import Faults
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host
from device_harness.parsers.android import is_emulated, parse_battery, parse_setting
from toolkit.results.record import BatteryRecord, CpuRecord, Flag, StateRecord, TemperatureRecord, ThermalRecord


def test_an_emulated_device_says_so(machine: AdbDevice) -> None:
    found = read_device(machine)
    assert (found.kind, found.emulated, found.os_version) == ("adb", True, "14")
    assert found.fingerprint is not None and "emulated" in found.fingerprint
    assert found.kernel and found.memory_bytes and found.cpus > 0


def test_this_computer_is_no_emulated_device() -> None:
    found = read_device(Host())
    assert (found.kind, found.emulated, found.fingerprint) == ("host", False, None)
    assert found.cpus > 0 and found.memory_bytes


def test_the_state_of_a_device_is_read_in_one_command(machine: AdbDevice) -> None:
    state = read_state(machine)
    assert state.battery == BatteryRecord(100.0, 32.0, 4.35, "full", ("usb",))
    assert state.thermal is not None and (state.thermal.status, state.thermal.source) == (0, "hal")
    assert state.cpus[0] == CpuRecord(0, "schedutil", 2_000_000_000, 2_000_000_000, 2_000_000_000)
    assert (state.screen_on, state.airplane_mode, state.power_save) == (False, False, False)
    assert state.load_1min is not None


def test_a_computer_has_neither_battery_service_nor_screen() -> None:
    state = read_state(Host())
    assert (state.battery, state.thermal, state.screen_on, state.airplane_mode) == (None, None, None, None)
    assert state.load_1min is not None


def test_throttling_shows_when_it_begins(folder_device: Emulator, machine: AdbDevice) -> None:
    before = read_state(machine)
    folder_device.set_faults(Faults(thermal_status=3))
    after = read_state(machine)
    folder_device.set_faults(Faults())
    assert device_temperature(after.thermal) == ("SKIN", 45.0)
    assert state_flags(before, before) == set()
    assert state_flags(before, after) == {"throttled"}


def test_a_low_battery_and_a_screen_that_is_on_show(folder_device: Emulator, machine: AdbDevice) -> None:
    folder_device.set_faults(Faults(battery_percent=15, is_screen_on=True))
    state = read_state(machine)
    folder_device.set_faults(Faults())
    assert state.battery == BatteryRecord(15.0, 32.0, 4.35, "discharging", ())
    assert state.screen_on and state_flags(state, state) == {"screen_on", "low_battery"}
    assert read_state(machine).screen_on is False


def test_a_device_with_the_old_shell_tells_its_state_too() -> None:
    settings = EmulatorSettings(isolation="folder", features=frozenset())
    with Emulator(settings) as device, connect(device.serial) as old:
        assert read_device(AdbDevice(old)).emulated
        assert read_state(AdbDevice(old)).battery is not None


def test_a_command_that_fails_leaves_the_others_alone() -> None:
    parts = read_parts(Host(), {"a": "echo 1", "b": "no-such-command", "c": "printf unended", "d": "echo 2"})
    assert parts == {"a": "1\n", "b": parts["b"], "c": "unended\n", "d": "2\n"}


def _state(*, thermal: ThermalRecord | None = None, limit_hz: int = 3, **changes: object) -> StateRecord:
    plain = StateRecord(None, thermal, (CpuRecord(0, "walt", 1, limit_hz, 3),), False, None, None, None)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_a_cpu_whose_limit_sinks_is_throttled_and_one_that_always_had_it_is_not() -> None:
    assert state_flags(_state(), _state(limit_hz=2)) == {"throttled"}
    assert state_flags(_state(limit_hz=2), _state(limit_hz=2)) == set()


def test_a_charging_battery_is_flagged_and_a_full_one_is_not() -> None:
    charging = BatteryRecord(50.0, 30.0, 4.0, "charging", ("usb",))
    assert state_flags(_state(battery=charging), _state()) == {"charging"}
    assert state_flags(_state(battery=dataclasses.replace(charging, status="full")), _state()) == set()


RECORDED = (FIXTURES / "device/dumpsys_battery_samsung.txt").read_text()


@pytest.mark.parametrize("mangle", [lambda text: text, *MANGLINGS], ids=["as written", *NAMES])
@pytest.mark.parametrize(("level", "flags"), [("100", set()), ("20", set()), ("19", {"low_battery"})])
def test_a_low_battery_is_flagged_whatever_came_to_the_output_on_its_way(
    mangle: Callable[[str], str], level: str, flags: set[Flag]
) -> None:
    text = RECORDED.replace("level: 100", f"level: {level}")
    assert power_flags(parse_battery(mangle(text)), None) == flags


@pytest.mark.parametrize("cut", ["  level: 1", "  level: ?\n", "  level: 140\n", ""])
def test_a_battery_that_tells_no_level_is_no_low_one(cut: str) -> None:
    text = RECORDED.replace("  level: 100\n", "").partition("  scale")[0]
    assert power_flags(parse_battery(text + cut), None) == set()
    assert power_flags(None, None) == set()


@pytest.mark.parametrize(
    ("text", "flags"),
    [("1\n", {"power_save"}), ("1\r\n", {"power_save"}), ("0\n", set()), ("null\n", set()), ("", set())],
)
def test_power_saving_is_flagged_where_it_is_known(text: str, flags: set[Flag]) -> None:
    saves = parse_setting(text)
    assert power_flags(None, saves) == flags
    assert state_flags(_state(power_save=saves), _state()) == state_flags(_state(), _state(power_save=saves)) == flags


def test_the_gate_takes_the_skin_then_the_battery_then_the_hottest_cpu_and_no_sensor_at_zero() -> None:
    skin, battery = TemperatureRecord("S", "skin", 38.0, 0), TemperatureRecord("B", "battery", 32.0, 0)
    cpus = (TemperatureRecord("C0", "cpu", 50.0, 0), TemperatureRecord("C1", "cpu", 60.0, 0))
    dead = TemperatureRecord("S", "skin", 0.0, 0)
    assert device_temperature(ThermalRecord(0, "hal", (*cpus, battery, skin))) == ("S", 38.0)
    assert device_temperature(ThermalRecord(0, "hal", (dead, *cpus, battery))) == ("B", 32.0)
    assert device_temperature(ThermalRecord(0, "hal", (dead, *cpus))) == ("C1", 60.0)
    assert device_temperature(ThermalRecord(0, "none", (dead,))) is None
    assert device_temperature(None) is None


@pytest.mark.parametrize("name", ["ro.kernel.qemu", "ro.boot.qemu"])
def test_either_property_makes_an_emulator(name: str) -> None:
    assert is_emulated({name: "1"}) and not is_emulated({name: "0"})
