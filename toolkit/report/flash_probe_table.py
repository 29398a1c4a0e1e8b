"""The table of the flash probe's results: how fast it read rows of per-layer embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.report.numbered_record import NumberedRecord
from toolkit.report.page import Cell, Table, plain_table, without_empty_columns
from toolkit.results.labels import device_name, figure_heading, notes
from toolkit.results.outcomes import outcomes
from toolkit.results.quantities import quantity
from toolkit.results.record import BenchRecord
from toolkit.results.statistics import summary

FLASH_PROBE = "flash_probe"
"""The runner's name in records."""

_LATENCY = "latency_p50_s"


def flash_probe_table(runs: Sequence[NumberedRecord]) -> Table | None:
    """A row for each test of each probe run, with the medians of all figures that belong to it; None without runs.

    A figure belongs to a test if its name begins like that of the test's result, for example with `row_pread_`.
    """
    probes = [(run, outcome) for run in runs if run.record.runner == FLASH_PROBE for outcome in outcomes([run.record])]
    medians = [_medians(run.record, outcome.figure.removesuffix(_LATENCY)) for run, outcome in probes]
    figures = list(dict.fromkeys(name for found in medians for name in found))
    rows = [
        [
            Cell(f"#{run.number}", link=run.link),
            Cell(device_name(run.record)),
            Cell(outcome.test, flags=notes(run.record) if outcome.test == next(iter(run.record.tests)) else ()),
            Cell(run.record.start),
            *(Cell(quantity(name, found[name]) if name in found else "-", numeric=True) for name in figures),
        ]
        for (run, outcome), found in zip(probes, medians, strict=True)
    ]
    headings = ["run", "device", "read", "start", *map(figure_heading, figures)]
    return without_empty_columns(plain_table(headings, rows)) if rows else None


def _medians(record: BenchRecord, beginning: str) -> dict[str, float]:
    """The median of each figure whose name starts with `beginning`, by the rest of its name.

    If the record also has tests with a longer beginning, such as `row_pread_random_` for `row_pread_`, their figures
    are left out.
    """
    longer = [figure.removesuffix(_LATENCY) for figure in record.tests.values() if figure.startswith(beginning)]
    others = tuple(other for other in longer if other != beginning)
    found: dict[str, list[float]] = {}
    for item in record.iterations:
        for name, value in item.figures.items():
            if name.startswith(beginning) and not name.startswith(others):
                found.setdefault(name.removeprefix(beginning), []).append(value)
    return {name: summary(values).median for name, values in found.items()}
