"""The page's section on each run's memory: by parameter group, at its peak, and in the steady state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from toolkit.report.numbered_record import NumberedRecord, how_it_ran, joined, row_labels
from toolkit.report.page import Cell, Table, plain_table, without_empty_columns
from toolkit.report.plots import Bar, StackedBars
from toolkit.results.labels import notes
from toolkit.results.quantities import quantity
from toolkit.results.record import BenchRecord

_MEMORY_GROUPS = (
    "text",
    "token_embedding",
    "per_layer_embedding",
    "ple",
    "vision",
    "audio",
    "weight cache",
    "libraries",
)


@dataclass(frozen=True, slots=True)
class GroupsMemory:
    """Resident memory by parameter group, as a plot and as a table."""

    plot: StackedBars
    table: Table


@dataclass(frozen=True, slots=True)
class MemorySection:
    """The section: at least one of its parts; the other is None if no record has values for it."""

    groups: GroupsMemory | None
    moments: Table | None


def memory_section(runs: Sequence[NumberedRecord]) -> MemorySection | None:
    """The section, or None if no record has any memory values."""
    mapped = [run for run in runs if run.record.memory.groups]
    groups = _groups_memory(mapped) if mapped else None
    rows = [row for run in runs for row in _moment_rows(run)]
    headings = ["run", "ran", "moment", "resident + swapped", "anonymous", "file", "swapped", "PSS", "private dirty"]
    moments = without_empty_columns(plain_table(headings, rows)) if rows else None
    return MemorySection(groups, moments) if groups is not None or moments is not None else None


def _groups_memory(runs: Sequence[NumberedRecord]) -> GroupsMemory:
    names = _ordered({name for run in runs for name in run.record.memory.groups})
    bars = [Bar(label, _megabytes(run.record, names)) for label, run in zip(row_labels(runs), runs, strict=True)]
    title = "Resident memory by parameter group"
    return GroupsMemory(StackedBars(title, "MB", bars), _groups_table(runs, names))


def _groups_table(runs: Sequence[NumberedRecord], names: Sequence[str]) -> Table:
    """The resident and mapped bytes of each group as numbers, since many bars of the plot are too narrow for them."""
    rows = []
    for run in runs:
        groups = run.record.memory.groups
        found = [groups.get(name) for name in names]
        texts = [
            "-" if group is None else f"{quantity('bytes', group.rss_bytes)} of {quantity('bytes', group.mapped_bytes)}"
            for group in found
        ]
        rows.append([Cell(f"#{run.number}", link=run.link), *(Cell(text, numeric=True) for text in texts)])
    return plain_table(["run", *names], rows)


def _megabytes(record: BenchRecord, groups: Sequence[str]) -> dict[str, float]:
    """Resident megabytes of each group, 0 if a run lacks it, so that all bars have the same parts in the same order."""
    found = record.memory.groups
    return {name: found[name].rss_bytes / 1e6 if name in found else 0.0 for name in groups}


def _ordered(names: Iterable[str]) -> list[str]:
    """Parameter groups first, in the order of the model; then the others, by name."""
    return sorted(
        names, key=lambda name: (_MEMORY_GROUPS.index(name) if name in _MEMORY_GROUPS else len(_MEMORY_GROUPS), name)
    )


def _moment_rows(run: NumberedRecord) -> Iterator[list[Cell]]:
    figures = ("rss_and_swap_bytes", "anonymous_bytes", "file_bytes", "swap_bytes", "pss_bytes", "private_dirty_bytes")
    moments = {"peak": run.record.memory.peak, "steady": run.record.memory.steady}
    what = joined(run.record.model.name, how_it_ran(run.record))
    first = True
    for moment, found in moments.items():
        if found is None:
            continue
        texts = [quantity(figure, found[figure]) if figure in found else "-" for figure in figures]
        yield [
            Cell(f"#{run.number}" if first else "", link=run.link if first else ""),
            Cell(what if first else "", flags=notes(run.record) if first else ()),
            Cell(moment),
            *(Cell(text, numeric=True) for text in texts),
        ]
        first = False
