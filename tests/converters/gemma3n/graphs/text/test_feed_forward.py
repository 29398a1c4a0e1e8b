"""The feed-forward of a layer, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from text_blocks import LAYERS, MODELS, RandomModel, assert_close, layer_of, numbers, run, whole

from converters.gemma.graphs.text.decoder_step import DecoderSize, Layer, Step
from converters.gemma3n.graphs.text.feed_forward import feed_forward

TOKENS = 5


@pytest.mark.parametrize(("name", "index"), LAYERS)
def test_feed_forward_gates_and_in_sparse_layers_cuts_its_gate(tmp_path: Path, name: str, index: int) -> None:
    model, step = MODELS[name], whole(MODELS[name], TOKENS)
    x = step.graph.input("x", (1, TOKENS, model.config.hidden_size))
    step.graph.output("y", feed_forward(Layer(step, index), x))
    normed = numbers(TOKENS, model.config.hidden_size)
    found = run(tmp_path, step.graph, model, {"x": normed[None]})["y"]
    assert_close(found[0], layer_of(model, index).feed_forward(normed))


@pytest.mark.parametrize("index", [0, 2], ids=["sparse", "dense"])
@pytest.mark.parametrize("pieces", [(3,), (2, 3), (1, 4, 2)], ids=str)
def test_a_smaller_size_runs_the_first_units_whatever_pieces_they_lie_in(
    tmp_path: Path, index: int, pieces: tuple[int, ...]
) -> None:
    """Sparse layers cut by the mean and the deviation of the units that run, over all pieces."""
    model = MODELS["one key head"]
    config = model.config
    units = sum(pieces)
    narrow = narrowed(model, index, units)
    segments = tuple(pieces if n == index else (layer.ffn_size,) for n, layer in enumerate(config.layers))
    step = Step(DecoderSize(narrow.config, tuple(range(config.num_layers)), segments), config, TOKENS)
    x = step.graph.input("x", (1, TOKENS, config.hidden_size))
    step.graph.output("y", feed_forward(Layer(step, index), x))
    normed = numbers(TOKENS, config.hidden_size)
    found = run(tmp_path, step.graph, model, {"x": normed[None]})["y"]
    assert_close(found[0], layer_of(narrow, index).feed_forward(normed))


def narrowed(model: RandomModel, index: int, units: int) -> RandomModel:
    """The model with the first units only in one layer's feed-forward."""
    layers = list(model.config.layers)
    layers[index] = replace(layers[index], ffn_size=units)
    mlp = f"layers.{index}.mlp"
    cut = {f"{mlp}.{kind}_proj.weight": model.read(f"{mlp}.{kind}_proj.weight", (0, units)) for kind in ("gate", "up")}
    cut[f"{mlp}.down_proj.weight"] = model.read(f"{mlp}.down_proj.weight", None, (0, units))
    return RandomModel(replace(model.config, layers=tuple(layers)), {**model.tensors, **cut})


def test_most_of_a_sparse_gate_is_cut() -> None:
    """The tests above could fail: without the cut, the reference gives other numbers."""
    model = MODELS["one key head"]
    dense = replace(model.config, layers=tuple(replace(layer, sparsity=0.0) for layer in model.config.layers))
    x = numbers(TOKENS, model.config.hidden_size)
    sparse = layer_of(model, 0).feed_forward(x)
    assert np.abs(sparse - layer_of(RandomModel(dense, model.tensors), 0).feed_forward(x)).max() > 0.1
