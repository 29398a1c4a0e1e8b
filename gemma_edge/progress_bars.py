"""Progress bars on stderr, one line for each piece of running work, from any thread; the only user of rich's bars.

Imported when the first bar is shown, so that short work does not wait for rich.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from toolkit.base.printable import printable
from toolkit.results.quantities import quantity

_REFRESHES_PER_S = 4


class ProgressBars:
    """The bars of one terminal; without any, nothing is drawn."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.percentage:>3.0f} %", markup=False, table_column=Column(no_wrap=True, min_width=5)),
            _AmountColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            expand=True,
            console=Console(stderr=True),
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            # `Terminal` itself hides the bars while it prints a line, on stdout or stderr.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def open(self, title: str, unit: str, done: int, total: int) -> TaskID:
        """Add a bar below the others."""
        with self._lock:
            bar = self._progress.add_task(printable(title), total=total, completed=done, unit=unit)
            self._progress.start()
            return bar

    def update(self, bar: TaskID, done: int, total: int) -> None:
        """Set the amount done and the total."""
        self._progress.update(bar, completed=done, total=total)

    def close(self, bar: TaskID) -> None:
        """Remove a bar; with the last one, nothing drawn is left."""
        with self._lock:
            self._progress.remove_task(bar)
            if not self._progress.task_ids:
                self._progress.stop()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the bars while a line is printed."""
        with self._lock:
            if not self._progress.task_ids:
                yield
                return
            self._progress.stop()
            try:
                yield
            finally:
                self._progress.start()


class _AmountColumn(ProgressColumn):
    """The text beside a bar: `12 MB of 1.2 GB, 34 MB/s`, or `3 of 8 plots`; empty for work counted in percent."""

    def render(self, task: Task) -> Text:
        unit, done, total = str(task.fields["unit"]), int(task.completed), int(task.total or 0)
        if unit == "%":
            return Text("")
        if unit != "B":
            return Text(f"{done:,} of {total:,} {unit}")
        speed = f", {quantity('bytes_per_s', task.speed)}" if task.speed else ""
        return Text(f"{quantity('bytes', done)} of {quantity('bytes', total)}{speed}")
