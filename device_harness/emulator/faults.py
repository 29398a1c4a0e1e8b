"""The faults that an emulated device can be told to produce."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from device_harness.parsers.android import THROTTLING_SEVERITIES
from toolkit.base.errors import UsageError

_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]?i?B?)")

Power = Literal["", "odpm", "hal", "hidden", "milliamperes", "no-files"]
POWERS: tuple[Power, ...] = ("odpm", "hal", "hidden", "milliamperes", "no-files")
"""Power rails in files, or in the HAL's dump; a battery's current in another unit; nothing but dumpsys battery."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Bytes are counted over all connections, from when the faults are set; each cut and corruption happens once."""

    drop_at_byte: int | None = None
    """Cut the connection after receiving this many bytes."""
    reboot_at_byte: int | None = None
    """Reboot after receiving this many bytes, which ends all programs."""
    corrupt_at_byte: int | None = None
    """Store this byte, counted over all bytes written to files, with a flipped bit."""
    disk_full_at_byte: int | None = None
    """Report a full disk after storing this many bytes."""
    bytes_per_s: int | None = None
    """The rate of the link in each direction."""
    refused_services: tuple[str, ...] = ()
    """Services to refuse, by the start of their names: `sync:`, `exec:`, `shell,v2`."""
    thermal_status: int = 0
    """0 (none) to 6 (shutdown), as THROTTLING_SEVERITIES."""
    battery_percent: int = 100
    """The battery's level; below 100 the device is not plugged in."""
    power: Power = ""
    """How the device reports its power: by a battery's files, or by one of POWERS."""
    is_screen_on: bool = False
    is_silent: bool = False
    """Accept connections but never answer, like an offline device."""


def parse_faults(texts: Iterable[str]) -> Faults:
    """`--fault` options of the command line.

    >>> parse_faults(["drop=1MiB", "refuse=exec:", "thermal=severe"])
    ... # doctest: +NORMALIZE_WHITESPACE
    Faults(drop_at_byte=1048576, reboot_at_byte=None, corrupt_at_byte=None, disk_full_at_byte=None, bytes_per_s=None,
           refused_services=('exec:',), thermal_status=3, battery_percent=100, power='', is_screen_on=False,
           is_silent=False)
    """
    faults = Faults()
    for text in texts:
        name, _, value = text.partition("=")
        if name in ("drop", "reboot", "corrupt", "disk-full"):
            field = name.replace("-", "_") + "_at_byte"
            faults = replace(faults, **{field: parse_size(value, f"--fault {name}")})  # type: ignore[arg-type]
        elif name == "slow":
            rate = parse_size(value.removesuffix("/s"), "--fault slow")
            if not rate:
                raise UsageError("--fault slow", found="0", wanted="bytes per second, such as 5MB")
            faults = replace(faults, bytes_per_s=rate)
        elif name == "refuse" and value:
            faults = replace(faults, refused_services=(*faults.refused_services, value))
        elif name == "thermal" and value in THROTTLING_SEVERITIES:
            faults = replace(faults, thermal_status=THROTTLING_SEVERITIES.index(value))
        elif name == "battery" and re.fullmatch(r"\d{1,2}|100", value, re.ASCII):
            faults = replace(faults, battery_percent=int(value))
        elif name == "power" and value in POWERS:
            faults = replace(faults, power=value)
        elif name == "screen-on" and not value:
            faults = replace(faults, is_screen_on=True)
        elif name == "silent" and not value:
            faults = replace(faults, is_silent=True)
        else:
            wanted = (
                "drop=BYTES, reboot=BYTES, corrupt=BYTE, disk-full=BYTES, slow=BYTES_PER_S, refuse=SERVICE, "
                f"thermal={'|'.join(THROTTLING_SEVERITIES)}, battery=PERCENT, "
                f"power={'|'.join(POWERS)}, screen-on or silent"
            )
            raise UsageError("--fault", found=repr(text), wanted=wanted)
    return faults


def parse_size(text: str, what: str) -> int:
    """Parse a size such as `64MB` (decimal) or `64MiB` (binary) into bytes.

    >>> parse_size("1.5kB", "x"), parse_size("2MiB", "x"), parse_size("7", "x")
    (1500, 2097152, 7)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        raise UsageError(what, found=repr(text), wanted="bytes, such as 500, 64MB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2]])
