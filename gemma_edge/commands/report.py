"""`gemma-edge report`: benchmark results as one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gemma_edge.terminal import Terminal, bytes_text
from toolkit.base.errors import UsageError
from toolkit.base.files import write_bytes
from toolkit.report.page import render_page
from toolkit.report.results_page import results_page, runs_text
from toolkit.results.json_lines import read_results
from toolkit.results.record import BenchRecord

EXAMPLES = (
    "gemma-edge report results.jsonl -o report.html",
    "gemma-edge report phone-a.jsonl phone-b.jsonl -o both.html",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="files of results, as bench writes them")
    parser.add_argument("-o", "--output", metavar="FILE.html", required=True, help="the page to write")
    add_torn_line_option(parser)


def add_torn_line_option(parser: argparse.ArgumentParser) -> None:
    """What every reader of results offers: a crash tears the last line of a file."""
    parser.add_argument("--skip-torn-line", action="store_true", help="go on without a last line that a crash cut off")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0."""
    records = read_records(arguments.results, terminal, skip_torn_line=arguments.skip_torn_line)
    with terminal.bar("plots", unit="plots") as progress:
        data = render_page(results_page(records), progress)
    write_bytes(arguments.output, data)
    flagged = sum(bool(record.flags) or record.device.emulated for record in records)
    terminal.result(
        {"report": arguments.output, "records": len(records), "flagged_records": flagged, "bytes": len(data)},
        f"{arguments.output}: {runs_text(len(records))}, {flagged} flagged, {bytes_text(len(data))}",
    )
    return 0


def read_records(paths: Sequence[str], terminal: Terminal, *, skip_torn_line: bool) -> list[BenchRecord]:
    """Of all files in turn; UsageError when there are none in all, or a file is named twice."""
    twice = [path for index, path in enumerate(paths) if Path(path).resolve() in map(_resolved, paths[:index])]
    if twice:
        raise UsageError(file=twice[0], found="the same file twice")
    records: list[BenchRecord] = []
    for path in paths:
        found = read_results(path, skip_torn_line=skip_torn_line)
        if found.torn_bytes:
            terminal.warn(f"{path}: the last line is cut off, {found.torn_bytes:,} bytes of it are left out")
        records += found.records
    if not records:
        raise UsageError(file=", ".join(paths), found="no records", remedy="run gemma-edge bench")
    return records


def _resolved(path: str) -> Path:
    return Path(path).resolve()
