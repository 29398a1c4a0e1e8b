"""Chooses recipes by role from those of a family, and makes the recipe of per-layer embeddings, of a single scheme."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from converters.family import RecipeChoice
from converters.gemma.tensors import PER_LAYER_EMBEDDING
from toolkit.base.elements import ElementName, element_of
from toolkit.base.errors import RecipeError
from toolkit.base.strict_json import shorten
from toolkit.bundle.ple_shards import ple_elements
from toolkit.quant.recipe import Recipe, RecipeSet, Rule
from toolkit.quant.scheme import Scheme


def choose_recipes(
    recipes: Mapping[str, RecipeSet], wanted: Mapping[str, RecipeChoice], towers: Collection[str], ple_size: int
) -> Mapping[str, Recipe]:
    """The recipe for each role, given as a name, a file or a recipe; `recipes`: the family's recipe sets, by role.

    By default, text is int8; per-layer embeddings have the type in the name of the text recipe, or int8; and towers are
    f32 if text is f32, otherwise int8, because int4 is much less accurate for them.
    """
    text = _load(recipes, "text", wanted.get("text", "int8"))
    default = "f32" if text.name == "f32" else "int8"
    ple = _ple(wanted.get("ple", _ple_dtype(text, recipes["text"])), ple_size)
    chosen = {tower: _load(recipes, tower, wanted.get(tower, default)) for tower in towers}
    return {"text": text, "ple": ple, **chosen}


def ple_recipe(dtype: ElementName, ple_size: int) -> Recipe:
    """The recipe of the per-layer embedding table: one scale for each token and layer."""
    scheme = Scheme("f32") if dtype == "f32" else Scheme(dtype, ple_size)
    return Recipe(dtype, (Rule(PER_LAYER_EMBEDDING, scheme),))


def _load(recipes: Mapping[str, RecipeSet], role: str, choice: RecipeChoice) -> Recipe:
    if isinstance(choice, Recipe):
        return choice
    if str(choice) not in recipes[role].names and not Path(choice).exists():
        wanted = f"{', '.join(recipes[role].names)} or the path of a recipe file"
        raise RecipeError(f"{role} recipe", found=shorten(str(choice)), wanted=wanted)
    return recipes[role].load(choice)


def _ple(choice: RecipeChoice, ple_size: int) -> Recipe:
    if isinstance(choice, Recipe):
        return choice
    names = [element.name for element in ple_elements()]
    if choice not in names:
        raise RecipeError("ple recipe", found=shorten(str(choice)), wanted=" or ".join(names))
    return ple_recipe(element_of(str(choice)).name, ple_size)


def _ple_dtype(text: Recipe, recipes: RecipeSet) -> ElementName:
    built_in = text.name in recipes.names
    names = (element.name for element in ple_elements())
    return next((name for name in names if built_in and text.name.startswith(name)), "int8")
