"""Waiting for what another process or thread does, in place of sleeping as long as it should take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE_S = 600.0
"""Only a fault takes so long, on a machine however busy; how long tests wait for a process or an event."""


def wait_until(ready: Callable[[], object]) -> None:
    """Return as soon as it is so."""
    give_up = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < give_up, "what is waited for does not happen"
        time.sleep(0.01)


def when(ready: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Act in a thread of its own as soon as it is so; the thread has been started."""

    def run() -> None:
        wait_until(ready)
        act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
