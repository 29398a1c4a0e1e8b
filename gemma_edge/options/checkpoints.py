"""The options `--adapter` and `--revision` of the verbs that read a checkpoint."""

from __future__ import annotations

import argparse

from converters.huggingface.adapters.choice import parse_adapter


def add_checkpoint_arguments(parser: argparse.ArgumentParser, adapter_help: str) -> None:
    parser.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of a Hugging Face id; the same as ID@NAME"
    )
    parser.add_argument(
        "--adapter", metavar="DIR|ID[=SCALE]", dest="adapters", type=parse_adapter, action="append", default=[],
        help=f"{adapter_help}; may be repeated; =SCALE merges only part of its change, as in pirate=0.5",
    )  # fmt: skip
