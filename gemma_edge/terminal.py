"""Prints what commands have to say: results on stdout, everything else on stderr.

Control characters in names and texts from outside are escaped. A file or a pipe receives the same text as a terminal,
but without colours, and with tables at their full width.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, TextIO

from toolkit.base.errors import ToolkitError
from toolkit.base.printable import printable, printable_json

if TYPE_CHECKING:
    from rich.progress import TaskID

    from gemma_edge.progress_bars import ProgressBars

Label = Literal["info", "warning", "error"]
STDOUT = "standard output"

# ECMA-48, select graphic rendition.
_BOLD_RED, _YELLOW, _PLAIN = "\x1b[1;31m", "\x1b[33m", "\x1b[0m"


class Terminal:
    """Output that obeys `--json`, `--quiet` and `--no-progress`; work shorter than `bar_after_s` gets no bar."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, progress: bool = True, bar_after_s: float = 2.0
    ) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._shows_bars = progress and not quiet and sys.stderr.isatty()
        self._bar_after_s = bar_after_s
        self._bars: ProgressBars | None = None

    def result(self, value: object, text: str) -> None:
        """Print a command's result: one line of JSON, or text for people."""
        if self.as_json:
            self._write(printable_json(json.dumps(value, ensure_ascii=False, allow_nan=False)) + "\n")
        else:
            self.say(text)

    def stream(self, text: str) -> None:
        """Print a piece of an answer, without a newline; unescaped to a file or a pipe. Nothing under `--json`."""
        if not self.as_json:
            self._write(_shown(text) if sys.stdout.isatty() else text)

    def say(self, text: str) -> None:
        """Print a line of a result for people; nothing under `--json`."""
        if not self.as_json:
            self._write(_shown(text) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning."""
        with self._hidden_bars(sys.stderr):
            write_line("warning", one_line(text))

    def note(self, text: str) -> None:
        """Print a message on stderr; nothing under `--quiet`."""
        if not self._quiet:
            with self._hidden_bars(sys.stderr):
                write_line("info", text)

    def aside(self, text: str) -> None:
        """Print a piece of what is no part of the result on stderr, without a newline; nothing under `--quiet`."""
        if not self._quiet:
            with self._hidden_bars(sys.stderr):
                to_stderr(_shown(text))

    def error(self, error: ToolkitError) -> None:
        """Print an error as a line on stderr; under `--json`, print its object on stdout too."""
        with self._hidden_bars(sys.stderr):
            write_line("error", one_line(str(error)))
        if self.as_json:
            self._write(json.dumps({"error": error.to_json(), "exit_code": error.exit_code}) + "\n")

    def log(self, label: Label, text: str) -> None:
        """Print a line of the log; the caller has filtered by level."""
        with self._hidden_bars(sys.stderr):
            write_line(label, one_line(text))

    @contextmanager
    def bar(self, title: str, unit: str = "B") -> Iterator[Callable[[int, int], None]]:
        """Yield a progress function, called with done and total; it shows a bar on stderr once the work takes a while.

        `unit` is bytes (`B`), a percentage (`%`), or the plural of what is counted. Several may be open at once, in
        threads of their own.
        """
        begin_s = time.monotonic()
        bar: TaskID | None = None

        def close() -> None:
            nonlocal bar
            if bar is not None and self._bars is not None:
                self._bars.close(bar)
            bar = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if done >= total:
                close()  # further work may follow, with its own bar
            elif self._shows_bars and time.monotonic() - begin_s >= self._bar_after_s:
                bars = self._opened_bars()
                if bar is None:
                    bar = bars.open(title, unit, done, total)
                else:
                    bars.update(bar, done, total)

        try:
            yield show
        finally:
            close()

    def _opened_bars(self) -> ProgressBars:
        if self._bars is None:
            from gemma_edge.progress_bars import ProgressBars  # importing rich takes as long as a short command

            self._bars = ProgressBars()
        return self._bars

    def _write(self, text: str) -> None:
        with self._hidden_bars(sys.stdout):
            to_stdout(text)

    def _hidden_bars(self, stream: TextIO) -> AbstractContextManager[None]:
        return self._bars.hidden() if self._bars is not None and stream.isatty() else nullcontext()


def one_line(text: str) -> str:
    """A text as exactly one line, so that no part of it, whoever wrote that, can look like a separate line."""
    return printable(text)


def write_line(label: Label, text: str) -> None:
    """Print a line on stderr, which starts with the label of an error or a warning."""
    to_stderr(f"{_shown(text)}\n" if label == "info" else f"{_coloured(label)} {_shown(text)}\n")


def to_stdout(text: str) -> None:
    """Write a text on stdout, and all that it still holds.

    OSError with the file name `STDOUT` if that fails, as on a full disk; BrokenPipeError if its reader has closed it.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _give_up(sys.stdout)
        error.filename = STDOUT
        raise


def to_stderr(text: str) -> None:
    """Write a text on stderr; nobody can be told of one that cannot be written, so it is lost."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Send what a stream still holds to the null device: Python writes it again at the end of the process."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _shown(text: str) -> str:
    """Make a text from any source printable, keeping its lines."""
    return printable(text, keep="\n\t")


def _coloured(label: Label) -> str:
    """Whether to use colours: only on a terminal, and unless the user opts out (https://no-color.org)."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return f"{label}:"
    return f"{_YELLOW if label == 'warning' else _BOLD_RED}{label}:{_PLAIN}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns two spaces apart, the first aligned left, numbers right; no wider than a terminal.

    >>> print(table(["group", "bytes"], [["text", "1,200"], ["ple", "30"]]))
    group  bytes
    text   1,200
    ple       30
    """
    cells = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    if sys.stdout.isatty() and sum(widths) + 2 * (len(widths) - 1) > shutil.get_terminal_size().columns:
        return folded(cells, shutil.get_terminal_size().columns, [False, *[True] * (len(widths) - 1)])
    lines = []
    for row in cells:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def folded(cells: Sequence[Sequence[str]], width: int, numeric: Sequence[bool]) -> str:
    """A table with wrapped cells, so that no line is longer than `width` characters; `numeric` columns to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    for heading, to_right in zip(cells[0], [*numeric, *[False] * len(cells[0])], strict=False):
        drawn.add_column(Text(heading), justify="right" if to_right else "left", overflow="fold")
    for row in cells[1:]:
        drawn.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as text:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in text.get().splitlines())
