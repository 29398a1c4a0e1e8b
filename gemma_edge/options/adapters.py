"""The option `--adapter` of the verbs that read a checkpoint."""

from __future__ import annotations

import argparse

from converters.huggingface.adapters.choice import parse_adapter


def add_adapter_argument(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument(
        "--adapter", metavar="DIR|ID[=SCALE]", dest="adapters", type=parse_adapter, action="append", default=[],
        help=f"{help}; may be repeated, and merges part of its change with =SCALE, as in pirate=0.5",
    )  # fmt: skip
