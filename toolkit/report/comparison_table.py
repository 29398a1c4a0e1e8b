"""A comparison of two sets of results, as a table in Markdown and as JSON."""

from __future__ import annotations

from toolkit.base.printable import printable
from toolkit.report.tables import Draw, markdown
from toolkit.results.comparison import ComparedTest, ResultsComparison
from toolkit.results.outcomes import summary_text


def comparison_table(found: ResultsComparison, draw: Draw = markdown) -> str:
    """A Markdown table, followed by what differs between the sides and by what one of them lacks.

    `draw`: instead of `markdown`, for a terminal.
    """
    header = ["configuration", "test", "base", "new", "change", "95 % interval", "verdict", "n", "notes"]
    rows = [_row(item) for item in found.tests]
    lines = [draw(header, rows, numeric=[False, True, True, True, True, True, False, True, False])]
    differences = dict.fromkeys(line for item in found.tests for line in item.differences)
    lines += [f"differs: {line}" for line in differences]
    lines += [f"only in the base: {name}" for name in found.only_in_base]
    lines += [f"only in the new results: {name}" for name in found.only_in_new]
    return "\n".join([lines[0], *([""] if lines[1:] else []), *map(printable, lines[1:])])


def comparison_json(found: ResultsComparison) -> dict[str, object]:
    """The object of `compare --json`. Medians are in the unit in which `figure` ends; `ratio` is new over base, null
    if that is not above 0."""
    return {
        "tests": [
            {
                "configuration": item.configuration,
                "test": item.test,
                "figure": item.figure,
                "base_median": item.found.base.median,
                "new_median": item.found.new.median,
                "base_n": item.found.base.n,
                "new_n": item.found.new.n,
                "ratio": item.found.ratio,
                "ratio_low": item.found.interval and item.found.interval.low,
                "ratio_high": item.found.interval and item.found.interval.high,
                "verdict": item.verdict,
                "differences": list(item.differences),
                "notes": list(item.notes),
            }
            for item in found.tests
        ],
        "only_in_base": list(found.only_in_base),
        "only_in_new": list(found.only_in_new),
    }


def _row(item: ComparedTest) -> list[str]:
    base, new, interval = item.found.base, item.found.new, item.found.interval
    return [
        item.configuration,
        item.test,
        summary_text(item.figure, base),
        summary_text(item.figure, new),
        "-" if item.found.ratio is None else f"{item.found.ratio - 1:+.1%}",
        "-" if interval is None else f"{interval.low - 1:+.1%} to {interval.high - 1:+.1%}",
        item.verdict,
        f"{base.n}, {new.n}",
        ", ".join(item.notes),
    ]
