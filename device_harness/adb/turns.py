"""Turns at a device, for what would go wrong or give wrong figures if it were done twice at once."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from device_harness.adb.devices import device_key
from toolkit.runtime.weight_cache import default_directory

_log = logging.getLogger(__name__)


@contextmanager
def in_turn(kind: str, serial: str, place: str = "", *, waiting_for: str) -> Iterator[None]:
    """Wait until no other process of this user does the same `kind` of work at this `place` of a device.

    All names of a device count as one, as far as they show it. `waiting_for`: what a warning says while this waits.
    """
    locks = default_directory() / kind
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{device_key(serial)} {place}".encode()).hexdigest()[:16]
    with open(locks / name, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("%s: waiting for %s", f"{serial} {place}".rstrip(), waiting_for)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
