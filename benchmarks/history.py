"""Shows how rates changed from commit to commit, from the records in results/: a table, and a plot on request.

Peers are in the table too: if their rates changed as much as ours, the machine changed and not our code. Only records
of one machine with equal conditions are compared; commits are in the order in which they were measured. The records of
November 2026 have only medians, so they give no verdict.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import RESULTS
from benchmarks.old_results import old_points
from benchmarks.plot_results import OLD
from toolkit.report.plots import Distributions, plot_output, write_plot
from toolkit.report.tables import markdown
from toolkit.results.json_lines import read_results
from toolkit.results.labels import figure_heading
from toolkit.results.quantities import quantity, unit
from toolkit.results.record import BenchRecord
from toolkit.results.statistics import compare, summary

OLD_SCRIPTS = ("decode", "bandwidth", "convert_size")
"""Those of November 2026 with rates of ours."""
_OURS = "gemma-edge"
_NOT_OURS = ("memory_read_bytes_per_s", "memory_bandwidth_fraction", "storage_bytes_per_s")
"""What the machine gives, measured beside."""
_TIMES = ("convert_s",)
_COMMIT_CHARACTERS = 8
_UNIT_WORDS = {"t/s": "tokens/s"}


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of one commit: the values of each of its runs."""

    commit: str
    runs: tuple[tuple[float, ...], ...]

    @property
    def values(self) -> list[float]:
        return [value for run in self.runs for value in run]


@dataclass(frozen=True, slots=True)
class History:
    """One figure, under equal conditions on one machine, by commit in the order of measurement."""

    script: str
    conditions: str
    machine: str
    figure: str
    commits: tuple[Measured, ...]


def histories(results: Path) -> list[History]:
    """All rates, ours and those of peers, that were measured at two commits or more."""
    found: dict[tuple[str, str, str, str], dict[str, list[tuple[float, ...]]]] = {}
    for script, conditions, machine, commit, figure, values in _measurements(results):
        commits = found.setdefault((script, conditions, machine, figure), {})
        commits.setdefault(commit, []).append(values)
    return [
        History(*key, tuple(Measured(commit, tuple(runs)) for commit, runs in commits.items()))
        for key, commits in found.items()
        if len(commits) > 1
    ]


def _measurements(results: Path) -> Iterator[tuple[str, str, str, str, str, tuple[float, ...]]]:
    """Script, conditions, machine, commit, figure and values, old records first."""
    for script in OLD_SCRIPTS:
        path = results / OLD / f"{script}.jsonl"
        for point in old_points(path, script) if path.exists() else []:
            *machine, commit = point.origin
            where = " ".join(str(part) for part in _flat(machine))
            for figure, value in point.figures.items():
                if _is_rate(figure):
                    yield script, _facts(point.facts), where, str(commit), figure, (value,)
    for path in sorted(results.glob("*.jsonl")):
        for record in read_results(path).records:
            if record.script is not None:
                yield from _of_record(path.stem, record, record.script.commit)


def _of_record(
    script: str, record: BenchRecord, commit: str
) -> Iterator[tuple[str, str, str, str, str, tuple[float, ...]]]:
    device, model = record.device, record.model
    machine = " ".join(str(part) for part in (device.model, device.cpus, device.memory_bytes, device.kernel))
    named = {"model": model.name, "size": model.size or "", "quantization": model.quantization or ""}
    conditions = {**named, "start": record.start, **(record.script.conditions if record.script is not None else {})}
    for name, number in (("threads", record.threads), ("context", record.context)):
        conditions |= {} if number is None else {name: f"{name} {number}"}
    for figure in dict.fromkeys(name for item in record.iterations for name in item.figures):
        if _is_rate(figure):
            values = tuple(item.figures[figure] for item in record.iterations if figure in item.figures)
            yield script, _facts(conditions), machine, commit, figure, values


def _flat(parts: Sequence[object]) -> Iterator[object]:
    for part in parts:
        yield from _flat(part) if isinstance(part, (tuple, list)) else [part]


def _facts(facts: Mapping[str, str]) -> str:
    """Conditions on one line. Sizes are rounded to 0.1 GB, because they change a little with every layout."""
    texts = {**facts, "bytes": f"{int(facts['bytes']) / 1e9:.1f} GB"} if "bytes" in facts else facts
    return ", ".join(value for value in texts.values() if value)


def _short(commit: str) -> str:
    """The beginning of a commit's hash, with its + if files had changed."""
    return commit.rstrip("+")[:_COMMIT_CHARACTERS] + "+" * commit.endswith("+")


def _is_rate(figure: str) -> bool:
    return (figure.endswith("_per_s") or figure in _TIMES) and figure not in _NOT_OURS


def history_table(found: Sequence[History]) -> str:
    """A row for each commit; changes are relative to the previous commit, with a verdict if both have 5 values."""
    rows = []
    for history in found:
        before: Measured | None = None
        for now in history.commits:
            middle = summary(now.values)
            spread = middle.sd if middle.n > 1 else None
            shared = [history.script, history.conditions, history.machine] if before is None else ["", "", ""]
            rows.append(
                [
                    *shared,
                    history.figure if before is None else "",
                    _short(now.commit),
                    quantity(history.figure, middle.median, spread),
                    str(middle.n),
                    "" if before is None else _change(before, now),
                ]
            )
            before = now
    headings = ["script", "conditions", "machine", "figure", "commit", "median ± sd", "n", "change"]
    return markdown(headings, rows, numeric=[False, False, False, False, False, True, True, False])


def _change(before: Measured, now: Measured) -> str:
    found = compare(before.runs, now.runs)
    if found.ratio is None:
        return found.verdict
    return f"{found.ratio - 1:+.1%}" + ("" if found.interval is None else f" ({found.verdict})")


def history_plot(found: Sequence[History], script: str, figure: str) -> Distributions | None:
    """A plot with a row for each commit of each history of one figure of ours; None if there is no history."""
    rows = {
        f"{history.conditions}\n{_short(now.commit)}": now.values
        for history in found
        if (history.script, history.figure) == (script, figure) and _OURS in history.conditions
        for now in history.commits
    }
    return (
        Distributions(
            f"{figure_heading(figure).capitalize()} rate by commit, oldest first",
            _UNIT_WORDS.get(unit(figure), unit(figure)),
            rows,
        )
        if rows
        else None
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--script", help="of this script only, such as decode")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg|FILE.png", help="also draw decode rates by commit")
    parser.add_argument("--force", action="store_true", help="replace a FILE that is not a plot of ours")
    options = parser.parse_args(arguments)
    found = [history for history in histories(options.results) if options.script in (None, history.script)]
    print(history_table(found) if found else "no rate was measured at two commits on one machine")
    plot = history_plot(found, "decode", "decode_tokens_per_s")
    if options.plot is not None and plot is not None:
        write_plot(plot, plot_output(options.plot, force=options.force))
        print(options.plot)


if __name__ == "__main__":
    main()
