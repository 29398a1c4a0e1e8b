"""The built-in recipes for Gemma 3n, by group and name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from toolkit.quant.recipe import Recipe, RecipeSet, built_in_recipe

_TEXT = ("f32", "int8", "int4", "int4-block32", "int4-block128", "int4-channel", "int4-small")

RECIPES: Mapping[str, RecipeSet] = MappingProxyType(
    {
        "text": RecipeSet(__name__, {name: name for name in _TEXT}),
        "vision": RecipeSet(__name__, {"f32": "f32", "f16": "vision-f16", "int8": "vision-int8"}),
        "audio": RecipeSet(__name__, {"f32": "f32", "int8": "audio-int8", "int4": "audio-int4"}),
    }
)
"""The recipe sets by group; recipes for `text` also cover the token embedding."""

RECIPE_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {group: recipes.names for group, recipes in RECIPES.items()}
)


def built_in(name: str) -> Recipe:
    """The recipe in this directory with this file name, such as `audio-int8`."""
    return built_in_recipe(__name__, name)
