"""Shows the progress of a push: a bar for each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from device_harness.push.source import PushProgress, Step
from gemma_edge.terminal import Terminal


@contextmanager
def step_bars(terminal: Terminal, title: str) -> Iterator[PushProgress]:
    """Yield a progress function that shows a bar for each step, one after the other."""
    with ExitStack() as stack:
        step: Step | None = None
        show: Callable[[int, int], None] | None = None

        def progress(now: Step, done: int, total: int) -> None:
            nonlocal step, show
            if now != step or show is None:
                stack.close()
                step, show = now, stack.enter_context(terminal.bar(f"{title} {now}".strip()))
            show(done, total)
            if done >= total:
                step = None

        yield progress
