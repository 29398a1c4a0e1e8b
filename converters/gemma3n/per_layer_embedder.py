"""The per-layer embedding (PLE) of Gemma 3n as a LiteRT graph: one row for all layers per token, times sqrt(width)."""

from __future__ import annotations

import math

from converters.gemma3n.config import TextConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Weight


def per_layer_embedder_graph(config: TextConfig, tokens: int, *, scales_apart: bool) -> Graph:
    """ids: int32[1, tokens] -> per_layer_embeddings: f32[1, tokens, layers, width]; ids outside the table read row 0.

    `scales_apart`: the table's rows come as bare codes and the graph applies their scales, one per token and layer
    (LiteRT dequantises blocks of int4 by itself, of int8 not).
    """
    graph = Graph()
    ids = ops.reshape(graph.input("ids", (1, tokens), DType.INT32), (tokens,))
    zero = graph.ints([0])
    known = ops.logical_and(ops.greater_equal(ids, zero), ops.less(ids, graph.ints([config.ple_vocab_size])))
    ids = ops.select(known, ids, zero)
    layers, width = config.num_layers, config.ple_size
    weight = Weight.whole("embed_tokens_per_layer.weight", (config.ple_vocab_size, layers * width))
    rows = ops.reshape(ops.embedding_lookup(ids, graph.weight(weight)), (1, tokens, layers, width))
    if scales_apart:
        scales = ops.cast(ops.embedding_lookup(ids, graph.block_scales(weight, layers)), DType.FLOAT32)
        rows = ops.mul(rows, ops.reshape(scales, (1, tokens, layers, 1)))
    graph.output("per_layer_embeddings", ops.mul(rows, graph.scalar(math.sqrt(width))))
    return graph
