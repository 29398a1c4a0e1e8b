"""Waiting for what another process or thread does, instead of sleeping for as long as it should take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE_S = 600.0
"""How long tests wait for a process or an event; only a fault takes so long, however busy the machine is."""


def wait_until(ready: Callable[[], object]) -> None:
    """Return as soon as the condition holds."""
    give_up = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < give_up, "what is waited for does not happen"
        time.sleep(0.01)


def when(ready: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Act as soon as the condition holds, in a thread that is started here and returned."""

    def run() -> None:
        wait_until(ready)
        act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
