"""The interface of a connection to a device and of its streams, whether direct (`link`) or through adb's server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from device_harness.adb.payload import Buffer, Payload
from device_harness.adb.port import Signer
from device_harness.adb.wire import Banner

STALL_S = 30.0
"""How many seconds without a byte, in the middle of a message, end a connection."""


class Stream(Protocol):
    """A stream to a service of the device; for one thread that reads and one that writes at a time."""

    @property
    def has_input(self) -> bool:
        """Whether `read` would return at once."""

    @property
    def max_write_bytes(self) -> int:
        """The maximum size of one `write`."""

    def write(self, payload: Payload, *, timeout: float) -> None:
        """Send the payload once the device has room for it. A refusal shows only when its answer is read."""

    def drain(self, *, timeout: float) -> bool:
        """Wait until the device has room for more; return False if it has closed the stream instead."""

    def read(self, *, timeout: float) -> Buffer:
        """Some bytes; empty at the end of the stream."""

    def close(self) -> None:
        """Close the stream; its command may continue on the device."""


class Connection(Protocol):
    """A connection to a device, shared by any number of streams and threads."""

    @property
    def name(self) -> str:
        """The device's name in errors."""

    @property
    def banner(self) -> Banner:
        """What the device announced about itself."""

    @property
    def available(self) -> bool:
        """Whether the connection is alive, as far as can be known without asking the device."""

    def connect(self, signers: Sequence[Signer], *, timeout: float, auth_timeout: float) -> None:
        """Connect; `auth_timeout`: seconds to wait for someone to allow the key on the device's screen."""

    def open(self, service: str, *, timeout: float) -> Stream:
        """Open a stream to a service such as `shell:ls`; ServiceRefused at once if the device has no such service."""

    def close(self) -> None:
        """End the connection, and every stream with it."""


def service_name(service: str) -> str:
    """The service's name in errors: `shell,v2,raw` for `shell,v2,raw:ls`."""
    return service.partition(":")[0]
