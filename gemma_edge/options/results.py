"""Options of the verbs that read benchmark results."""

from __future__ import annotations

import argparse


def add_torn_line_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for a results file whose last line is incomplete after a crash."""
    parser.add_argument("--skip-torn-line", action="store_true", help="ignore an incomplete last line left by a crash")
