"""Which towers ``convert`` takes along, and how it stores them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.gemma3n.groups import GROUP_NAMES
from converters.gemma3n.recipes import RECIPES
from gemma_edge.options.groups import group_names
from gemma_edge.options.session import positive_number
from toolkit.base.errors import UsageError
from toolkit.quant.recipe import Recipe

_TOWERS = ("vision", "audio")


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
    for group in _TOWERS:
        why = ", because int4 loses much" if group == "audio" else ""
        names = ", ".join(RECIPES[group].names)
        parser.add_argument(
            f"--{group}-quant", metavar="RECIPE",
            help=f"{names}, or a file, for the {group} tower (default: int8{why}; with --quant f32 f32)",
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
    recipes = RECIPES[group]
    if name not in recipes.names and not Path(name).exists():
        wanted = f"{', '.join(recipes.names)} or the path of a recipe file"
        raise UsageError(f"--{group}-quant", found=name, wanted=wanted)
    return recipes.load(name)


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(sorted({positive_number(part.strip()) for part in text.split(",")}))
