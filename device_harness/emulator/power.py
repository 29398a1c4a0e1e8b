"""The emulated device's power: a battery's files, and power rails on request, with energy that grows while it runs.

The power is made up from how busy this computer is: 1 W at rest and up to 5 W. The forms are those of docs/energy.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from device_harness.emulator import templates
from device_harness.emulator.faults import Faults
from device_harness.parsers.cpu import CpuTicks, parse_cpu_ticks

IDLE_WATTS, BUSY_WATTS = 1.0, 5.0
RAILS: Mapping[str, tuple[str, float]] = {
    "S2M_VDD_CPUCL2": ("CPU(BIG)", 0.5),
    "S3M_VDD_CPUCL1": ("CPU(MID)", 0.2),
    "S4M_VDD_CPUCL0": ("CPU(LITTLE)", 0.1),
    "S1M_VDD_MIF": ("DDR", 0.2),
}
"""Subsystem and share of the power, by rail; the names are a Pixel 6's."""
RAILS_OF = ("odpm", "hal", "hidden")
"""The faults with power rails: in files, in the HAL's dump, or for perfetto alone."""
_STEP_S = 0.1
_BATTERY = "sys/class/power_supply/battery"
_METER = "sys/bus/iio/devices/iio:device0"
_HAL = "dumpsys/android.hardware.power.stats.IPowerStats/default"
_TRACED = "system/state/perfetto"
_MICROAMPERE_HOURS_PER_COULOMB = 1e6 / 3600


class PlayedPower:
    """Writes the files of a device's power; while it has rails or discharges, a thread keeps them up to date."""

    def __init__(self, root: Path, write_state: Callable[[str, str], None]) -> None:
        self._root, self._write_state = root, write_state
        self._joules = 0.0
        self._watts = IDLE_WATTS
        self._faults = Faults()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self, faults: Faults) -> None:
        """Report this from now on; the energy used so far stays."""
        self.close()
        self._faults = faults
        for name in (f"{_METER}/energy_value", f"{_BATTERY}/type"):
            (self._root / name).unlink(missing_ok=True)
        for name in (_HAL, "dumpsys/powerstats"):
            (self._root / "system/state" / name).unlink(missing_ok=True)
        for name in ("rails", "descriptors"):
            (self._root / _TRACED / name).unlink(missing_ok=True)
        if faults.power in RAILS_OF:
            self._write_files(_TRACED, {"descriptors": _descriptors()})
            channels = [
                f"ChannelId: {number}, ChannelName: {rail}, ChannelSubsystem: {subsystem}\n"
                for number, (rail, (subsystem, _)) in enumerate(RAILS.items())
            ]
            text = "PowerStatsService dumpsys: available Channels\n" + "".join(channels)
            self._write_state("dumpsys/powerstats", text)
        self._write()
        if faults.battery_percent < 100 or faults.power in RAILS_OF:
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._ended,), name="power", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread; the files stay."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, ended: threading.Event) -> None:
        before, then = _ticks(), time.monotonic()
        while not ended.wait(_STEP_S):
            after, now = _ticks(), time.monotonic()
            busy, idle = after.busy - before.busy, after.idle - before.idle
            self._watts = IDLE_WATTS + (BUSY_WATTS - IDLE_WATTS) * busy / max(1, busy + idle)
            self._joules += self._watts * (now - then)
            before, then = after, now
            self._write()

    def _write(self) -> None:
        faults = self._faults
        used = self._joules / templates.BATTERY_VOLTS * _MICROAMPERE_HOURS_PER_COULOMB
        charge = round(templates.full_charge(faults.battery_percent) - used)
        celsius = templates.skin_celsius(faults.thermal_status)
        text = templates.battery(round(10 * celsius) - 20, faults.battery_percent, charge)
        self._write_state("dumpsys/battery", text)
        if faults.power != "no-files":
            is_full = faults.battery_percent == 100
            amperes = 0.0 if is_full else self._watts / templates.BATTERY_VOLTS
            unit = 1e3 if faults.power == "milliamperes" else 1e6
            self._write_files(_BATTERY, templates.power_supply(round(-amperes * unit), charge, is_full=is_full))
        if faults.power in RAILS_OF:
            self._write_files(_TRACED, {"rails": _energy(self._joules)})
        if faults.power == "odpm":
            text = templates.energy_value({rail: share * self._joules for rail, (_, share) in RAILS.items()})
            self._write_files(_METER, {"energy_value": text})
        if faults.power == "hal":
            rows = {f"[{rail}]:{subsystem}": share * self._joules for rail, (subsystem, share) in RAILS.items()}
            self._write_state(_HAL, templates.energy_meter(rows))

    def _write_files(self, folder: str, files: Mapping[str, str | bytes]) -> None:
        """Replace each file in one step, because a command may be reading it."""
        place = self._root / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            partial = place / f".{name}"
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())
            partial.replace(place / name)


def _ticks() -> CpuTicks:
    """The ticks of all CPUs of this computer together."""
    found = parse_cpu_ticks({"/proc/stat": tuple(Path("/proc/stat").read_text().splitlines())})
    return CpuTicks(sum(ticks.busy for ticks in found.values()), sum(ticks.idle for ticks in found.values()))


# --- packets of a Perfetto trace; the numbers of fields are those of parsers/perfetto.py -----------------------------


def _descriptors() -> bytes:
    rails = [
        _bytes(1, _number(1, index) + _bytes(2, rail.encode()) + _bytes(3, subsystem.encode()))
        for index, (rail, (subsystem, _)) in enumerate(RAILS.items())
    ]
    return _bytes(1, _bytes(40, b"".join(rails)))


def _energy(joules: float) -> bytes:
    now = round(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
    rails = [
        _bytes(2, _number(1, index) + _number(2, now) + _number(3, round(share * joules * 1e6)))
        for index, (_, share) in enumerate(RAILS.values())
    ]
    return _bytes(1, _bytes(40, b"".join(rails)))


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
