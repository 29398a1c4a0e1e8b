"""Which towers ``convert`` takes along, and how it stores them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.gemma3n.groups import GROUP_NAMES
from gemma_edge.options.groups import group_names
from gemma_edge.options.session import positive_number
from toolkit.base.errors import UsageError
from toolkit.quant.recipe import Recipe, load_recipe

_BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "vision": {"f32": "f32", "f16": "vision-f16", "int8": "vision-int8"},
    "audio": {"f32": "f32", "int8": "audio-int8", "int4": "audio-int4"},
}


@dataclass(frozen=True, slots=True)
class TowerRecipes:
    """None leaves a tower out."""

    vision: Recipe | None
    audio: Recipe | None


def add_tower_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groups", metavar="NAME[,...]", type=group_names,
        help="parameter groups to convert, of text, vision and audio; text brings its embeddings along (default: all "
        "that the checkpoint has)",
    )  # fmt: skip
    for group, built_in in _BUILT_IN.items():
        why = ", because int4 loses much" if group == "audio" else ""
        parser.add_argument(
            f"--{group}-quant", metavar="RECIPE",
            help=f"{', '.join(built_in)}, or a file, for the {group} tower (default: int8{why}; with --quant f32 f32)",
        )  # fmt: skip
    parser.add_argument(
        "--audio-lengths", metavar="S[,S...]", type=_seconds, default=(),
        help="seconds of the longest sound of each audio encoder; a sound runs through the shortest that holds it "
        "(default: 1,5,10,30)",
    )  # fmt: skip


def tower_recipes(arguments: argparse.Namespace, checkpoint: Checkpoint) -> TowerRecipes:
    """By the arguments, and where they are silent by the checkpoint and by the text's recipe."""
    groups = arguments.groups or tuple(group.name for group in checkpoint.groups if group.tensors)
    _check_groups(groups)
    quants = {"vision": arguments.vision_quant, "audio": arguments.audio_quant}
    for group, quant in quants.items():
        if quant is not None and group not in groups:
            raise UsageError(f"--{group}-quant", found=quant, wanted=f"nothing, for {group} is not converted")
    if arguments.audio_lengths and "audio" not in groups:
        raise UsageError("--audio-lengths", found="lengths", wanted="nothing, for audio is not converted")
    default = "f32" if arguments.quant == "f32" else "int8"
    recipes = {group: _recipe(group, quant or default) for group, quant in quants.items() if group in groups}
    if arguments.search is not None:
        recipes = {group: recipe.with_search(arguments.search) for group, recipe in recipes.items()}
    return TowerRecipes(recipes.get("vision"), recipes.get("audio"))


def _check_groups(groups: tuple[str, ...]) -> None:
    unknown = [name for name in groups if name not in GROUP_NAMES]
    if unknown:
        raise UsageError(f"group {unknown[0]}", found="no such group", wanted=", ".join(GROUP_NAMES))
    if "text" not in groups:
        found, wanted = ",".join(groups), "text among them: images and sounds are answered by the language model"
        raise UsageError("--groups", found=found, wanted=wanted, remedy=f"add text, as in text,{found}")


def _recipe(group: str, name: str) -> Recipe:
    built_in = _BUILT_IN[group]
    if name not in built_in and not Path(name).exists():
        raise UsageError(f"--{group}-quant", found=name, wanted=f"{', '.join(built_in)} or the path of a recipe file")
    return load_recipe(built_in.get(name, name))


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(sorted({positive_number(part.strip()) for part in text.split(",")}))
