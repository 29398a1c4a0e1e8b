"""The page's table that compares devices: the same test of the same configuration on each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toolkit.report.flash_probe_table import FLASH_PROBE
from toolkit.report.numbered_record import NumberedRecord, how_it_ran, joined
from toolkit.report.page import Cell, Table, plain_table, without_empty_columns
from toolkit.results.figures import is_more_better
from toolkit.results.labels import device_name, labels, notes
from toolkit.results.outcomes import Outcome, outcomes
from toolkit.results.statistics import Comparison, Summary, compare


def devices_table(runs: Sequence[NumberedRecord]) -> Table | None:
    """A row for each device of each test that several devices ran; None if there is no such test.

    Ratios are relative to the device with the best median, which comes first. Of several runs on one device, the last
    one counts.
    """
    tests: dict[tuple[object, ...], dict[str, tuple[NumberedRecord, Outcome, Summary]]] = {}
    for run in runs:
        for outcome in outcomes([run.record] if run.record.runner != FLASH_PROBE else []):
            if outcome.found is not None and outcome.found.median > 0:
                key = (*_configuration(run), outcome.test, outcome.figure)
                tests.setdefault(key, {})[device_name(run.record)] = (run, outcome, outcome.found)
    rows = [row for devices in tests.values() if len(devices) > 1 for row in _rows(list(devices.values()))]
    headings = ["model", "ran", "test", "device", "run", "median ± sd", "to the best", "95 % interval", "n"]
    return without_empty_columns(plain_table(headings, rows)) if rows else None


def _configuration(run: NumberedRecord) -> tuple[object, ...]:
    record = run.record
    return (record.model.sha256, *({**labels(record), "device": ""}).values())


def _rows(found: list[tuple[NumberedRecord, Outcome, Summary]]) -> Iterator[list[Cell]]:
    figure = found[0][1].figure
    ordered = sorted(found, key=lambda item: item[2].median, reverse=is_more_better(figure))
    best = ordered[0]
    for run, outcome, _ in ordered:
        first = run is best[0]
        record = run.record
        texts = ("best", "-") if first else ratio_texts(compare([best[1].values], [outcome.values]))
        yield [
            Cell(joined(record.model.name, record.model.size, record.model.quantization) if first else ""),
            Cell(how_it_ran(record) if first else ""),
            Cell(outcome.test if first else ""),
            Cell(device_name(record), flags=notes(record)),
            Cell(f"#{run.number}", link=run.link),
            Cell(outcome.text, numeric=True),
            *(Cell(text, numeric=True) for text in texts),
            Cell(str(len(outcome.values)), numeric=True),
        ]


def ratio_texts(found: Comparison) -> tuple[str, str]:
    """The ratio of a comparison and its interval, for two cells; dashes for what is unknown."""
    ratio, interval = found.ratio, found.interval
    return (
        "-" if ratio is None else f"{ratio:.2f} x",
        "-" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}",
    )
