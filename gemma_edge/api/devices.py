"""`gemma_edge.devices`: lists the Android devices that can be reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from device_harness.adb.devices import Device, describe, device_key, list_devices
from toolkit.base.errors import EnvironmentFault, UsageError

ALL = "all"
"""The name that stands for every device that can be used."""


def devices(addresses: Sequence[str] = (), *, timeout_s: float = 3.0) -> tuple[Device, ...]:
    """List the devices of adb's server, on USB, at `addresses` (HOST[:PORT]) and on local emulator ports.

    timeout_s: how long to wait for each answer. For a device that cannot be used, `reason` says why. UsageError for an
    invalid address.

    >>> import gemma_edge
    >>> found = gemma_edge.devices()
    >>> all(device.is_usable or device.reason for device in found)
    True
    """
    return list_devices(addresses, timeout=timeout_s)


def chosen_devices(names: Sequence[str], warn: Callable[[str], None] = lambda text: None) -> tuple[str, ...]:
    """The devices that `names` stand for: those named, or for `all`, every device that can be used.

    With `all`, `warn` gets a line about each device that is left out, because it cannot be used, or because it is there
    by two names, such as a phone that is connected by USB and wirelessly. UsageError for `all` together
    with a name; EnvironmentFault if no device can be used.
    """
    if ALL not in names:
        return tuple(names)
    if len(names) > 1:
        raise UsageError("--device", found="all together with another device", wanted="one or the other")
    found = devices()
    usable: dict[str, str] = {}
    for device in found:
        if not device.is_usable:
            warn(f"left out {describe(device)}")
        elif (known := usable.setdefault(device_key(device.serial), device.serial)) != device.serial:
            warn(f"left out {device.serial}: the same device as {known}")
    if not usable:
        raise EnvironmentFault("--device all", found="no device that can be used", remedy="see gemma-edge devices")
    return tuple(usable.values())
