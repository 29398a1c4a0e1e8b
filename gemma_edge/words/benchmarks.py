"""Shows the progress of a benchmark on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from device_harness.push.source import PushProgress
from device_harness.runners.spec import BenchListener
from gemma_edge.terminal import Terminal, one_line
from gemma_edge.words.pushing import step_bars
from toolkit.base.files import Progress
from toolkit.results.figures import FigureName
from toolkit.results.quantities import quantity
from toolkit.results.record import Figures


class TerminalListener(BenchListener):
    """Prints a line for each iteration of a benchmark, starting with `title`."""

    def __init__(self, terminal: Terminal, title: str) -> None:
        self._terminal = terminal
        self._title = title

    def note(self, text: str) -> None:
        self._terminal.note(one_line(text))

    def iteration(self, tests: Mapping[str, FigureName], done: int, total: int, figures: Figures | None) -> None:
        """Print the figures of an iteration at once: a run may take minutes, and problems should show early."""
        if figures is None:
            return
        found = [(test, figure) for test, figure in tests.items() if figure in figures]
        parts = ", ".join(f"{test} {quantity(figure, figures[figure])}" for test, figure in found)
        self._terminal.note(f"{self._title} {done}/{total}: {parts}")

    def downloading(self, name: str) -> AbstractContextManager[Progress]:
        return self._terminal.bar(f"downloading {name}")

    def pushing(self, serial: str) -> AbstractContextManager[PushProgress]:
        return step_bars(self._terminal, serial)
