"""What the decoder's graphs promise beyond their logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from paths import EXAMPLE

from converters.gemma.graphs.text.decoder_step import Step, whole_size
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma3n.family import Gemma3nCheckpoint, open_gemma3n
from converters.gemma3n.graphs.text.decoder import _Decoder, decode_graph, prefill_graph
from converters.gemma3n.plan.text_source import TextSource
from converters.gemma3n.recipes import built_in
from toolkit.tflite.graph import DType, Graph, Signature, Weight
from toolkit.tflite.writer import distinct_weights, layout_tflite, write_tflite

TINY = EXAMPLE
TOKENS, ROWS = 16, CacheRows(context=96, sliding=96, seen=96)


@pytest.fixture(scope="module")
def checkpoint() -> Gemma3nCheckpoint:
    return open_gemma3n(TINY)


def whole_forward(checkpoint: Gemma3nCheckpoint) -> Graph:
    """Every layer for every token, as if prefill stopped nowhere."""
    config = checkpoint.config
    decoder = _Decoder(Step(whole_size(config), config, TOKENS), ROWS)
    return decoder.finish(logits=decoder.logits(decoder.normed(decoder.layers(config.num_layers))))


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["f32", "int8", "int4"])
def test_the_caches_of_a_short_prefill_are_bit_equal_to_those_of_all_layers(
    tmp_path: Path, checkpoint: Gemma3nCheckpoint, quant: str
) -> None:
    config = checkpoint.config
    short = prefill_graph(whole_size(config), config, ROWS, TOKENS)
    whole = whole_forward(checkpoint)
    assert len(short.live_nodes()) < 0.6 * len(whole.live_nodes())
    signatures = [Signature("short", short), Signature("whole", whole)]
    path = tmp_path / "m.tflite"
    schemes = built_in(quant).plan([*distinct_weights(signatures), *embedding(checkpoint)])
    write_tflite(path, layout_tflite(signatures, schemes), TextSource(checkpoint, config))
    rng = np.random.default_rng(0)
    caches = {name: value.shape for name, value in short.inputs.items() if name.startswith("kv_cache")}
    hidden = np.arange(ROWS.context)[None] > np.arange(TOKENS)[:, None] + 70
    inputs = {
        "embeddings": rng.standard_normal((1, TOKENS, config.hidden_size)).astype(np.float32),
        "per_layer_embeddings": rng.standard_normal(short.inputs["per_layer_embeddings"].shape).astype(np.float32),
        "input_pos": np.arange(70, 70 + TOKENS, dtype=np.int32),
        "mask": np.where(hidden, np.float32(-0.7 * np.finfo(np.float32).max), np.float32(0))[None, None],
        **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in caches.items()},
    }
    interpreter = Interpreter(str(path))
    one = interpreter.get_signature_runner("short")(**inputs)
    other = interpreter.get_signature_runner("whole")(**inputs)
    for name in caches:
        np.testing.assert_array_equal(one[name], other[name])
        assert not np.array_equal(one[name], inputs[name])


def embedding(checkpoint: Gemma3nCheckpoint) -> tuple[Weight, ...]:
    from converters.gemma.graphs.text.embedder import embedder_graph

    return distinct_weights([Signature("embed", embedder_graph(checkpoint.config, 1))])


def test_signatures_take_and_give_what_the_manifest_documents(checkpoint: Gemma3nCheckpoint) -> None:
    config = checkpoint.config
    decode = decode_graph(whole_size(config), config, ROWS)
    prefill = prefill_graph(whole_size(config), config, ROWS, TOKENS)
    caches = {f"kv_cache_{kind}_{i}" for kind in "kv" for i in range(len(config.kv_layers))}
    inputs = {"embeddings", "per_layer_embeddings", "input_pos", "mask"} | caches
    assert set(decode.inputs) == set(prefill.inputs) == inputs
    assert set(decode.outputs) == caches | {"logits"}
    assert set(prefill.outputs) == caches
    assert decode.outputs["logits"].shape == (1, 1, config.vocab_size)


@pytest.mark.parametrize("tokens", [1, 8, 128])
def test_sliding_layers_attend_to_their_rings_alone(checkpoint: Gemma3nCheckpoint, tokens: int) -> None:
    config = checkpoint.config
    rows = CacheRows.fitting(config, context=4096, largest_prefill=128)
    size = whole_size(config)
    graph = decode_graph(size, config, rows) if tokens == 1 else prefill_graph(size, config, rows, tokens)
    attended = {node.inputs[0].shape[-1] for node in graph.live_nodes() if node.builtin == "SOFTMAX"}
    assert attended == {config.sliding_window + 128, 4096}


def test_a_decode_step_has_few_ops_for_a_gpu_pays_for_each(checkpoint: Gemma3nCheckpoint) -> None:
    config = checkpoint.config
    graph = decode_graph(whole_size(config), config, CacheRows.fitting(config, context=2048, largest_prefill=64))
    assert config.num_layers == 10
    assert len(graph.live_nodes()) <= 1_388


def test_no_constant_is_infinite_in_float16(checkpoint: Gemma3nCheckpoint) -> None:
    config = checkpoint.config
    rows = CacheRows.fitting(config, context=2048, largest_prefill=64)
    size = whole_size(config)
    for graph in (decode_graph(size, config, rows), prefill_graph(size, config, rows, 64)):
        floats = [v.constant for v in graph.values if v.constant is not None and v.dtype is DType.FLOAT32]
        assert max(float(np.abs(constant).max()) for constant in floats) < 65_504
