"""`gemma-edge check`: checks every hash, bound and reference of a bundle."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from gemma_edge.api.check import check
from gemma_edge.terminal import Terminal

EXAMPLES = (
    "gemma-edge check BUNDLE",
    "gemma-edge check model.litertlm --json",
    "gemma-edge check BUNDLE/ple_00001.bin",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="BUNDLE", type=Path, help="a bundle directory, a .litertlm file, or one PLE shard"
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0 without faults, else 1."""
    with terminal.bar("check") as show:
        faults = check(arguments.path, progress=show)
    lines = [str(fault.error(fault.file or arguments.path)) for fault in faults]
    verdict = f"{arguments.path}: {f'faults: {len(faults)}' if faults else 'no faults found'}"
    value = {"ok": not faults, "faults": [dataclasses.asdict(fault) for fault in faults]}
    terminal.result(value, "\n".join([*lines, verdict]))
    return 1 if faults else 0
