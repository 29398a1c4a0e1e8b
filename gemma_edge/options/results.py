"""Options of the verbs that read benchmark results."""

from __future__ import annotations

import argparse


def add_torn_line_option(parser: argparse.ArgumentParser) -> None:
    """What every reader of results offers: a crash tears the last line of a file."""
    parser.add_argument(
        "--skip-torn-line", action="store_true", help="ignore an incomplete last line that a crash left"
    )
