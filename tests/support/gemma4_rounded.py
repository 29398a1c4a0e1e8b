"""Ways of storing a Gemma 4, and the numbers that a model has after it has been stored so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.gemma4.config import TextConfig, TextModel
from converters.gemma4.recipes import RECIPE_NAMES, RECIPES
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import dequantize_rows, quantize_rows

MLP = "layers.*.mlp.*_proj.weight"
MIXES = {
    "int2 in the feed-forward": [Rule(MLP, Scheme("int2"))],
    "int2 in the last layers": [Rule(MLP.replace("*", str(n), 1), Scheme("int2")) for n in (4, 5, 6)],
    "an output matrix in int4": [Rule("lm_head.weight", Scheme("int4"))],
    "an output matrix in int2": [Rule("lm_head.weight", Scheme("int2"))],
    "blocks beside whole rows": [Rule("layers.1.mlp.up_proj.weight", Scheme("int4", 32))],
    "a layer in float32": [Rule("layers.3.*_proj.weight", Scheme("f32"))],
}
STORED: Mapping[str, Recipe] = {name: RECIPES["text"].load(name) for name in RECIPE_NAMES["text"]} | {
    name: RECIPES["text"].load("int4-channel").changed("mixed", rules) for name, rules in MIXES.items()
}


@dataclass(frozen=True)
class Rounded:
    """A model whose weights have been stored by a recipe and read again (`TextModel`)."""

    model: TextModel
    recipe: Recipe
    ple: str

    @property
    def config(self) -> TextConfig:
        return self.model.config

    def shape(self, name: str) -> tuple[int, ...]:
        return self.model.shape(name)

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        values = self.model.read(name, rows)
        scheme = self._scheme(name)
        if scheme.quantised:
            values = dequantize_rows(quantize_rows(values, scheme))
        return values if columns is None else values[..., slice(*columns)]

    def _scheme(self, name: str) -> Scheme:
        if name == "embed_tokens_per_layer.weight":
            return Scheme("f32") if self.ple == "f32" else Scheme(self.ple, self.config.ple_size)  # type: ignore[arg-type]
        return scheme_of(self.recipe, name)


def scheme_of(recipe: Recipe, name: str) -> Scheme:
    """The scheme of a weight."""
    return next(rule.scheme for rule in recipe.rules if fnmatchcase(name, rule.match))


def write_rounded(checkpoint: Path, directory: Path, recipe: Recipe) -> Path:
    """A copy of a checkpoint of one file whose decoder has the numbers that it has after it was stored by a recipe."""
    from safetensors.numpy import load_file, save_file

    directory.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (directory / file.name).write_bytes(file.read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    for name, values in tensors.items():
        weight = name.removeprefix("model.").replace("embed_tokens.weight", "lm_head.weight")
        if values.ndim == 2 and not weight.startswith("embed_tokens"):
            scheme = scheme_of(recipe, weight)
            tensors[name] = dequantize_rows(quantize_rows(values, scheme)) if scheme.quantised else values
    save_file(tensors, directory / "model.safetensors")
    return directory
