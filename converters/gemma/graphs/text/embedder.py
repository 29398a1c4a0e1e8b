"""Builds the token embedding as a LiteRT graph: one table row per token, times sqrt(hidden)."""

from __future__ import annotations

import math

from converters.gemma.config import DecoderConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Weight


def embedder_graph(config: DecoderConfig, tokens: int) -> Graph:
    """ids: int32[1, tokens] -> embeddings: f32[1, tokens, hidden]; the caller keeps ids inside the vocabulary."""
    graph = Graph()
    ids = ops.reshape(graph.input("ids", (1, tokens), DType.INT32), (tokens,))
    table = graph.weight(Weight.whole("embed_tokens.weight", (config.vocab_size, config.hidden_size)))
    rows = ops.reshape(ops.embedding_lookup(ids, table), (1, tokens, config.hidden_size))
    graph.output("embeddings", ops.mul(rows, graph.scalar(math.sqrt(config.hidden_size))))
    return graph
