"""Recipes for Gemma 4's language model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from toolkit.quant.recipe import RecipeSet

_TEXT = ("f32", "int8", "int4", "int4-block32", "int4-block128", "int4-channel")

RECIPES: Mapping[str, RecipeSet] = MappingProxyType({"text": RecipeSet(__name__, {name: name for name in _TEXT})})
"""The names of recipes, by group; those for `text` also cover the token embedding."""

RECIPE_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {group: recipes.names for group, recipes in RECIPES.items()}
)
