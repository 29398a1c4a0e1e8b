"""Waiting for a cool device, and putting back what was changed."""

from __future__ import annotations

import itertools
import logging

import pytest

from device_harness.adb.shell import ShellResult
from device_harness.adb.transport import DeviceRefusal, Transport
from device_harness.bench.readiness import (
    GateWait,
    PowerGate,
    ReadinessSettings,
    ThermalGate,
    prepared_device,
    resting_limit,
)
from device_harness.emulator import templates
from device_harness.emulator.device import Emulator
from device_harness.emulator.faults import Faults
from device_harness.machines.device import AdbDevice
from device_harness.machines.host import Host
from toolkit.base.errors import UsageError

STAY_ON = "settings get global stay_on_while_plugged_in"
AIRPLANE = "settings get global airplane_mode_on"


@pytest.fixture
def device(folder_device: Emulator) -> Emulator:
    folder_device.set_faults(Faults())
    return folder_device


def _said(machine: AdbDevice, command: str) -> str:
    return machine.shell(command, timeout=20).stdout.strip()


def test_a_cool_device_is_let_through_at_once(device: Emulator, machine: AdbDevice) -> None:
    notes: list[str] = []
    result = ThermalGate(machine, ReadinessSettings(), notes.append).wait()
    assert (result.waited_s, result.timed_out, notes) == (0.0, False, [])


def test_a_hot_device_is_waited_for(device: Emulator, machine: AdbDevice) -> None:
    device.set_faults(Faults(thermal_status=3))
    notes: list[str] = []

    def cool(text: str) -> None:
        notes.append(text)
        device.set_faults(Faults())

    result = ThermalGate(machine, ReadinessSettings(limit_celsius=40, timeout_s=30, poll_s=0.1), cool).wait()
    assert result.waited_s > 0 and not result.timed_out
    assert notes == [f"waiting for {machine.serial} to cool: throttling status severe, SKIN 45.0 °C"]


def test_a_device_has_to_cool_to_the_limit(
    device: Emulator, machine: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = ThermalGate(machine, ReadinessSettings(36, timeout_s=0.2, poll_s=0.1), lambda text: None)
    assert not gate.wait().timed_out
    monkeypatch.setattr(templates, "_SKIN_CELSIUS", (36.1, *templates._SKIN_CELSIUS[1:]))
    device.set_faults(Faults())
    assert gate.wait().timed_out
    monkeypatch.undo()
    device.set_faults(Faults())
    assert not gate.wait().timed_out


def resting(machine: AdbDevice, notes: list[str], **how: float) -> float | None:
    return resting_limit(machine, notes.append, **{"timeout_s": 30, "interval_s": 0.5, **how})


def test_a_device_far_below_its_first_throttling_is_at_rest(device: Emulator, machine: AdbDevice) -> None:
    notes: list[str] = []
    assert (resting(machine, notes, interval_s=30), notes) == (36, [])


def test_a_device_that_is_hot_at_first_is_waited_for_and_gets_the_limit_of_its_rest(
    device: Emulator, machine: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It throttles, then it is only warm, then at rest."""
    device.set_faults(Faults(thermal_status=2))
    heat = iter([(37.0,), (34.0,)])
    notes: list[str] = []

    def cool(seconds: float) -> None:
        for skin in itertools.islice(heat, 1):
            monkeypatch.setattr(templates, "_SKIN_CELSIUS", (*skin, *templates._SKIN_CELSIUS[1:]))
            device.set_faults(Faults())

    monkeypatch.setattr("device_harness.bench.readiness.time.sleep", cool)
    assert resting(machine, notes) == 36
    assert notes == [f"waiting for {machine.serial} to come to rest: throttling status moderate, SKIN 42.0 °C"]
    assert next(heat, None) is None


def test_in_a_hot_room_rest_is_where_a_device_cools_no_more(
    device: Emulator, machine: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_SKIN_CELSIUS", (37.0, *templates._SKIN_CELSIUS[1:]))
    device.set_faults(Faults())
    notes: list[str] = []
    assert resting(machine, notes) == 39 and len(notes) == 1


def test_a_device_that_tells_no_threshold_is_watched(
    device: Emulator, machine: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_THRESHOLDS", "")
    device.set_faults(Faults())
    notes: list[str] = []
    assert resting(machine, notes) == 36 and "to come to rest" in notes[0]


def test_a_device_that_is_not_seen_at_rest_in_time_is_told(device: Emulator, machine: AdbDevice) -> None:
    device.set_faults(Faults(thermal_status=2))
    notes: list[str] = []
    assert resting(machine, notes, timeout_s=0.2) == 44
    assert notes[-1] == f"{machine.serial} did not come to rest in 0 s; its minimum, 42.0 °C, is used"


def test_a_computer_without_a_thermal_service_has_no_limit() -> None:
    assert resting_limit(Host(), pytest.fail, timeout_s=30) is None


def test_a_device_that_stays_hot_is_flagged(device: Emulator, machine: AdbDevice) -> None:
    device.set_faults(Faults(thermal_status=2))
    notes: list[str] = []
    result = ThermalGate(machine, ReadinessSettings(timeout_s=0.3, poll_s=0.1), notes.append).wait()
    assert result.timed_out and result.waited_s >= 0.3
    assert notes[-1].endswith("(throttling status moderate, SKIN 42.0 °C); the results are flagged")


def test_a_device_that_stays_hot_is_refused_if_so_wanted(device: Emulator, machine: AdbDevice) -> None:
    device.set_faults(Faults(thermal_status=4))
    gate = ThermalGate(machine, ReadinessSettings(37.5, timeout_s=0.2, refuses=True, poll_s=0.1), lambda text: None)
    with pytest.raises(DeviceRefusal, match=r"found throttling status critical, SKIN 48.0 °C after 0 s.*at most 37.5"):
        gate.wait()


def test_a_computer_without_a_thermal_service_is_let_through() -> None:
    assert ThermalGate(Host(), ReadinessSettings(limit_celsius=1), lambda text: None).wait().waited_s == 0


LOW = Faults(battery_percent=12)


def test_a_device_with_power_is_let_through_at_once(device: Emulator, machine: AdbDevice) -> None:
    result = PowerGate(machine, ReadinessSettings(on_low_power="refuse"), pytest.fail).wait()
    assert result == GateWait(0.0, timed_out=False)


def test_a_low_battery_is_told_once_and_flags_the_results(device: Emulator, machine: AdbDevice) -> None:
    device.set_faults(LOW)
    notes: list[str] = []
    gate = PowerGate(machine, ReadinessSettings(), notes.append)
    assert gate.wait() == gate.wait() == GateWait(0.0, timed_out=False, flags=frozenset({"low_battery"}))
    assert notes == [f"{machine.serial}: battery 12 %; the results are flagged"]
    assert not PowerGate(machine, ReadinessSettings(low_battery_percent=12), pytest.fail).wait().flags


def test_a_device_that_saves_power_is_refused_if_so_wanted(device: Emulator, machine: AdbDevice) -> None:
    machine.shell("settings put global low_power 1", timeout=20)
    try:
        gate = PowerGate(machine, ReadinessSettings(on_low_power="refuse"), pytest.fail)
        with pytest.raises(DeviceRefusal, match=r"power: found power saving on, wanted a battery of at least 20 %"):
            gate.wait()
    finally:
        machine.shell("settings put global low_power 0", timeout=20)


@pytest.mark.slow
def test_a_battery_is_waited_for_and_flagged_if_it_stays_low(device: Emulator, machine: AdbDevice) -> None:
    device.set_faults(LOW)
    notes: list[str] = []

    def charge(text: str) -> None:
        notes.append(text)
        device.set_faults(Faults())

    settings = ReadinessSettings(timeout_s=30, on_low_power="wait", poll_s=0.1)
    result = PowerGate(machine, settings, charge).wait()
    assert result.waited_s > 0 and not result.timed_out and not result.flags
    assert notes == [f"{machine.serial}: battery 12 %; waiting up to 30 s"]
    device.set_faults(LOW)
    result = PowerGate(machine, ReadinessSettings(timeout_s=0.3, on_low_power="wait", poll_s=0.1), notes.append).wait()
    assert result.timed_out and result.flags == {"low_battery"} and result.waited_s >= 0.3


def test_a_computer_without_a_battery_service_is_let_through() -> None:
    assert PowerGate(Host(), ReadinessSettings(on_low_power="refuse"), pytest.fail).wait().waited_s == 0


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("before", ["2", None])
def test_what_was_changed_is_put_back_whatever_happens(
    device: Emulator, machine: AdbDevice, error: BaseException, before: str | None
) -> None:
    name = "global stay_on_while_plugged_in"
    machine.shell(f"settings put {name} {before}" if before else f"settings delete {name}", timeout=20)
    with pytest.raises(type(error)), prepared_device(machine, stay_awake=True, airplane_mode=True):
        assert (_said(machine, STAY_ON), _said(machine, AIRPLANE)) == ("7", "1")
        raise error
    assert (_said(machine, STAY_ON), _said(machine, AIRPLANE)) == (before or "null", "0")


def test_airplane_mode_that_was_on_stays_on(device: Emulator, machine: AdbDevice) -> None:
    machine.shell("cmd connectivity airplane-mode enable", timeout=20)
    with prepared_device(machine, airplane_mode=True):
        pass
    assert _said(machine, AIRPLANE) == "1"
    machine.shell("cmd connectivity airplane-mode disable", timeout=20)


def test_airplane_mode_that_stays_off_is_refused(
    device: Emulator, machine: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = machine.shell

    def old_android(command: str, *, timeout: float) -> ShellResult:
        if command.startswith("cmd connectivity"):
            return ShellResult("No shell command implementation.\n", "", 0)
        return run(command, timeout=timeout)

    monkeypatch.setattr(machine, "shell", old_android)
    wanted = r"airplane mode: it stays off \(No shell command implementation\.\); switch it on by hand"
    with pytest.raises(DeviceRefusal, match=wanted), prepared_device(machine, airplane_mode=True):
        pytest.fail("it began")


def test_what_cannot_be_put_back_is_told_with_the_command_that_does(
    device: Emulator, machine: AdbDevice, caplog: pytest.LogCaptureFixture
) -> None:
    machine.shell("settings put global stay_on_while_plugged_in 0", timeout=20)
    with prepared_device(machine, stay_awake=True):
        device.set_faults(Faults(refused_services=("shell",)))
    device.set_faults(Faults())
    assert "run this on it: settings put global stay_on_while_plugged_in 0" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_computer_has_no_screen_to_keep_on() -> None:
    with pytest.raises(UsageError, match="--stay-awake: found this computer"), prepared_device(Host(), stay_awake=True):
        pass


def test_airplane_mode_over_a_network_is_refused(machine: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transport, "serial", "192.168.1.20:5555")
    with pytest.raises(UsageError, match="over a network, wanted USB"), prepared_device(machine, airplane_mode=True):
        pass
