"""What a push did: counters while it runs, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of a push. `bytes_skipped` were on the device already, `bytes_copied` of them in a replaced file."""

    device: str
    target: str
    receiver: Literal["native", "shell"]
    """The program that stored and hashed files on the device: ours, or the device's own tools."""
    files: tuple[str, ...]
    files_sent: tuple[str, ...]
    files_removed: tuple[str, ...]
    bytes_sent: int
    bytes_skipped: int
    bytes_copied: int
    chunks_repaired: int
    reconnects: int
    seconds: float
    """The time from the first request to the last rename."""
    send_seconds: float

    @property
    def megabytes_per_s(self) -> float | None:
        """The rate of the sending only, in 10**6 bytes per second; None if nothing was sent."""
        return self.bytes_sent / 1e6 / self.send_seconds if self.bytes_sent else None


@dataclass(slots=True)
class PushTally:
    """Counters of a push, over all its connections."""

    sent: int = 0
    skipped: int | None = None
    copied: int = 0
    repaired: int = 0
    reconnects: int = 0
    send_seconds: float = 0.0
    files: set[str] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)
