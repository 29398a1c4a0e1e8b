"""The options for which towers `convert` includes, and how it stores them."""

from __future__ import annotations

import argparse

from converters.families import recipe_names
from gemma_edge.options.groups import group_names
from gemma_edge.options.session import positive_number

_TOWERS = ("vision", "audio")


def add_tower_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groups", metavar="NAME[,...]", type=group_names,
        help="parameter groups to convert: text, vision, audio; text includes its embeddings (default: all that the "
        "checkpoint has)",
    )  # fmt: skip
    for group in _TOWERS:
        why = ", because int4 is much less accurate" if group == "audio" else ""
        names = ", ".join(recipe_names(group))
        parser.add_argument(
            f"--{group}-quant", metavar="RECIPE",
            help=f"recipe for the {group} tower: {names}, or a file (default: int8{why}; f32 with --quant f32)",
        )  # fmt: skip
    parser.add_argument(
        "--audio-lengths", metavar="S[,S...]", type=_seconds, default=(),
        help="maximum lengths in seconds, one for each audio encoder; a sound uses the shortest that fits it (default: "
        "1,5,10,30)",
    )  # fmt: skip


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(sorted({positive_number(part.strip()) for part in text.split(",")}))
