"""AltUp's four steps, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import LAYERS, MODELS, Array, RandomModel, assert_close, layer_of, numbers, product_of, run, whole

from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma3n import reference
from converters.gemma3n.graphs.text import altup

TOKENS = 3


def streams_of(model: RandomModel) -> Array:
    """f32[tokens, streams, hidden]."""
    return numbers(TOKENS, model.config.altup_num_inputs, model.config.hidden_size)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_streams_begin_as_projections_at_the_magnitude_of_the_embedding(
    tmp_path: Path, model: RandomModel, scale: float
) -> None:
    """A small scale lets the floor under a projection's magnitude show."""
    step = whole(model, TOKENS)
    x = step.graph.input("x", (1, TOKENS, 1, model.config.hidden_size))
    step.graph.output("y", altup.spread(step, x, step.scale(x)))
    embeddings = numbers(TOKENS, model.config.hidden_size) * np.float32(scale)
    found = run(tmp_path, step.graph, model, {"x": embeddings[None, :, None]})["y"]
    wanted = reference.spread(model, embeddings, product_of(model))
    assert_close(found[0] / np.float32(scale), wanted / np.float32(scale))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_streams_end_as_the_mean_of_their_projections(tmp_path: Path, model: RandomModel) -> None:
    step, streams = whole(model, TOKENS), streams_of(model)
    x = step.graph.input("x", (1, *streams.shape))
    step.graph.output("y", altup.merge(step, x, step.scale(altup.stream(x, 0))))
    found = run(tmp_path, step.graph, model, {"x": streams[None]})["y"]
    assert_close(found[0, :, 0], reference.merge(model, streams, product_of(model)))


@pytest.mark.parametrize(("name", "index"), LAYERS)
def test_a_layer_predicts_every_stream_from_all(tmp_path: Path, name: str, index: int) -> None:
    model, step = MODELS[name], whole(MODELS[name], TOKENS)
    streams, layer = streams_of(model), Layer(step, index)
    x = step.graph.input("x", (1, *streams.shape))
    step.graph.output(
        "y", altup.predict(layer, x, altup.active_stream(step, x), step.scale(altup.active_stream(step, x)))
    )
    found = run(tmp_path, step.graph, model, {"x": streams[None]})["y"]
    assert_close(found[0], layer_of(model, index).predict(streams))


@pytest.mark.parametrize(("name", "index"), LAYERS)
def test_a_layer_corrects_every_stream_by_what_it_computed(tmp_path: Path, name: str, index: int) -> None:
    model, step = MODELS[name], whole(MODELS[name], TOKENS)
    layer, streams = Layer(step, index), streams_of(model)
    predicted = step.graph.input("predicted", (1, *streams.shape))
    activated = step.graph.input("activated", (1, TOKENS, 1, model.config.hidden_size))
    scale = step.scale(activated)
    step.graph.output("y", altup.correct(layer, predicted, altup.active_stream(step, predicted), activated, scale))
    computed = numbers(TOKENS, model.config.hidden_size, seed=1)
    found = run(tmp_path, step.graph, model, {"predicted": streams[None], "activated": computed[None, :, None]})["y"]
    assert_close(found[0], layer_of(model, index).correct(streams, computed))
