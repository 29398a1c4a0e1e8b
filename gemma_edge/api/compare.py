"""`gemma_edge.compare`: two sets of benchmark results, with an interval and a verdict for each test."""

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
    """Hold new results against earlier ones, test by test.

    base, new: files of JSON lines, as `bench` writes them; one, or several.
    across: compare although these differ, `device` or `model`; else only what is of the same device and model.
    skip_torn_line: go on without a last line that a crash cut off.

    `regressions(limit)` of what it returns are the tests shown to be worse by more than that fraction. ResultsError for
    what is no such file, UsageError where there is nothing to compare.
    """
    older, newer = (read_records(_several(paths), skip_torn_line=skip_torn_line) for paths in (base, new))
    return compare_results(older, newer, across=tuple(across))


def _several(paths: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [paths] if isinstance(paths, (Path, str)) else paths
