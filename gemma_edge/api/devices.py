"""`gemma_edge.devices`: the Android devices that can be reached, and why some cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

from device_harness.adb.devices import Device, list_devices


def devices(addresses: Sequence[str] = (), *, timeout_s: float = 3.0) -> tuple[Device, ...]:
    """Devices on USB, at `addresses` (HOST[:PORT]) and on this computer's emulator ports.

    timeout_s: seconds that each has to answer. A device that cannot be used says why in `reason`. UsageError for what
    is no address.

    >>> import gemma_edge
    >>> found = gemma_edge.devices()
    >>> all(device.is_usable or device.reason for device in found)
    True
    """
    return list_devices(addresses, timeout=timeout_s)
