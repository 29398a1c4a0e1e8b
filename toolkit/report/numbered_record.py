"""Benchmark records with their numbers on a page, and the labels that distinguish them there."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.results.labels import labels, notes, threads_text
from toolkit.results.record import BenchRecord

_LABEL_CHARACTERS = 36


@dataclass(frozen=True, slots=True)
class NumberedRecord:
    """One run on the page; numbers start at 1."""

    number: int
    record: BenchRecord
    has_section: bool = True
    """Whether the page has a section about it."""

    @property
    def key(self) -> str:
        """The HTML id of the run's heading."""
        return f"run-{self.number}"

    @property
    def link(self) -> str:
        """The id to which its number is a link; empty without a section."""
        return self.key if self.has_section else ""


def row_labels(runs: Sequence[NumberedRecord]) -> list[str]:
    """A label for each run: the settings that differ among these runs, and its flags.

    The flags are repeated because a plot may be copied out of its page.
    """
    every = [{**labels(run.record), "threads": threads_text(run.record)} for run in runs]
    differing = [name for name in every[0] if len({each[name] for each in every}) > 1]
    found = []
    for run, each in zip(runs, every, strict=True):
        text = " ".join([f"#{run.number}", *(each[name] for name in differing or ["model"] if each[name])])
        lines = textwrap.wrap(text, _LABEL_CHARACTERS, max_lines=3, placeholder=" …")
        found.append("\n".join([*lines, *filter(None, [", ".join(notes(run.record))])]))
    return found


def how_it_ran(record: BenchRecord) -> str:
    """Runner, backend, threads and start."""
    return joined(record.runner, record.backend, threads_text(record), record.start)


def joined(*texts: str | None) -> str:
    """The texts that are not empty, joined by spaces."""
    return " ".join(text for text in texts if text)
