"""`gemma_edge.report`: writes benchmark results as one HTML page."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import UsageError
from toolkit.base.files import write_bytes
from toolkit.base.outputs import Output
from toolkit.results.json_lines import read_results
from toolkit.results.record import BenchRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """A written page."""

    path: Path
    bytes: int
    records: int
    """The number of records on the page."""
    flagged_records: int
    """How many of them have a flag, or come from an emulated device."""


def report(
    results: Sequence[Path | str],
    output: Path | str,
    *,
    skip_torn_line: bool = False,
    force: bool = False,
) -> Report:
    """Write a page about all records of some files, with tables, plots, and the origin of each figure.

    results: results files written by `bench`, each only once.
    skip_torn_line: ignore an incomplete last line left by a crash; by default it is an error.
    force: replace a file at `output` that is not a gemma-edge page.

    ResultsError for a file that is not a results file, UsageError if the files have no records.

    >>> page = report([results], folder / "results.html")
    >>> page.records, page.bytes == page.path.stat().st_size
    (8, True)
    """
    from toolkit.report.page import PAGE, render_page
    from toolkit.report.results_page import results_page

    target = Output(Path(output), PAGE, tuple(map(Path, results)), force)
    target.require()
    read = _read_files(results, skip_torn_line=skip_torn_line)
    records = [record for _, record in read]
    folders = [_relative(path, Path(output)) for path, _ in read]
    data = render_page(results_page(records, folders=folders))
    target.require()  # it may have changed since
    write_bytes(output, data)
    flagged = sum(bool(record.flags) or record.device.emulated for record in records)
    return Report(Path(output), len(data), len(records), flagged)


def _relative(results: Path, page: Path) -> str:
    """The path of a results file's folder as seen from the page, for links; it begins with `.`."""
    found = os.path.relpath(os.path.realpath(results.parent), os.path.realpath(page.parent))
    return found if found.startswith(".") else f"./{found}"


def read_records(paths: Sequence[Path | str], *, skip_torn_line: bool = False) -> list[BenchRecord]:
    """Read the records of all files, in order; UsageError if there are none, or a file is named twice."""
    return [record for _, record in _read_files(paths, skip_torn_line=skip_torn_line)]


def _read_files(paths: Sequence[Path | str], *, skip_torn_line: bool) -> list[tuple[Path, BenchRecord]]:
    twice = [path for index, path in enumerate(paths) if os.path.realpath(path) in map(os.path.realpath, paths[:index])]
    if twice:
        raise UsageError(file=twice[0], found="the same file twice")
    records: list[tuple[Path, BenchRecord]] = []
    for path in paths:
        found = read_results(path, skip_torn_line=skip_torn_line)
        if found.torn_bytes:
            _log.warning("%s: the last line is incomplete; its %s bytes are ignored", path, f"{found.torn_bytes:,}")
        records += [(Path(path), record) for record in found.records]
    if not records:
        named = ", ".join(map(str, paths))
        raise UsageError(file=named, found="no records", remedy="run gemma-edge bench")
    return records
