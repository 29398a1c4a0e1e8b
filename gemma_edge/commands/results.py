"""`gemma-edge results`: exports benchmark results."""

from __future__ import annotations

import argparse

from gemma_edge.api.export_results import export_results
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.results import add_torn_line_option
from gemma_edge.terminal import Terminal
from toolkit.results.quantities import bytes_text

EXAMPLES = (
    "gemma-edge results export results.jsonl -o results.parquet",
    "gemma-edge results export phone-a.jsonl phone-b.jsonl -o both.csv",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("export",), help="export: write one table with a row for each iteration")
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="results files written by bench")
    parser.add_argument(
        "-o", "--output", metavar="FILE.parquet|FILE.csv", required=True,
        help="the table to write; Parquet needs pip install 'gemma-edge[parquet]'",
    )  # fmt: skip
    add_force_option(parser, "a file that is not a table of results")
    add_torn_line_option(parser)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0."""
    table = export_results(
        arguments.results, arguments.output, skip_torn_line=arguments.skip_torn_line, force=arguments.force
    )
    terminal.result(
        {"table": arguments.output, "rows": table.rows, "columns": table.columns, "bytes": table.bytes},
        f"{table.path}: {table.rows:,} iterations, {table.columns} columns, {bytes_text(table.bytes)}",
    )
    return 0
