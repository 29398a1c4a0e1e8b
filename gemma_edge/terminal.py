"""What commands say and where: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

# Work that ends sooner needs no bar.
_BAR_AFTER_S = 2.0


class Terminal:
    """stdout and stderr under ``--json``, ``--quiet`` and ``--no-progress``."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, progress: bool = True) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._progress = progress and not quiet and sys.stderr.isatty()

    def result(self, value: object, text: str) -> None:
        """A command's result: one line of JSON, or text for people."""
        line = json.dumps(value, ensure_ascii=False, allow_nan=False) if self.as_json else text
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def stream(self, text: str) -> None:
        """A piece of a result for people, without a line end; nothing under ``--json``."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """A line of a result for people; nothing under ``--json``."""
        self.stream(text + "\n")

    def warn(self, text: str) -> None:
        """Something that may not be meant so."""
        sys.stderr.write(f"warning: {text}\n")

    def note(self, text: str) -> None:
        """What is going on; nothing under ``--quiet``."""
        if not self._quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    @contextmanager
    def bar(self, title: str, unit: str = "B") -> Iterator[Callable[[int, int], None]]:
        """A progress bar on stderr, shown once the work has taken a while: call what it yields with done and total."""
        if not self._progress:
            yield lambda done, total: None
            return
        from tqdm import tqdm  # a third of the start of a command that shows no bar

        with tqdm(
            desc=title,
            unit=unit,
            unit_scale=unit == "B",
            unit_divisor=1000,
            delay=_BAR_AFTER_S,
            leave=False,
            file=sys.stderr,
        ) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)
                # Finished work may be followed by other work, with a bar of its own.
                if done >= total:
                    bar.close()

            yield show


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two blanks apart: the first to the left, numbers to the right.

    >>> print(table(["group", "bytes"], [["text", "1,200"], ["ple", "30"]]))
    group  bytes
    text   1,200
    ple       30
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def bytes_text(count: int) -> str:
    """A size in decimal units.

    >>> bytes_text(999), bytes_text(19_459_904), bytes_text(2_348_810_240)
    ('999 B', '19.5 MB', '2.35 GB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB" if value < 1000 else f"{value:,.0f} GB"


def count_text(count: int) -> str:
    """A number of parameters.

    >>> count_text(950), count_text(9_728_000), count_text(1_905_495_648)
    ('950', '9.73 M', '1.91 B')
    """
    if count < 10**6:
        return f"{count:,}"
    return f"{count / 10**6:.3g} M" if count < 10**9 else f"{count / 10**9:.3g} B"
