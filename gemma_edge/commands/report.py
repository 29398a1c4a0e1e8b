"""`gemma-edge report`: writes benchmark results as one HTML page."""

from __future__ import annotations

import argparse

from gemma_edge.api.report import report
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.results import add_torn_line_option
from gemma_edge.terminal import Terminal, one_line
from toolkit.report.results_page import runs_text
from toolkit.results.quantities import bytes_text

EXAMPLES = (
    "gemma-edge report results.jsonl -o report.html",
    "gemma-edge report phone-a.jsonl phone-b.jsonl -o both.html",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="results files written by bench")
    parser.add_argument("-o", "--output", metavar="FILE.html", required=True, help="the page to write")
    add_force_option(parser, "a file that is not a gemma-edge page")
    add_torn_line_option(parser)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0."""
    page = report(arguments.results, arguments.output, skip_torn_line=arguments.skip_torn_line, force=arguments.force)
    terminal.result(
        {
            "report": arguments.output,
            "records": page.records,
            "flagged_records": page.flagged_records,
            "bytes": page.bytes,
        },
        one_line(f"{page.path}: {runs_text(page.records)}, {page.flagged_records} flagged, {bytes_text(page.bytes)}"),
    )
    return 0
