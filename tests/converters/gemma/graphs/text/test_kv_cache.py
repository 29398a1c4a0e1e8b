"""What a step writes into its caches and what a layer reads of them, run by LiteRT, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import MODELS, cache_inputs, numbers, run, whole

from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma.graphs.text.kv_cache import CacheRows, StepCaches
from toolkit.tflite import ops
from toolkit.tflite.graph import DType

MODEL = MODELS["two key heads"]
CONFIG = MODEL.config
OWNERS = CONFIG.kv_layers
ROWS = CacheRows(context=20, sliding=9, seen=16)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("start", [0, 6, 8, 13])
def test_a_layer_writes_its_rows_into_its_own_cache_alone(tmp_path: Path, owner: int, tokens: int, start: int) -> None:
    step = whole(MODEL, tokens)
    caches = StepCaches(step, ROWS, step.graph.input("positions", (tokens,), DType.INT32))
    shape = (1, tokens, CONFIG.num_kv_heads, CONFIG.head_dim)
    caches.write(Layer(step, owner), step.graph.input("key", shape), step.graph.input("value", shape))
    caches.output()
    old = cache_inputs(step.graph)
    new = {"key": numbers(*shape), "value": numbers(*shape, seed=1)}
    positions = np.arange(start, start + tokens, dtype=np.int32)
    found = run(tmp_path, step.graph, MODEL, {**old, **new, "positions": positions})
    wanted = {name: cache.copy() for name, cache in old.items()}
    rows = positions % ROWS.of(CONFIG.layers[owner])
    number = OWNERS.index(owner)
    wanted[f"kv_cache_k_{number}"][0, :, rows] = new["key"][0]
    wanted[f"kv_cache_v_{number}"][0, :, :, rows] = new["value"][0]
    assert found.keys() == wanted.keys()
    for name, cache in wanted.items():
        np.testing.assert_array_equal(found[name], cache, name)


@pytest.mark.parametrize("index", range(CONFIG.num_layers))
def test_a_layer_reads_the_rows_in_sight_of_its_own_cache_or_of_the_one_it_shares(tmp_path: Path, index: int) -> None:
    step = whole(MODEL, 1)
    caches = StepCaches(step, ROWS, step.graph.input("positions", (1,), DType.INT32))
    keys, values = caches.read(Layer(step, index))
    step.graph.output("keys", ops.add(keys, step.graph.scalar(0.0)))  # an input cannot be an output itself
    step.graph.output("values", ops.add(values, step.graph.scalar(0.0)))
    old = cache_inputs(step.graph)
    found = run(tmp_path, step.graph, MODEL, {**old, "positions": np.array([3], np.int32)})
    layer = CONFIG.layers[index]
    number = OWNERS.index(index if layer.kv_source is None else layer.kv_source)
    seen = ROWS.seen if layer.attention == "full" else ROWS.sliding
    np.testing.assert_array_equal(found["keys"], old[f"kv_cache_k_{number}"][:, :, :seen])
    np.testing.assert_array_equal(found["values"], old[f"kv_cache_v_{number}"][..., :seen])


def test_a_cache_of_a_sliding_layer_holds_its_window_and_the_largest_prefill_but_no_more_than_the_context() -> None:
    fitting = [CacheRows.fitting(CONFIG, context, 4) for context in (8, 9, 100)]
    assert [rows.sliding for rows in fitting] == [8, CONFIG.sliding_window + 4, CONFIG.sliding_window + 4]
    assert [rows.has_rings for rows in fitting] == [False, False, True]
