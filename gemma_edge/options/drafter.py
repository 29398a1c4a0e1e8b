"""The options for a drafter, of `convert` and `export`, and the bars that show how it is made."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from gemma_edge.options.session import positive
from gemma_edge.terminal import Terminal
from toolkit.bundle.lock import DrafterSettings
from toolkit.drafting.make import StageProgress


def add_drafter_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """`--drafter` and `--drafter-tokens`; `what`: where the drafter goes."""
    group = parser.add_argument_group("drafter", "for speculative decoding; see docs/speculative.md")
    group.add_argument(
        "--drafter", metavar="fit|DIR",
        help=f"fit: compute a drafter from text that the model itself writes, and put it into {what}; it is left out, "
        "with a warning, if the model would accept too few of its guesses; otherwise the checkpoint of a drafter that "
        "was published for this model: a directory or a Hugging Face id",
    )  # fmt: skip
    group.add_argument(
        "--drafter-tokens", metavar="N", type=positive,
        help="with fit, how many tokens the model writes: more are better and take longer "
        f"(default: {DrafterSettings().tokens})",
    )  # fmt: skip


@contextmanager
def drafter_bars(terminal: Terminal) -> Iterator[StageProgress]:
    """A bar for each stage."""
    with terminal.bar("drafter: write text", "tokens") as write, terminal.bar("drafter: fit", "steps") as fit:
        bars = {"write": write, "fit": fit}
        yield lambda stage, done, total: bars[stage](done, total)
