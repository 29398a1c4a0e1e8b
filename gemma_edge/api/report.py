"""`gemma_edge.report`: benchmark results as one HTML page."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import UsageError
from toolkit.base.files import Progress, write_bytes
from toolkit.results.json_lines import read_results
from toolkit.results.record import BenchRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """A written page."""

    path: Path
    bytes: int
    records: int
    """Of all files that it shows."""
    flagged_records: int
    """Of these, those that something was not as it should be with, or that are of an emulated device."""


def report(
    results: Sequence[Path | str],
    output: Path | str,
    *,
    skip_torn_line: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a page of all records of some files: tables, plots, and where each figure comes from.

    results: files of JSON lines, as `bench` writes them, each once.
    skip_torn_line: go on without a last line that a crash cut off; else it is an error.
    progress: gets the plots that are drawn, and all there will be.

    ResultsError for what is no such file, UsageError where they have no records.
    """
    from toolkit.report.page import render_page
    from toolkit.report.results_page import results_page

    records = read_records(results, skip_torn_line=skip_torn_line)
    data = render_page(results_page(records), progress)
    write_bytes(output, data)
    flagged = sum(bool(record.flags) or record.device.emulated for record in records)
    return Report(Path(output), len(data), len(records), flagged)


def read_records(paths: Sequence[Path | str], *, skip_torn_line: bool = False) -> list[BenchRecord]:
    """Of all files in turn; UsageError when there are none in all, or a file is named twice."""
    twice = [path for index, path in enumerate(paths) if os.path.realpath(path) in map(os.path.realpath, paths[:index])]
    if twice:
        raise UsageError(file=twice[0], found="the same file twice")
    records: list[BenchRecord] = []
    for path in paths:
        found = read_results(path, skip_torn_line=skip_torn_line)
        if found.torn_bytes:
            _log.warning("%s: the last line is cut off, %s bytes of it are left out", path, f"{found.torn_bytes:,}")
        records += found.records
    if not records:
        named = ", ".join(map(str, paths))
        raise UsageError(file=named, found="no records", remedy="run gemma-edge bench")
    return records
