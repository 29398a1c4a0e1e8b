"""Recipes for Gemma 3n: named ones for each group, and those for per-layer embeddings, which have a single scheme."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from converters.family import RecipeChoice
from converters.gemma.tensors import PER_LAYER_EMBEDDING
from toolkit.base.elements import ElementName, element_of
from toolkit.base.errors import RecipeError
from toolkit.base.strict_json import shorten
from toolkit.bundle.ple_shards import ple_elements
from toolkit.quant.recipe import Recipe, RecipeSet, Rule, built_in_recipe
from toolkit.quant.scheme import Scheme, payload_bytes, scales_bytes

_TEXT = ("f32", "int8", "int4", "int4-block32", "int4-block128", "int4-channel")

RECIPES: Mapping[str, RecipeSet] = MappingProxyType(
    {
        "text": RecipeSet(__name__, {name: name for name in _TEXT}),
        "vision": RecipeSet(__name__, {"f32": "f32", "f16": "vision-f16", "int8": "vision-int8"}),
        "audio": RecipeSet(__name__, {"f32": "f32", "int8": "audio-int8", "int4": "audio-int4"}),
    }
)
"""The names of recipes, by group; those for `text` also cover the token embedding."""

RECIPE_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {group: recipes.names for group, recipes in RECIPES.items()}
)

# The largest matrices of every layer, from which a budget's bits per weight are computed.
_TYPICAL_WEIGHT, _TYPICAL_SHAPE = "layers.0.mlp.gate_proj.weight", (1, 1024)


def choose_recipes(wanted: Mapping[str, RecipeChoice], towers: Collection[str], ple_size: int) -> Mapping[str, Recipe]:
    """The recipe for each role, given as a name, a file or a recipe.

    By default, text is int8, per-layer embeddings have the type in the name of text's recipe, or int8, and towers are
    f32 if text is f32, else int8, because int4 is much less accurate there.
    """
    text = _load("text", wanted.get("text", "int8"))
    default = "f32" if text.name == "f32" else "int8"
    recipes = {"text": text, "ple": _ple(wanted.get("ple", _ple_dtype(text)), ple_size)}
    return recipes | {tower: _load(tower, wanted.get(tower, default)) for tower in towers}


def bits_per_weight(recipe: Recipe) -> float:
    """Bits per weight, scales included, for a feed-forward matrix; the scale of a whole row counts as nothing.

    >>> bits_per_weight(RECIPES["text"].load("int4-block32")), bits_per_weight(RECIPES["text"].load("int8"))
    (4.5, 8.0)
    """
    scheme = next((rule.scheme for rule in recipe.rules if fnmatchcase(_TYPICAL_WEIGHT, rule.match)), Scheme("int8"))
    stored = payload_bytes(_TYPICAL_SHAPE, scheme) + scales_bytes(_TYPICAL_SHAPE, scheme)
    return 8 * stored / _TYPICAL_SHAPE[1]


def built_in(name: str) -> Recipe:
    """The recipe in this directory with this file name, such as `audio-int8`."""
    return built_in_recipe(__name__, name)


def ple_recipe(dtype: ElementName, ple_size: int) -> Recipe:
    """The recipe of the per-layer embedding table: one scale for each token and layer."""
    scheme = Scheme("f32") if dtype == "f32" else Scheme(dtype, ple_size)
    return Recipe(dtype, (Rule(PER_LAYER_EMBEDDING, scheme),))


def _load(role: str, choice: RecipeChoice) -> Recipe:
    if isinstance(choice, Recipe):
        return choice
    recipes = RECIPES[role]
    if str(choice) not in recipes.names and not Path(choice).exists():
        wanted = f"{', '.join(recipes.names)} or the path of a recipe file"
        raise RecipeError(f"{role} recipe", found=shorten(str(choice)), wanted=wanted)
    return recipes.load(choice)


def _ple(choice: RecipeChoice, ple_size: int) -> Recipe:
    if isinstance(choice, Recipe):
        return choice
    names = [element.name for element in ple_elements()]
    if choice not in names:
        raise RecipeError("ple recipe", found=shorten(str(choice)), wanted=" or ".join(names))
    return ple_recipe(element_of(str(choice)).name, ple_size)


def _ple_dtype(text: Recipe) -> ElementName:
    built_in = text.name in RECIPES["text"].names
    names = (element.name for element in ple_elements())
    return next((name for name in names if built_in and text.name.startswith(name)), "int8")
