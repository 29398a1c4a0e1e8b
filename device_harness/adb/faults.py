"""What can go wrong between host and device, told apart by what the caller can do about it."""

from __future__ import annotations

from toolkit.base.errors import EnvironmentFault


class DeviceFault(EnvironmentFault):
    """A device, or the way to it, that does not do what was asked."""


class ConnectionLost(DeviceFault):
    """The connection is gone; `Transport.reconnect` may bring it back, and what ran may go on on the device."""


class DeviceTimeout(DeviceFault):
    """The device said nothing for too long; the connection itself may be sound."""


class ServiceRefused(DeviceFault):
    """The device does not offer a service, such as `exec:` or `sync:`."""


class DeviceRefusal(DeviceFault):
    """The device understood and said no, in words of its own: disk full, no such folder, permission denied."""


class Unauthorized(DeviceFault):
    """The device does not know the host's key, or nobody has allowed it on the device's screen."""


class ProtocolFault(DeviceFault):
    """Bytes that are no adb; the connection cannot be used any more."""
