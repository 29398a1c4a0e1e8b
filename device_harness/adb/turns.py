"""Turns at a device, for what would go wrong or give wrong figures if it were done twice at once."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from device_harness.adb.devices import device_key
from toolkit.base.errors import EnvironmentFault, system_reason
from toolkit.base.files import take_lock
from toolkit.runtime.weight_cache import default_directory

_log = logging.getLogger(__name__)


@contextmanager
def in_turn(kind: str, serial: str, place: str = "", *, waiting_for: str, required: bool = True) -> Iterator[None]:
    """Wait until no other process of this user does the same `kind` of work at this `place` of a device.

    All names of a device count as one, as far as they show it. `waiting_for`: what a warning says while this waits.
    EnvironmentFault where nothing can be locked, as in a folder that is read-only; a warning if it is not `required`.
    """
    folder = default_directory() / kind
    name = hashlib.sha256(f"{device_key(serial)} {place}".encode()).hexdigest()[:16]
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(folder / name, "ab"))
            where = f"{serial} {place}".rstrip()
            take_lock(file, fcntl.LOCK_EX, lambda: _log.warning("%s: waiting for %s", where, waiting_for))
        except OSError as error:
            reason = system_reason(error)
            if required:
                remedy = "set GEMMA_EDGE_CACHE to a folder that is writable"
                raise EnvironmentFault(file=folder, found=reason, remedy=remedy) from error
            _log.warning("%s: %s; do not let two processes do this at once", folder, reason)
        yield
