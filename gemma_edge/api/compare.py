"""`gemma_edge.compare`: compares two sets of benchmark results, with an interval and a verdict for each test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_edge.api.report import read_records
from toolkit.results.comparison import Across, ResultsComparison, compare_results


def compare(
    base: Path | str | Sequence[Path | str],
    new: Path | str | Sequence[Path | str],
    *,
    across: Sequence[Across] = (),
    skip_torn_line: bool = False,
) -> ResultsComparison:
    """Compare new results with earlier ones, test by test.

    base, new: one or more results files written by `bench`.
    across: `device`, `model` or both, to compare although these differ; by default they must be equal.
    skip_torn_line: ignore an incomplete last line left by a crash.

    The result's `regressions(limit)` are the tests that are significantly worse, by more than that fraction.
    ResultsError for a file that is not a results file, UsageError if there is nothing to compare.

    >>> compare(results, results).regressions(0.05)
    ()
    """
    older, newer = (read_records(_several(paths), skip_torn_line=skip_torn_line) for paths in (base, new))
    return compare_results(older, newer, across=tuple(across))


def _several(paths: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [paths] if isinstance(paths, (Path, str)) else paths
