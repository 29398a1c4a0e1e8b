"""Attention over caches that fill step by step, run by LiteRT, against the NumPy reference on the whole sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import (
    LAYERS,
    MODELS,
    Compiled,
    RandomModel,
    assert_close,
    cache_inputs,
    causal_mask,
    layer_of,
    numbers,
    whole,
)

from converters.gemma import reference
from converters.gemma.graphs.text.attention import Attention
from converters.gemma.graphs.text.attention_mask import AttentionMasks
from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma.graphs.text.kv_cache import CacheRows, StepCaches
from converters.gemma.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite.graph import DType, Graph

STEPS = (4, 1, 4, 1, 1, 4, 4)  # tokens of one step after another: prefills and decode steps
ROWS = {
    "whole caches": CacheRows(context=24, sliding=24, seen=24),
    "some rows out of sight": CacheRows(context=40, sliding=40, seen=20),
    "rings": CacheRows(context=24, sliding=9, seen=24),
    "rings and some rows out of sight": CacheRows(context=40, sliding=10, seen=20),
}


def attention_graph(model: RandomModel, index: int, rows: CacheRows, tokens: int) -> Graph:
    """One layer's attention, and before it the keys and values of the layer whose cache it reads."""
    step = whole(model, tokens)
    graph, hidden = step.graph, model.config.hidden_size
    positions = graph.input("positions", (tokens,), DType.INT32)
    mask = graph.input("mask", (1, 1, tokens, rows.seen))
    caches = StepCaches(step, rows, positions)
    attention = Attention(
        caches, AttentionMasks(step, caches, positions, mask), RotaryEmbedding(step, positions, rows.context)
    )
    owner = model.config.layers[index].kv_source
    if owner is not None:
        attention.fill_cache(Layer(step, owner), graph.input("owner", (1, tokens, 1, hidden)))
    graph.output("y", attention.attend(Layer(step, index), graph.input("x", (1, tokens, 1, hidden))))
    caches.output()
    return graph


@pytest.mark.parametrize(("name", "index"), LAYERS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_steps_over_caches_attend_as_the_whole_sequence_does(
    tmp_path: Path, name: str, index: int, rows: CacheRows
) -> None:
    model = MODELS[name]
    graphs = {str(tokens): attention_graph(model, index, rows, tokens) for tokens in sorted(set(STEPS))}
    block, caches = Compiled(tmp_path, graphs, model), cache_inputs(graphs["1"])
    count, owner = sum(STEPS), model.config.layers[index].kv_source
    x, owner_x = numbers(count, model.config.hidden_size), numbers(count, model.config.hidden_size, seed=1)
    found, start = [], 0
    for tokens in STEPS:
        positions = np.arange(start, start + tokens, dtype=np.int32)
        inputs = {"x": x[None, positions, None], "positions": positions, "mask": causal_mask(positions, rows.seen)}
        inputs |= {} if owner is None else {"owner": owner_x[None, positions, None]}
        outputs = block(str(tokens), {**inputs, **caches})
        found.append(outputs.pop("y")[0, :, 0])
        caches, start = outputs, start + tokens
    assert_close(np.concatenate(found), whole_sequence(model, index, x, owner_x))


def whole_sequence(model: RandomModel, index: int, x: np.ndarray, owner_x: np.ndarray) -> np.ndarray:
    batch = reference.Batch.of([np.zeros(len(x), np.int32)])
    owner = model.config.layers[index].kv_source
    shared = {} if owner is None else {owner: layer_of(model, owner).key_value(owner_x, batch)}
    return layer_of(model, index).attention(x, shared, batch)
