"""Recipes for Gemma 3n: by name for each group, and for per-layer embeddings, which have one scheme for all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from converters.gemma3n.groups import PER_LAYER_EMBEDDING
from toolkit.base.elements import ElementName
from toolkit.quant.recipe import Recipe, RecipeSet, Rule, built_in_recipe
from toolkit.quant.scheme import Scheme

_TEXT = ("f32", "int8", "int4", "int4-block32", "int4-block128", "int4-channel")

RECIPES: Mapping[str, RecipeSet] = MappingProxyType(
    {
        "text": RecipeSet(__name__, {name: name for name in _TEXT}),
        "vision": RecipeSet(__name__, {"f32": "f32", "f16": "vision-f16", "int8": "vision-int8"}),
        "audio": RecipeSet(__name__, {"f32": "f32", "int8": "audio-int8", "int4": "audio-int4"}),
    }
)
"""By group; the one for `text` covers the token embedding too."""


def built_in(name: str) -> Recipe:
    """A recipe of this directory by its own name, such as `audio-int8`."""
    return built_in_recipe(__name__, name)


def ple_recipe(dtype: ElementName, ple_size: int) -> Recipe:
    """The recipe of the per-layer embedding table: one scale for each token and layer."""
    scheme = Scheme("f32") if dtype == "f32" else Scheme(dtype, ple_size)
    return Recipe(dtype, (Rule(PER_LAYER_EMBEDDING, scheme),))
