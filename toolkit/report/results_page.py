"""Builds the page about a set of benchmark records, as plain records for its template `results.html.jinja`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolkit.report.devices_table import devices_table
from toolkit.report.flash_probe_table import FLASH_PROBE, flash_probe_table
from toolkit.report.memory_section import MemorySection, memory_section
from toolkit.report.numbered_record import NumberedRecord, how_it_ran, joined, row_labels
from toolkit.report.page import Cell, Picture, Table, without_empty_columns
from toolkit.report.plots import Distributions
from toolkit.report.run_section import RunSection, run_name, run_section
from toolkit.results.labels import device_name, figure_heading, labels, notes
from toolkit.results.outcomes import Outcome, outcomes
from toolkit.results.quantities import quantity, span, unit
from toolkit.results.record import BenchRecord, DriftRecord, Flag
from toolkit.results.statistics import Comparison, compare, median_interval, summary

_ACCEPTANCE = "draft_acceptance_fraction"
MAX_RUNS, MAX_SECTIONS, MAX_PLOTS, MAX_STARTS = 100, 10, 10, 20
"""How many runs a page shows, and of more than that how many in sections of their own, how many plots of distributions,
and how many pairs of a cold and a warm run. Thousands would take hours to draw, and no mail program would open them."""

_MEANINGS: Mapping[Flag, str] = {
    "throttled": "the device slowed down to stay cool",
    "drifted": "figures rose or fell steadily over the iterations",
    "gate_timeout": "the device did not cool down in time before an iteration",
    "charging": "the battery was charging",
    "low_battery": "the battery was low, which slows many devices",
    "power_save": "the device saved power, which slows it",
    "screen_on": "the screen was on",
    "interrupted": "the run was cut short",
    "reconnected": "the connection was lost, and an iteration began again",
    "sampler_failed": "memory and temperature were not sampled to the end",
    "energy_disagrees": "energy differs from what the battery counted, so one of the two is in another unit",
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
    warnings: tuple[str, ...]
    """Warnings, shown before everything else."""
    devices: tuple[DeviceResults, ...]
    compared: Table | None
    """Devices beside each other, where several ran the same."""
    distributions: tuple[Picture, ...]
    starts: Table | None
    memory: MemorySection | None
    flash_probe: Table | None
    runs: tuple[RunSection, ...]

    @property
    def template(self) -> str:
        """The file name of the page's template."""
        return "results.html.jinja"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures on the page."""
        groups = [self.memory.groups.picture] if self.memory is not None and self.memory.groups is not None else []
        courses = [run.course for run in self.runs if run.course is not None]
        return (*self.distributions, *groups, *courses)


def results_page(
    records: Sequence[BenchRecord], left_out: Mapping[str, str] | None = None, folders: Sequence[str] = ()
) -> ResultsPage:
    """Build the page for one or more records; of many, it shows the last ones.

    `left_out`: why a runner did not measure, by its name. `folders`: those of the records' files as seen from the page,
    for links.
    """
    every = [NumberedRecord(number, record) for number, record in enumerate(records, 1)]
    is_long = len(every) > MAX_RUNS
    runs = every[-MAX_RUNS:]
    detailed = [(run, folder) for run, folder in itertools.zip_longest(every, folders, fillvalue=".")]
    days = sorted({record.started_utc[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    tools = ", ".join(sorted({record.tool for record in records}))
    return ResultsPage(
        introduction=f"{runs_text(len(every))}, {when}, by {tools}",
        warnings=(
            *_left_out_runs(len(every)),
            *_warnings(runs),
            *(f"Not measured by {name}: {why}." for name, why in (left_out or {}).items()),
        ),
        devices=tuple(_devices(runs)),
        compared=devices_table(runs),
        distributions=tuple(itertools.islice(_distributions(runs), MAX_PLOTS if is_long else None)),
        starts=_starts(runs),
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
        yield f"{flag.replace('_', ' ').capitalize()}: {_numbers(flagged)}; {_MEANINGS[flag]}."


def _left_out_runs(count: int) -> Iterator[str]:
    """A sentence if a page shows only some of its runs."""
    if count > MAX_RUNS:
        shown = f"the last {MAX_RUNS}, and the last {MAX_SECTIONS} in sections of their own"
        yield f"Of {count:,} runs, the page shows {shown}; gemma-edge report with fewer files shows others."


def _numbers(runs: Sequence[NumberedRecord]) -> str:
    return ("run " if len(runs) == 1 else "runs ") + ", ".join(f"#{run.number}" for run in runs)


def _devices(runs: Sequence[NumberedRecord]) -> Iterator[DeviceResults]:
    """One table for each device; probes have a section of their own."""
    measured = [run for run in runs if run.record.runner != FLASH_PROBE]
    for device in dict.fromkeys(device_name(run.record) for run in measured):
        rows = [row for run in measured if device_name(run.record) == device for row in _test_rows(run)]
        headings = ["run", "model", "ran", "test", "median ± sd", "95 % interval", "p5", "p95", "n", "drift"]
        headings += ["delegated", "drafts accepted", "remarks"]
        yield DeviceResults(device, without_empty_columns(Table(headings, rows)))


def _test_rows(run: NumberedRecord) -> Iterator[list[Cell]]:
    """A row for each test of a run; values that the rows share are only in the first."""
    model, record = run.record.model, run.record
    for index, outcome in enumerate(outcomes([record])):
        first = index == 0
        yield [
            Cell(f"#{run.number}" if first else "", link=run.key if first else ""),
            Cell(joined(model.name, model.size, model.quantization) if first else ""),
            Cell(how_it_ran(record) if first else "", flags=notes(record) if first else ()),
            Cell(outcome.test),
            Cell(outcome.text, numeric=True),
            Cell(_interval_text(outcome), numeric=True),
            *(Cell(text, numeric=True) for text in _percentile_texts(outcome)),
            Cell(str(len(outcome.values)), numeric=True),
            Cell(_drift_text(record.drift.get(outcome.test)), numeric=True),
            Cell(_delegated_text(record) if first else "", numeric=True),
            Cell(_acceptance_text(record) if first else "", numeric=True),
            Cell(", ".join(outcome.remarks)),
        ]


def _delegated_text(record: BenchRecord) -> str:
    """How many nodes a delegate took, of how many; a dash if that is unknown."""
    found = record.delegation
    return "-" if found is None or found.nodes is None else f"{found.delegated_nodes} of {found.nodes} nodes"


def _acceptance_text(record: BenchRecord) -> str:
    """The median share of drafted tokens that the model accepted; a dash if the runner does not say."""
    found = [item.figures[_ACCEPTANCE] for item in record.iterations if _ACCEPTANCE in item.figures]
    return f"{summary(found).median:.0%}" if found else "-"


def _interval_text(outcome: Outcome) -> str:
    interval = median_interval(outcome.values) if outcome.values else None
    if interval is None:
        return "-"
    return span(outcome.figure, interval.low, interval.high)


def _percentile_texts(outcome: Outcome) -> tuple[str, str]:
    if outcome.found is None or outcome.found.n < 2:
        return "-", "-"
    found, figure = outcome.found, outcome.figure
    return quantity(figure, found.p5, like=found.sd), quantity(figure, found.p95, like=found.sd)


def _drift_text(drift: DriftRecord | None) -> str:
    return "-" if drift is None else f"{drift.change_fraction:+.1%} (p {drift.p_value:.2g})"


def _distributions(runs: Sequence[NumberedRecord]) -> Iterator[Picture]:
    """One plot for each test on each device, with a row for each run; none for a test without any repeated run."""
    tests: dict[tuple[str, str, str], list[tuple[NumberedRecord, Outcome]]] = {}
    for run in runs:
        for outcome in outcomes([run.record]):
            if outcome.values:
                key = (device_name(run.record), outcome.test, outcome.figure)
                tests.setdefault(key, []).append((run, outcome))
    for (device, test, figure), measured in tests.items():
        if max(len(outcome.values) for _, outcome in measured) < 2:
            continue
        factor, axis = _axis(figure, [value for _, outcome in measured for value in outcome.values])
        names = row_labels([run for run, _ in measured])
        rows = {
            name: [value * factor for value in outcome.values]
            for name, (_, outcome) in zip(names, measured, strict=True)
        }
        meaning = figure_heading(figure)
        title = f"{test if test == meaning else f'{test} ({meaning})'} on {device}"
        yield Picture(Distributions(title, axis, rows), f"Distribution of {title}")


def _axis(figure: str, values: Sequence[float]) -> tuple[float, str]:
    """The factor and the unit of an axis on which the largest value is easy to read."""
    largest = max((abs(value) for value in values), default=0.0)
    if unit(figure) == "s":
        return next(((f, u) for limit, f, u in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms")) if largest >= limit), (1e6, "µs"))
    if unit(figure) in ("B", "B/s"):
        return 1e-6, f"M{unit(figure)}"
    return 1.0, {"t/s": "tokens/s", "": figure}.get(unit(figure), unit(figure))


def _starts(runs: Sequence[NumberedRecord]) -> Table | None:
    """A table of cold and warm starts, for configurations measured both ways; of many pairs, the first MAX_STARTS."""
    cold_runs = [run for run in runs if run.record.start == "cold"]
    warm_runs = [run for run in runs if run.record.start == "warm"]
    pairs = ((cold, warm) for cold in cold_runs for warm in warm_runs if _same_but_start(cold.record, warm.record))
    rows = [row for cold, warm in itertools.islice(pairs, MAX_STARTS) for row in _start_rows(cold, warm)]
    headings = ["runs", "what", "test", "cold", "warm", "cold / warm", "95 % interval", "notes"]
    return without_empty_columns(Table(headings, rows)) if rows else None


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
            Cell(f"{found.ratio:.2f} x", numeric=True),
            Cell(_ratio_interval_text(found), numeric=True),
            Cell("", flags=flags),
        ]


def _ratio_interval_text(found: Comparison) -> str:
    return "-" if found.interval is None else f"{found.interval.low:.2f} to {found.interval.high:.2f}"
