"""Builds the page about a set of benchmark records, as plain records for its template `results.html.jinja`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolkit.report.devices_table import devices_table, ratio_texts
from toolkit.report.flash_probe_table import FLASH_PROBE, flash_probe_table
from toolkit.report.memory_section import MemorySection, memory_section
from toolkit.report.numbered_record import NumberedRecord, how_it_ran, joined, row_labels
from toolkit.report.page import Card, Cell, RowGroup, Table, plain_table, without_empty_columns
from toolkit.report.plots import Distributions
from toolkit.report.run_card import MEANINGS, cards
from toolkit.report.run_section import RunSection, run_name, run_section
from toolkit.results.labels import device_name, figure_heading, labels, notes
from toolkit.results.outcomes import Outcome, outcomes
from toolkit.results.quantities import span, unit
from toolkit.results.record import BenchRecord, DriftRecord, Flag
from toolkit.results.statistics import MIN_PERCENTILE_VALUES, MIN_VALUES, compare, median_interval, summary

_ACCEPTANCE = "draft_acceptance_fraction"
MAX_RUNS, MAX_SECTIONS, MAX_PLOTS, MAX_STARTS, MAX_CARDS = 100, 10, 10, 20, 20
"""The most runs that a page shows, and the most sections, plots of distributions, pairs of a cold and a warm run, and
cards: no mail program would open a page with thousands."""

_RESULTS_NOTES: Mapping[str, str] = {
    "median ± sd": "Median and standard deviation over the iterations, with the digits that their spread justifies; "
    "t/s: tokens per second.",
    "95 % interval": "Interval: of the median, by bootstrap over the run's iterations; none for fewer than "
    f"{MIN_VALUES}.",
    "p5 to p95": f"p5 to p95: the 5th and 95th percentile, for {MIN_PERCENTILE_VALUES} iterations or more.",
    "drift": "Drift: the change from the first to the last iteration, and how likely such a trend is by chance (p).",
    "remarks": "Outlier: an iteration over 5 standard deviations (by the median absolute deviation) and 5 % from the "
    "median.",
}
"""Notes below the results, by the heading of the column that they explain."""
_COMPARED_NOTES: Mapping[str, str] = {
    "to the best": "Each test on each device, the best median first; ratios are of medians, relative to the best. Of "
    "several runs on a device, the last one counts.",
    "95 % interval": "An interval that does not contain 1 shows a difference; none for fewer than "
    f"{MIN_VALUES} iterations.",
}


@dataclass(frozen=True, slots=True)
class DeviceResults:
    """The results of all tests on one device."""

    name: str
    results: Table


@dataclass(frozen=True, slots=True)
class ResultsPage:
    """The values for `results.html.jinja`; None or empty where the records have no data."""

    introduction: str
    cards: tuple[Card, ...]
    """For each model on each device, what most readers want to know."""
    warnings: tuple[str, ...]
    devices: tuple[DeviceResults, ...]
    results_notes: tuple[str, ...]
    """The notes that explain the columns of the devices' tables."""
    compared: Table | None
    """A comparison of devices that ran the same tests."""
    compared_notes: tuple[str, ...]
    distributions: tuple[Distributions, ...]
    """One plot for each test on each device; the plots of a test have the same axis."""
    starts: Table | None
    memory: MemorySection | None
    flash_probe: Table | None
    runs: tuple[RunSection, ...]

    @property
    def template(self) -> str:
        """The file name of the page's template."""
        return "results.html.jinja"


def results_page(
    records: Sequence[BenchRecord], left_out: Mapping[str, str] | None = None, folders: Sequence[str] = ()
) -> ResultsPage:
    """Build the page for one or more records; if there are many, it shows the last ones.

    `left_out`: why a runner did not measure, by its name. `folders`: for links, the folder of each record's file,
    relative to the page.
    """
    is_long = len(records) > MAX_RUNS
    first_section = len(records) - MAX_SECTIONS if is_long else 0
    every = [NumberedRecord(place + 1, record, place >= first_section) for place, record in enumerate(records)]
    runs = every[-MAX_RUNS:]
    detailed = [(run, folder) for run, folder in itertools.zip_longest(every, folders, fillvalue=".")]
    days = sorted({record.started_utc[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    tools = ", ".join(sorted({record.tool for record in records}))
    devices, compared = tuple(_devices(runs)), devices_table(runs)
    every_card, plots, pairs = cards(runs), tuple(_distributions(runs)), tuple(_start_pairs(runs))
    most_plots = MAX_PLOTS if is_long else len(plots)
    return ResultsPage(
        introduction=f"{runs_text(len(every))}, {when}, by {tools}",
        cards=every_card[-MAX_CARDS:],
        warnings=(
            *_left_out_runs(len(every)),
            *_left_out("cards, one for each model on each device", len(every_card), "last", MAX_CARDS),
            *_left_out("plots of iterations", len(plots), "first", most_plots),
            *_left_out("pairs of a cold and a warm run", len(pairs), "first", MAX_STARTS),
            *_warnings(runs),
            *(f"Not measured by {name}: {why}." for name, why in (left_out or {}).items()),
        ),
        devices=devices,
        results_notes=_notes_for([device.results for device in devices], _RESULTS_NOTES),
        compared=compared,
        compared_notes=_notes_for([compared] if compared is not None else [], _COMPARED_NOTES),
        distributions=plots[:most_plots],
        starts=_starts(pairs[:MAX_STARTS]),
        memory=memory_section(runs),
        flash_probe=flash_probe_table([run for run in runs if run.record.runner == FLASH_PROBE]),
        runs=tuple(
            run_section(run.record, f"#{run.number} {run_name(run.record)}", run.key, folder)
            for run, folder in (detailed[-MAX_SECTIONS:] if is_long else detailed)
            if isinstance(run, NumberedRecord)
        ),
    )


def runs_text(count: int) -> str:
    """The number of runs in words.

    >>> runs_text(1), runs_text(8)
    ('1 run', '8 runs')
    """
    return "1 run" if count == 1 else f"{count} runs"


def _warnings(runs: Sequence[NumberedRecord]) -> Iterator[str]:
    emulated = [run for run in runs if run.record.device.emulated]
    if emulated:
        which = "All of it was" if len(emulated) == len(runs) else f"{_numbers(emulated)} were"
        yield f"Emulated: {which} measured on an emulated device, so speeds are those of the computer that ran it."
    by_flag: dict[Flag, list[NumberedRecord]] = {}
    for run in runs:
        for flag in run.record.flags:
            by_flag.setdefault(flag, []).append(run)
    for flag, flagged in by_flag.items():
        yield f"{flag.replace('_', ' ').capitalize()}: {_numbers(flagged)}; {MEANINGS[flag]}."


def _left_out_runs(count: int) -> Iterator[str]:
    """A sentence if a page shows only some of its runs."""
    if count > MAX_RUNS:
        shown = f"the last {MAX_RUNS}, and the last {MAX_SECTIONS} in sections of their own"
        yield f"Of {count:,} runs, the page shows {shown}; gemma-edge report with fewer files shows others."


def _left_out(what: str, count: int, which: str, most: int) -> Iterator[str]:
    """A sentence if a page shows only the first or the last `most` of `count` parts."""
    if count > most:
        shown = f"the {which} {most}"
        yield f"Of {count:,} {what}, the page shows {shown}; gemma-edge report with fewer files shows others."


def _numbers(runs: Sequence[NumberedRecord]) -> str:
    return ("run " if len(runs) == 1 else "runs ") + ", ".join(f"#{run.number}" for run in runs)


def _notes_for(tables: Sequence[Table], notes_by_heading: Mapping[str, str]) -> tuple[str, ...]:
    """The notes on those columns that at least one of the tables has."""
    headings = {heading for table in tables for heading in table.headings}
    return tuple(note for heading, note in notes_by_heading.items() if heading in headings)


def _devices(runs: Sequence[NumberedRecord]) -> Iterator[DeviceResults]:
    """One table for each device; probes have a section of their own."""
    measured = [run for run in runs if run.record.runner != FLASH_PROBE]
    for device in dict.fromkeys(device_name(run.record) for run in measured):
        groups = [
            RowGroup(_run_heading(run), [_test_row(run.record, outcome) for outcome in outcomes([run.record])])
            for run in measured
            if device_name(run.record) == device
        ]
        headings = ["test", "median ± sd", "95 % interval", "least to most", "p5 to p95", "n", "drift"]
        headings += ["delegated", "drafts accepted", "remarks"]
        yield DeviceResults(device, without_empty_columns(Table(headings, groups)))


def _run_heading(run: NumberedRecord) -> Cell:
    model = run.record.model
    name = joined(model.name, model.size, model.quantization)
    return Cell(f"#{run.number} {name}: {how_it_ran(run.record)}", flags=notes(run.record), link=run.link)


def _test_row(record: BenchRecord, outcome: Outcome) -> list[Cell]:
    first = outcome.test == next(iter(record.tests))
    return [
        Cell(outcome.test),
        Cell(outcome.text, numeric=True),
        Cell(_interval_text(outcome), numeric=True),
        *(Cell(text, numeric=True) for text in _range_texts(outcome)),
        Cell(str(len(outcome.values)), numeric=True),
        Cell(_drift_text(record.drift.get(outcome.test)), numeric=True),
        Cell(_delegated_text(record) if first else "", numeric=True),
        Cell(_acceptance_text(record) if first else "", numeric=True),
        Cell(", ".join(outcome.remarks)),
    ]


def _delegated_text(record: BenchRecord) -> str:
    """How many nodes a delegate took, of how many; empty if that is unknown."""
    found = record.delegation
    return "" if found is None or found.nodes is None else f"{found.delegated_nodes} of {found.nodes} nodes"


def _acceptance_text(record: BenchRecord) -> str:
    """The median share of drafted tokens that the model accepted; a dash if the runner does not say."""
    found = [item.figures[_ACCEPTANCE] for item in record.iterations if _ACCEPTANCE in item.figures]
    return f"{summary(found).median:.0%}" if found else "-"


def _interval_text(outcome: Outcome) -> str:
    interval = median_interval(outcome.values) if outcome.values else None
    if interval is None:
        return "-"
    return span(outcome.figure, interval.low, interval.high)


def _range_texts(outcome: Outcome) -> tuple[str, str]:
    """The least and the largest value, and the percentiles if there are enough values."""
    found, figure = outcome.found, outcome.figure
    if found is None or found.n < 2:
        return "-", "-"
    texts = [span(figure, low, high, like=found.sd) for low, high in ((found.least, found.most), (found.p5, found.p95))]
    return texts[0], texts[1] if found.n >= MIN_PERCENTILE_VALUES else "-"


def _drift_text(drift: DriftRecord | None) -> str:
    if drift is None:
        return "-"
    chance = "p < 0.001" if drift.p_value < 0.001 else f"p = {drift.p_value:.2g}"
    return f"{100 * drift.change_fraction:+.1f} % ({chance})"


def _distributions(runs: Sequence[NumberedRecord]) -> Iterator[Distributions]:
    """One plot for each test on each device, with a row for each run; none for a test without any repeated run.

    All plots of a test have the same axis.
    """
    tests: dict[tuple[str, str], dict[str, list[tuple[NumberedRecord, Outcome]]]] = {}
    for run in runs:
        for outcome in outcomes([run.record]):
            if outcome.values:
                devices = tests.setdefault((outcome.test, outcome.figure), {})
                devices.setdefault(device_name(run.record), []).append((run, outcome))
    for (test, figure), devices in tests.items():
        every = [value for measured in devices.values() for _, outcome in measured for value in outcome.values]
        factor, axis = _axis(figure, every)
        for device, measured in devices.items():
            if max(len(outcome.values) for _, outcome in measured) < 2:
                continue
            names = row_labels([run for run, _ in measured])
            rows = {
                name: [value * factor for value in outcome.values]
                for name, (_, outcome) in zip(names, measured, strict=True)
            }
            meaning = figure_heading(figure)
            title = f"{test if test == meaning else f'{test} ({meaning})'} on {device}"
            yield Distributions(title, axis, rows, most=factor * max(every))


def _axis(figure: str, values: Sequence[float]) -> tuple[float, str]:
    """The factor and the unit of an axis on which the largest value is easy to read."""
    largest = max((abs(value) for value in values), default=0.0)
    if unit(figure) == "s":
        return next(((f, u) for limit, f, u in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms")) if largest >= limit), (1e6, "µs"))
    if unit(figure) in ("B", "B/s"):
        return 1e-6, f"M{unit(figure)}"
    return 1.0, {"t/s": "tokens/s", "": figure}.get(unit(figure), unit(figure))


def _start_pairs(runs: Sequence[NumberedRecord]) -> Iterator[tuple[NumberedRecord, NumberedRecord]]:
    """Each cold run with each warm run of the same configuration."""
    for cold, warm in itertools.product(runs, runs):
        if (cold.record.start, warm.record.start) == ("cold", "warm") and _same_but_start(cold.record, warm.record):
            yield cold, warm


def _starts(pairs: Sequence[tuple[NumberedRecord, NumberedRecord]]) -> Table | None:
    """A table of cold and warm starts, for configurations measured both ways."""
    rows = [row for cold, warm in pairs for row in _start_rows(cold, warm)]
    headings = ["runs", "what", "test", "cold", "warm", "cold / warm", "95 % interval", "notes"]
    return without_empty_columns(plain_table(headings, rows)) if rows else None


def _same_but_start(one: BenchRecord, other: BenchRecord) -> bool:
    return all(
        (
            {**labels(one), "start": ""} == {**labels(other), "start": ""},
            one.model.sha256 == other.model.sha256,
            one.device == other.device,
            one.runner != FLASH_PROBE,
        )
    )


def _start_rows(cold: NumberedRecord, warm: NumberedRecord) -> Iterator[list[Cell]]:
    warm_outcomes = {outcome.test: outcome for outcome in outcomes([warm.record])}
    flags = tuple(dict.fromkeys(notes(cold.record) + notes(warm.record)))
    for outcome in outcomes([cold.record]):
        other = warm_outcomes.get(outcome.test)
        if other is None or other.found is None or outcome.found is None or other.found.median <= 0:
            continue
        found = compare([other.values], [outcome.values])
        yield [
            Cell(f"#{cold.number}/#{warm.number}"),
            Cell(joined(cold.record.model.name, cold.record.model.size, cold.record.runner, cold.record.backend)),
            Cell(outcome.test),
            Cell(outcome.text, numeric=True),
            Cell(other.text, numeric=True),
            *(Cell(text, numeric=True) for text in ratio_texts(found)),
            Cell("", flags=flags),
        ]
