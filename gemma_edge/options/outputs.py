"""The option of every verb that writes files on this computer."""

from __future__ import annotations

import argparse


def add_force_option(parser: argparse._ActionsContainer, what: str) -> None:
    """Add `--force`. what: what is replaced only with it."""
    parser.add_argument(
        "--force", action="store_true", help=f"replace {what}; inputs, devices and pipes are never replaced"
    )
