"""The report of a set of benchmark records: what is shown of them, and in which order."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolkit.report.page import Block, Cell, Page, Picture, Section, Table
from toolkit.report.plots import Bar, Distributions, StackedBars
from toolkit.report.run_section import run_name, run_section
from toolkit.results.labels import device_name, labels, notes, threads_text
from toolkit.results.outcomes import Outcome, outcomes
from toolkit.results.quantities import quantity, span, unit
from toolkit.results.record import BenchRecord, DriftRecord, Flag
from toolkit.results.statistics import Comparison, compare, median_interval, summary

FLASH_PROBE = "flash_probe"
_LATENCY = "latency_p50_s"
_LABEL_CHARACTERS = 36
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
}


@dataclass(frozen=True, slots=True)
class Run:
    """A record and its number on the page."""

    number: int
    record: BenchRecord

    @property
    def key(self) -> str:
        return f"run-{self.number}"


def results_page(records: Sequence[BenchRecord]) -> Page:
    """Everything that the records hold, at least one."""
    runs = [Run(number, record) for number, record in enumerate(records, 1)]
    sections = [
        *_summaries(runs),
        *_distributions(runs),
        *_starts(runs),
        *_memory(runs),
        *_flash_probe(runs),
        Section("runs", "Runs", ["Each with its course over time and where its figures come from."]),
        *(run_section(run.record, f"#{run.number} {run_name(run.record)}", run.key) for run in runs),
    ]
    days = sorted({record.started_utc[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    tools = ", ".join(sorted({record.tool for record in records}))
    return Page("Benchmark report", f"{runs_text(len(runs))}, {when}, by {tools}", list(_warnings(runs)), sections)


def runs_text(count: int) -> str:
    """
    >>> runs_text(1), runs_text(8)
    ('1 run', '8 runs')
    """
    return "1 run" if count == 1 else f"{count} runs"


def _row_labels(runs: Sequence[Run]) -> list[str]:
    """What differs among these runs, and their flags, since pictures travel without the page."""
    every = [{**labels(run.record), "threads": threads_text(run.record)} for run in runs]
    differing = [name for name in every[0] if len({each[name] for each in every}) > 1]
    found = []
    for run, each in zip(runs, every, strict=True):
        text = " ".join([f"#{run.number}", *(each[name] for name in differing or ["model"] if each[name])])
        lines = textwrap.wrap(text, _LABEL_CHARACTERS, max_lines=3, placeholder=" …")
        found.append("\n".join([*lines, *filter(None, [", ".join(notes(run.record))])]))
    return found


def _warnings(runs: Sequence[Run]) -> Iterator[str]:
    emulated = [run for run in runs if run.record.device.emulated]
    if emulated:
        which = "All of it was" if len(emulated) == len(runs) else f"{_numbers(emulated)} were"
        yield f"Emulated: {which} measured on an emulated device, so speeds are those of the computer that ran it."
    by_flag: dict[Flag, list[Run]] = {}
    for run in runs:
        for flag in run.record.flags:
            by_flag.setdefault(flag, []).append(run)
    for flag, flagged in by_flag.items():
        yield f"{flag.replace('_', ' ').capitalize()}: {_numbers(flagged)}; {_MEANINGS[flag]}."


def _numbers(runs: Sequence[Run]) -> str:
    return ("run " if len(runs) == 1 else "runs ") + ", ".join(f"#{run.number}" for run in runs)


def _summaries(runs: Sequence[Run]) -> Iterator[Section]:
    """One table for each device; probes have a section of their own."""
    runs = [run for run in runs if run.record.runner != FLASH_PROBE]
    if runs:
        yield Section("summary", "Results", [])
    devices = list(dict.fromkeys(device_name(run.record) for run in runs))
    for index, device in enumerate(devices):
        mine = [run for run in runs if device_name(run.record) == device]
        rows = [row for run in mine for row in _summary_rows(run)]
        headings = ["run", "model", "ran", "test", "median ± sd", "95 % interval", "p5", "p95", "n", "drift"]
        note = (
            "Interval: of the median, by bootstrap over the iterations of the run, none for fewer than 5. Drift: the "
            "change from first to last iteration, where the run was tested for it. t/s: tokens per second."
        )
        yield Section(f"device-{index + 1}", device, [_without_empty_columns(Table(headings, rows, note))], level=3)


def _summary_rows(run: Run) -> Iterator[list[Cell]]:
    """One for each test; what they share stands in the first."""
    model, record = run.record.model, run.record
    for index, outcome in enumerate(outcomes([record])):
        first = index == 0
        yield [
            Cell(f"#{run.number}" if first else "", link=run.key if first else ""),
            Cell(_joined(model.name, model.size, model.quantization) if first else ""),
            Cell(_ran(record) if first else "", flags=notes(record) if first else ()),
            Cell(outcome.test),
            Cell(outcome.text, numeric=True),
            Cell(_interval_text(outcome), numeric=True),
            *(Cell(text, numeric=True) for text in _percentile_texts(outcome)),
            Cell(str(len(outcome.values)), numeric=True),
            Cell(_drift_text(record.drift.get(outcome.test)), numeric=True),
        ]


def _ran(record: BenchRecord) -> str:
    return _joined(record.runner, record.backend, threads_text(record), record.start)


def _joined(*texts: str | None) -> str:
    return " ".join(text for text in texts if text)


def _without_empty_columns(table: Table) -> Table:
    kept = [
        index
        for index in range(len(table.headings))
        if any(row[index].text.strip("-") or row[index].flags for row in table.rows)
    ]
    return Table([table.headings[i] for i in kept], [[row[i] for i in kept] for row in table.rows], table.note)


def _interval_text(outcome: Outcome) -> str:
    interval = median_interval(outcome.values) if outcome.values else None
    if interval is None:
        return "-"
    return span(outcome.figure, interval.low, interval.high)


def _percentile_texts(outcome: Outcome) -> tuple[str, str]:
    if outcome.found is None or outcome.found.n < 2:
        return "-", "-"
    return quantity(outcome.figure, outcome.found.p5), quantity(outcome.figure, outcome.found.p95)


def _drift_text(drift: DriftRecord | None) -> str:
    return "-" if drift is None else f"{drift.change_fraction:+.1%} (p {drift.p_value:.2g})"


def _distributions(runs: Sequence[Run]) -> Iterator[Section]:
    """One plot for each test on each device, a row for each run that has it; none where no run has two values."""
    tests: dict[tuple[str, str, str], list[tuple[Run, Outcome]]] = {}
    for run in runs:
        for outcome in outcomes([run.record]):
            if outcome.values:
                key = (device_name(run.record), outcome.test, outcome.figure)
                tests.setdefault(key, []).append((run, outcome))
    blocks: list[Block] = [
        "Each iteration is a dot, the first on top; the bar is the median, the band reaches from the 5th to the 95th "
        "percentile. Axes start at 0 only where that leaves room to see."
    ]
    for (device, test, figure), measured in tests.items():
        if max(len(outcome.values) for _, outcome in measured) < 2:
            continue
        factor, axis = _axis(figure, [value for _, outcome in measured for value in outcome.values])
        names = _row_labels([run for run, _ in measured])
        rows = {
            name: [value * factor for value in outcome.values]
            for name, (_, outcome) in zip(names, measured, strict=True)
        }
        meaning = _heading(figure)
        title = f"{test if test == meaning else f'{test} ({meaning})'} on {device}"
        blocks.append(Picture(Distributions(title, axis, rows), f"Distribution of {title}"))
    if len(blocks) > 1:
        yield Section("distributions", "Every iteration", blocks)


def _axis(figure: str, values: Sequence[float]) -> tuple[float, str]:
    """A factor and a unit that suit the largest value."""
    largest = max((abs(value) for value in values), default=0.0)
    if unit(figure) == "s":
        return next(((f, u) for limit, f, u in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms")) if largest >= limit), (1e6, "µs"))
    if unit(figure) in ("B", "B/s"):
        return 1e-6, f"M{unit(figure)}"
    return 1.0, {"t/s": "tokens/s", "": figure}.get(unit(figure), unit(figure))


def _starts(runs: Sequence[Run]) -> Iterator[Section]:
    """Cold against warm, wherever both were measured of the same thing."""
    rows = []
    for cold in runs:
        for warm in runs:
            if (cold.record.start, warm.record.start) == ("cold", "warm") and _same_but_start(cold.record, warm.record):
                rows += list(_start_rows(cold, warm))
    if rows:
        headings = ["runs", "what", "test", "cold", "warm", "cold / warm", "95 % interval", ""]
        note = (
            "Cold: the runner's weight cache was removed before each iteration. Warm: it was kept. A run below says so "
            "if its model was taken out of the kernel's page cache, too."
        )
        table = _without_empty_columns(Table(headings, rows, note))
        yield Section("starts", "Cold and warm start", [table])


def _same_but_start(one: BenchRecord, other: BenchRecord) -> bool:
    return all(
        (
            {**labels(one), "start": ""} == {**labels(other), "start": ""},
            one.model.sha256 == other.model.sha256,
            one.device == other.device,
            one.runner != FLASH_PROBE,
        )
    )


def _start_rows(cold: Run, warm: Run) -> Iterator[list[Cell]]:
    warm_outcomes = {outcome.test: outcome for outcome in outcomes([warm.record])}
    flags = tuple(dict.fromkeys(notes(cold.record) + notes(warm.record)))
    for outcome in outcomes([cold.record]):
        other = warm_outcomes.get(outcome.test)
        if other is None or other.found is None or outcome.found is None or other.found.median <= 0:
            continue
        found = compare([other.values], [outcome.values])
        yield [
            Cell(f"#{cold.number}/#{warm.number}"),
            Cell(_joined(cold.record.model.name, cold.record.model.size, cold.record.runner, cold.record.backend)),
            Cell(outcome.test),
            Cell(outcome.text, numeric=True),
            Cell(other.text, numeric=True),
            Cell(f"{found.ratio:.2f} x", numeric=True),
            Cell(_ratio_interval_text(found), numeric=True),
            Cell("", flags=flags),
        ]


def _ratio_interval_text(found: Comparison) -> str:
    return "-" if found.interval is None else f"{found.interval.low:.2f} to {found.interval.high:.2f}"


def _memory(runs: Sequence[Run]) -> Iterator[Section]:
    blocks: list[Block] = []
    mapped = [run for run in runs if run.record.memory.groups]
    if mapped:
        names = _row_labels(mapped)
        groups = _ordered({name for run in mapped for name in run.record.memory.groups})
        bars = [Bar(name, _group_megabytes(run.record, groups)) for name, run in zip(names, mapped, strict=True)]
        caption = (
            "Resident memory of the runner's process by parameter group, at the moment of the largest total; "
            "pages of files can be dropped and read again, anonymous ones cannot."
        )
        title = "Resident memory by parameter group"
        blocks.append(Picture(StackedBars(title, "MB", bars), title, caption))
        blocks.append(_groups_table(mapped))
    rows = [row for run in runs for row in _memory_rows(run)]
    if rows:
        headings = ["run", "", "", "resident + swapped", "anonymous", "file", "swapped", "PSS", "private dirty"]
        note = (
            "Peak: the maximum of each figure over all samples, not all of one moment. Steady: the median over the "
            "second half of the measured time."
        )
        blocks.append(_without_empty_columns(Table(headings, rows, note)))
    if blocks:
        yield Section("memory", "Memory", blocks)


def _groups_table(runs: Sequence[Run]) -> Table:
    """What the bars are too narrow to say."""
    names = _ordered({name for run in runs for name in run.record.memory.groups})
    rows = []
    for run in runs:
        groups = run.record.memory.groups
        found = [groups.get(name) for name in names]
        texts = [
            "-" if group is None else f"{quantity('bytes', group.rss_bytes)} of {quantity('bytes', group.mapped_bytes)}"
            for group in found
        ]
        rows.append([Cell(f"#{run.number}", link=run.key), *(Cell(text, numeric=True) for text in texts)])
    return Table(["run", *names], rows, "Resident, of what is mapped.")


def _group_megabytes(record: BenchRecord, groups: Sequence[str]) -> dict[str, float]:
    """Of every group, so that all bars have their parts in one order."""
    found = record.memory.groups
    return {name: found[name].rss_bytes / 1e6 if name in found else 0.0 for name in groups}


def _ordered(names: Iterable[str]) -> list[str]:
    """Parameter groups first, in the order of the model; then the others, by name."""
    return sorted(
        names, key=lambda name: (_MEMORY_GROUPS.index(name) if name in _MEMORY_GROUPS else len(_MEMORY_GROUPS), name)
    )


def _memory_rows(run: Run) -> Iterator[list[Cell]]:
    figures = ("rss_and_swap_bytes", "anonymous_bytes", "file_bytes", "swap_bytes", "pss_bytes", "private_dirty_bytes")
    moments = {"peak": run.record.memory.peak, "steady": run.record.memory.steady}
    first = True
    for moment, found in moments.items():
        if found is None:
            continue
        texts = [quantity(figure, found[figure]) if figure in found else "-" for figure in figures]
        yield [
            Cell(f"#{run.number}" if first else "", link=run.key if first else ""),
            Cell(_joined(run.record.model.name, _ran(run.record)) if first else "", flags=notes(run.record) * first),
            Cell(moment),
            *(Cell(text, numeric=True) for text in texts),
        ]
        first = False


def _flash_probe(runs: Sequence[Run]) -> Iterator[Section]:
    """A row for each test of each probe: medians of all figures whose names begin as that of its result does."""
    probes = [(run, outcome) for run in runs if run.record.runner == FLASH_PROBE for outcome in outcomes([run.record])]
    medians = [_medians(run.record, outcome.figure.removesuffix(_LATENCY)) for run, outcome in probes]
    figures = list(dict.fromkeys(name for found in medians for name in found))
    rows = [
        [
            Cell(f"#{run.number}", link=run.key),
            Cell(device_name(run.record)),
            Cell(outcome.test, flags=notes(run.record) if outcome.test == next(iter(run.record.tests)) else ()),
            Cell(run.record.start),
            *(Cell(quantity(name, found[name]) if name in found else "-", numeric=True) for name in figures),
        ]
        for (run, outcome), found in zip(probes, medians, strict=True)
    ]
    if rows:
        headings = ["run", "device", "read", "start", *map(_heading, figures)]
        note = "Medians over the iterations of each probe: how rows of per-layer embeddings come from storage."
        yield Section("probe", "Reads from flash", [_without_empty_columns(Table(headings, rows, note))])


def _medians(record: BenchRecord, beginning: str) -> dict[str, float]:
    """Figure, without its beginning, to median; `row_pread_random_` is no figure of `row_pread_`, if both are there."""
    longer = [figure.removesuffix(_LATENCY) for figure in record.tests.values() if figure.startswith(beginning)]
    others = tuple(other for other in longer if other != beginning)
    found: dict[str, list[float]] = {}
    for item in record.iterations:
        for name, value in item.figures.items():
            if name.startswith(beginning) and not name.startswith(others):
                found.setdefault(name.removeprefix(beginning), []).append(value)
    return {name: summary(values).median for name, values in found.items()}


def _heading(figure: str) -> str:
    """`latency_p50_s` as `latency p50`: its cells say the unit."""
    for ending in ("_bytes_per_s", "_tokens_per_s", "_per_s", "_bytes", "_count", "_s"):
        if figure.endswith(ending):
            return figure.removesuffix(ending).replace("_", " ")
    return figure.replace("_", " ")
