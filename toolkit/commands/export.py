"""``gemma-edge export``: a bundle as one .litertlm."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.bundle.litertlm import export_litertlm
from toolkit.commands.terminal import Terminal, bytes_text

NAME = "export"
SUMMARY = "write a bundle as one .litertlm file for Google's LiteRT-LM and the apps that use it"
EXAMPLES = (
    "gemma-edge export BUNDLE -o model.litertlm",
    "gemma-edge export BUNDLE -o small.litertlm --size E2B",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory that gemma-edge convert made")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the .litertlm to write")
    parser.add_argument(
        "--size", metavar="NAME", help="the size that the file runs (default: the bundle's own default)"
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0."""
    with terminal.bar("export") as show:
        result = export_litertlm(arguments.bundle, arguments.output, arguments.size, progress=show)
    value = {"file": str(arguments.output), "bytes": result.bytes, "size": result.size}
    terminal.result(value, f"{arguments.output}: {bytes_text(result.bytes)}, size {result.size}")
    return 0
