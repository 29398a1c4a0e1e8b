"""Counts the emulated device's received and stored bytes, for its storage limit and for faults."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from device_harness.adb.payload import Buffer
from device_harness.emulator.faults import Faults
from device_harness.emulator.pipe import Piped, at_hand


class Store:
    """Counts bytes received and written, and says when a fault is due. For the daemon's thread only."""

    def __init__(self, limit_bytes: int | None, stored_bytes: Callable[[], int]) -> None:
        self.limit_bytes = limit_bytes
        self.stored_bytes = stored_bytes
        self.faults = Faults()
        self._received = 0
        self._written = 0
        self._done: set[str] = set()

    def set_faults(self, faults: Faults) -> None:
        """Replace the faults; all counts of bytes start again."""
        self.faults = faults
        self._received = self._written = 0
        self._done = set()

    def receivable(self, wanted: int) -> int:
        """How many of `wanted` bytes come in before the next cut."""
        cuts = [at for name, at in self._cuts() if name not in self._done]
        return min([wanted, *(max(0, at - self._received) for at in cuts)])

    def receive(self, count: int) -> None:
        self._received += count

    def due_cut(self) -> str | None:
        """`drop` or `reboot` once its byte has come in; each only once."""
        for name, at in self._cuts():
            if name not in self._done and self._received >= at:
                self._done.add(name)
                return name
        return None

    def room(self) -> int | None:
        """How many bytes may still be written to files, from now on; None without a limit."""
        return None if self.limit_bytes is None else max(0, self.limit_bytes - self.stored_bytes())

    def admit(self, data: Buffer | Piped, room: int | None, written: int) -> Buffer | Piped:
        """`data` as it will be stored; OSError ENOSPC past `room`, of which `written` bytes are used."""
        full = self.faults.disk_full_at_byte
        if (room is not None and written + len(data) > room) or (full is not None and self._written + len(data) > full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        at = self.faults.corrupt_at_byte
        if at is not None and "corrupt" not in self._done and self._written <= at < self._written + len(data):
            self._done.add("corrupt")
            changed = bytearray(at_hand(data))
            changed[at - self._written] ^= 0x10
            data = bytes(changed)
        self._written += len(data)
        return data

    def _cuts(self) -> list[tuple[str, int]]:
        found = (("drop", self.faults.drop_at_byte), ("reboot", self.faults.reboot_at_byte))
        return [(name, at) for name, at in found if at is not None]
