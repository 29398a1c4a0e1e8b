"""`gemma_edge.devices`: lists the Android devices that can be reached."""

from __future__ import annotations

from collections.abc import Sequence

from device_harness.adb.devices import Device, list_devices


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
