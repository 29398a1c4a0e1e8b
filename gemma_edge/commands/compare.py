"""`gemma-edge compare`: compares two sets of benchmark results, with an interval and a verdict for each test."""

from __future__ import annotations

import argparse
import re

from gemma_edge.api.compare import compare
from gemma_edge.options.results import add_torn_line_option
from gemma_edge.terminal import Terminal, one_line
from gemma_edge.words.wide_tables import fitted
from toolkit.base.errors import UsageError
from toolkit.report.comparison_table import comparison_json, comparison_table
from toolkit.results.comparison import ACROSS, Across, ComparedTest, ResultsComparison
from toolkit.results.statistics import MIN_VALUES

EXAMPLES = (
    "gemma-edge compare before.jsonl after.jsonl",
    "gemma-edge compare int8.jsonl int4.jsonl --across model",
    "gemma-edge compare base.jsonl new.jsonl --max-regression 5%",
)

_BOTH = "both"
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,3})?) ?%?", re.ASCII)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="a results file written by bench")
    parser.add_argument("new", metavar="NEW", help="the results file to compare with it")
    parser.add_argument(
        "--across",
        metavar="WHAT",
        default="",
        help=f"compare results although this differs: {', '.join(ACROSS)} or {_BOTH}; by default, only results of the "
        "same device and model are compared",
    )
    parser.add_argument(
        "--max-regression",
        metavar="PERCENT",
        help="end with exit code 1 if a test is significantly worse, by more than this; 2 if that cannot be "
        "decided; without it the exit code is 0, whatever the results",
    )
    add_torn_line_option(parser)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0; with --max-regression, 1 if a test got worse by more than that."""
    across = _parse_across(arguments.across)
    limit = None if arguments.max_regression is None else _parse_percent(arguments.max_regression)
    found = compare(arguments.base, arguments.new, across=across, skip_torn_line=arguments.skip_torn_line)
    if limit is not None:
        _require_judged(found)
    worse = () if limit is None else found.regressions(limit)
    value = comparison_json(found) | ({} if limit is None else {"regressed": [_name(item) for item in worse]})
    terminal.result(value, comparison_table(found, fitted))
    for item in worse:
        terminal.note(one_line(f"worse by {item.worsening:.1%}, more than {limit:.1%}: {_name(item)}"))
    return 1 if worse else 0


def _parse_across(text: str) -> tuple[Across, ...]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if wanted == [_BOTH]:
        return ACROSS
    known = tuple(what for what in ACROSS if what in wanted)
    if len(known) < len(wanted):
        raise UsageError("--across", found=text, wanted=f"{', '.join(ACROSS)} or {_BOTH}")
    return known


def _parse_percent(text: str) -> float:
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise UsageError("--max-regression", found=text, wanted="a percentage such as 5%")
    return float(match[1]) / 100


def _require_judged(found: ResultsComparison) -> None:
    """UsageError if a test cannot be judged: a gate must not pass because of missing values."""
    option = "--max-regression"
    unjudged = next((item for item in found.tests if not item.is_judged), None)
    if unjudged is not None and unjudged.verdict == "too few values":
        counts = f"{unjudged.found.base.n} and {unjudged.found.new.n} values of {_name(unjudged)}"
        remedy = "run gemma-edge bench with a larger -r"
        raise UsageError(option, found=counts, wanted=f"at least {MIN_VALUES} each", remedy=remedy)
    if unjudged is not None:
        median = f"a median of {unjudged.found.base.median:g} in the base of {_name(unjudged)}"
        raise UsageError(option, found=median, wanted="one above 0, to state a change of it")
    if found.only_in_base:
        remedy = "run gemma-edge bench for it, as for the base"
        raise UsageError(option, found=f"no new results of {found.only_in_base[0]}", remedy=remedy)
    if not found.tests:
        raise UsageError(option, found="no test with values in both files", remedy="run gemma-edge bench for both")


def _name(item: ComparedTest) -> str:
    return f"{item.test} of {item.configuration}"
