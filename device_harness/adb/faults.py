"""Faults between host and device, one class for each way in which the caller can react."""

from __future__ import annotations

from toolkit.base.errors import EnvironmentFault


class DeviceFault(EnvironmentFault):
    """A device, or the connection to it, failed."""


class ConnectionLost(DeviceFault):
    """The connection is lost; `Transport.reconnect` may restore it. Commands may still run on the device."""


class DeviceTimeout(DeviceFault):
    """The device was silent for too long; the connection itself may still work."""


class ServiceRefused(DeviceFault):
    """The device does not offer a service, such as `exec:` or `sync:`."""


class DeviceRefusal(DeviceFault):
    """The device refused a request, with its own message: disk full, no such folder, permission denied."""


class Unauthorized(DeviceFault):
    """The device does not trust the host's key: nobody has allowed it on the device's screen."""


class ProtocolFault(DeviceFault):
    """Bytes that break adb's protocol; the connection cannot be used any more."""
