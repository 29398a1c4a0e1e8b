"""The emulated device's output about itself: properties, battery, temperatures, settings.

The layouts are those of Android 14 (AIDL thermal HAL) and of its battery service; the values are made up.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping

MODEL = "emulated device"

_ABIS = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}
_SENSORS = (("CPU", 0, 9.0), ("GPU", 1, 6.0), ("BAT", 2, -2.0), ("SKIN", 3, 0.0))
"""Name, Android's TemperatureType, degrees above the skin."""
_SKIN_CELSIUS = (34.0, 39.0, 42.0, 45.0, 48.0, 52.0, 56.0)
"""Temperature of the skin for each throttling status, from 0."""

_THRESHOLDS = (
    f"\tTemperatureThreshold{{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, {str(_SKIN_CELSIUS[1:])[1:-1]}], "
    f"mColdThrottlingThresholds=[{', '.join(['NaN'] * len(_SKIN_CELSIUS))}]}}"
)


def properties(serial: str) -> dict[str, str]:
    """The properties that getprop lists. Tools recognise an emulated device by one of two, `ro.*.qemu`."""
    abi = _ABIS.get(platform.machine(), platform.machine())
    return {
        "ro.boot.qemu": "1",
        "ro.build.fingerprint": "gemma-edge/emulated/emulated:14/EMU1/1:userdebug/test-keys",
        "ro.build.version.release": "14",
        "ro.build.version.sdk": "34",
        "ro.hardware": "emulated",
        "ro.kernel.qemu": "1",
        "ro.product.cpu.abi": abi,
        "ro.product.cpu.abilist": abi,
        "ro.product.device": "emulated",
        "ro.product.manufacturer": "gemma-edge",
        "ro.product.model": MODEL,
        "ro.product.name": "emulated",
        "ro.serialno": serial,
        "ro.soc.model": "host",
        "sys.boot_completed": "1",
    }


BATTERY_VOLTS = 4.35


def full_charge(percent: int) -> int:
    """The battery's charge counter in microampere hours at a level, before anything was used."""
    return 40_000 * percent


def battery(temperature_tenths: int, percent: int = 100, charge: int | None = None) -> str:
    """`dumpsys battery`: full and on USB power, or below 100 % and unplugged; `charge` in microampere hours."""
    is_full = percent == 100
    return f"""Current Battery Service state:
  AC powered: false
  USB powered: {"true" if is_full else "false"}
  Wireless powered: false
  Max charging current: 500000
  Max charging voltage: 5000000
  Charge counter: {full_charge(percent) if charge is None else charge}
  status: {5 if is_full else 3}
  health: 2
  present: true
  level: {percent}
  scale: 100
  voltage: {round(1000 * BATTERY_VOLTS)}
  temperature: {temperature_tenths}
  technology: Li-ion
"""


def power_supply(current: int, charge: int, *, is_full: bool) -> Mapping[str, str]:
    """The files of a battery in /sys/class/power_supply; `current` in microamperes, below 0 while it discharges."""
    values = {
        "type": "Battery",
        "present": 1,
        "status": "Full" if is_full else "Discharging",
        "voltage_now": round(BATTERY_VOLTS * 1e6),
        "current_now": current,
        "charge_counter": charge,
    }
    return {name: f"{value}\n" for name, value in values.items()}


def energy_value(joules: Mapping[str, float]) -> str:
    """The file `energy_value` of a Pixel's power meter: microwatt seconds by rail."""
    now = round(1000 * time.clock_gettime(time.CLOCK_BOOTTIME))
    rows = enumerate(joules.items())
    return f"t={now}\n" + "".join(
        f"CH{number}(T={now})[{rail}], {round(1e6 * used)}\n" for number, (rail, used) in rows
    )


def energy_meter(joules: Mapping[str, float]) -> str:
    """The dump of Pixel's power stats HAL: energy by rail, and sums of rails as energy consumers."""
    rows = "".join(f"  {rail:>32}   {1000 * used:14.2f} mWs\n" for rail, used in joules.items())
    total = f"  {'CPUCL0':>32}   {1000 * sum(joules.values()):14.2f} mWs\n"
    return (
        "\n============= PowerStats HAL 2.0 energy consumers ==============\n" + total
        + "========== End of PowerStats HAL 2.0 energy consumers ==========\n"
        "\n============= PowerStats HAL 2.0 energy meter ==============\n"
        f"  {'Channel':>32}   {'Cumulative Energy':>18}\n{rows}"
        "========== End of PowerStats HAL 2.0 energy meter ==========\n"
    )  # fmt: skip


def thermal(status: int) -> str:
    """`dumpsys thermalservice`: cached values lag behind the HAL's, as on a phone."""
    skin = _SKIN_CELSIUS[status]
    cached = "\n".join(_sensor(name, kind, _SKIN_CELSIUS[0] + above, 0) for name, kind, above in _SENSORS)
    current = "\n".join(
        _sensor(name, kind, skin + above, status if name == "SKIN" else 0) for name, kind, above in _SENSORS
    )
    return f"""IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
Thermal Status: {status}
Cached temperatures:
{cached}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
{current}
Current cooling devices from HAL:
\tCoolingDevice{{mValue={status}, mType=2, mName=cpufreq-cpu0}}
Temperature static thresholds from HAL:
{_THRESHOLDS}
"""


def _sensor(name: str, kind: int, celsius: float, status: int) -> str:
    return f"\tTemperature{{mValue={celsius}, mType={kind}, mName={name}, mStatus={status}}}"


def skin_celsius(status: int) -> float:
    """The skin sensor's temperature for a throttling status."""
    return _SKIN_CELSIUS[status]


def power(*, is_screen_on: bool) -> str:
    """The lines of `dumpsys power` that say whether the screen is on."""
    wakefulness = "Awake" if is_screen_on else "Asleep"
    return f"POWER MANAGER (dumpsys power)\n\nPower Manager State:\n  mWakefulness={wakefulness}\n  mStayOn=false\n"


def settings() -> Mapping[str, str]:
    """`settings get NAMESPACE KEY`, by `NAMESPACE.KEY`."""
    return {
        "global.airplane_mode_on": "0",
        "global.low_power": "0",
        "global.stay_on_while_plugged_in": "0",
        "system.screen_brightness": "102",
        "system.screen_brightness_mode": "0",
        "system.screen_off_timeout": "30000",
    }


DUMPSYS = """#!/bin/sh
# Services that the emulated device has; each a file.
[ "$1" ] || { echo 'Currently running services:'; ls "$STATE/dumpsys"; exit 0; }
case $1 in *..*|*[!A-Za-z./]*) echo "Can't find service: $1"; exit 0;; esac
if [ -f "$STATE/dumpsys/$1" ]; then cat "$STATE/dumpsys/$1"; else echo "Can't find service: $1"; fi
"""

GETPROP = """#!/bin/sh
if [ "$1" ]; then
    while IFS='=' read -r key value; do [ "$key" = "$1" ] && { echo "$value"; exit 0; }; done < "$STATE/props"
    echo "$2"
else
    while IFS='=' read -r key value; do echo "[$key]: [$value]"; done < "$STATE/props"
fi
"""

SETTINGS = """#!/bin/sh
# settings get|put|delete NAMESPACE KEY [VALUE]
case $2.$3 in *[!a-z_.]*) echo 'bad name' >&2; exit 1;; esac
file=$DATA/system/settings/$2.$3
case $1 in
    get) if [ -f "$file" ]; then cat "$file"; else echo null; fi;;
    put) echo "$4" > "$file";;
    delete) if [ -f "$file" ]; then rm "$file"; echo 'Deleted 1 rows'; else echo 'Deleted 0 rows'; fi;;
    *) echo "unknown command: $1" >&2; exit 1;;
esac
"""

CMD = """#!/bin/sh
# cmd connectivity airplane-mode [enable|disable]
[ "$1 $2" = 'connectivity airplane-mode' ] || { echo "cmd: Can't find service: $1" >&2; exit 20; }
file=$DATA/system/settings/global.airplane_mode_on
case $3 in
    enable) echo 1 > "$file";;
    disable) echo 0 > "$file";;
    '') if [ "$(cat "$file")" = 1 ]; then echo enabled; else echo disabled; fi;;
    *) exit 255;;
esac
"""

DF = """#!/bin/sh
# toybox's columns; the emulated device's limit in place of the host's disk.
case " $*" in *" -h"*) exec "$HOST_DF" "$@";; esac
read -r total used < "$STATE/storage"
echo 'Filesystem     1K-blocks    Used Available Use% Mounted on'
echo "/dev/emulated $((total / 1024)) $((used / 1024)) $(((total - used) / 1024)) $((100 * used / total))% /data"
"""

PERFETTO = """#!/bin/sh
# perfetto --background --txt -c - -o FILE, as Android's: it prints its process id and records until it is told to end.
# The trace has an empty packet, and the power rails' readings every 0.1 s.
[ "$1 $2 $3 $4 $5" = '--background --txt -c - -o' ] || { echo "perfetto: unexpected $*" >&2; exit 1; }
config=$(cat)
case $config in *duration_ms:*data_sources*linux.ftrace*) ;; *) echo 'TraceConfig: no data sources' >&2; exit 1;; esac
(
    trap '' HUP
    printf "\\012\\000" > "$6.new"
    cat "$STATE/perfetto/descriptors" >> "$6.new"
    trap 'mv "$6.new" "$6"; exit 0' TERM
    while :; do cat "$STATE/perfetto/rails" >> "$6.new"; sleep 0.1; done
) </dev/null >/dev/null 2>&1 &
echo $!
"""

PYTHON = """#!/bin/sh
exec "$HOST_PYTHON" "$@"
"""
