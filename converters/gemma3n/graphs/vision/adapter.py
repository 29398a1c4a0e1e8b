"""Builds the vision adapter as LiteRT graphs: from the encoder's features to the language model's embeddings.

Features and the tower's own tokens (end of image) share a projection: norm, project, norm. Unlike text embeddings, the
results go into a prompt without being multiplied by sqrt(hidden).
Source: transformers 5.23 models/gemma3n/modeling_gemma3n.py (Gemma3nMultimodalEmbedder, get_image_features).
"""

from __future__ import annotations

from converters.gemma.graphs.norms import Scale
from converters.gemma3n.config.vision import VisionConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value, Weight

TABLE = "embed_vision.embedding.weight"
END_OF_IMAGE = "embed_vision.end_of_image"
"""A tensor computed by vision_source.py: a GPU refuses operators that have only constants."""


def vision_adapter_graph(config: VisionConfig) -> Graph:
    """features: f32[1, soft tokens, 2048] -> embeddings: f32[1, soft tokens + 1, text hidden].

    The last row is the end of the image: LiteRT-LM puts the adapter's output into the prompt, and nothing after it.
    """
    graph = Graph()
    features = graph.input("features", (1, config.soft_tokens, config.hidden_size))
    # transformers multiplies features by sqrt(hidden) first, which the norm cancels except for its epsilon.
    eps = config.rms_norm_eps / config.hidden_size
    soft = _weighted(graph, Scale.of(features, eps).unit_rms(features), config, "soft_embedding_norm")
    end = graph.weight(Weight.whole(END_OF_IMAGE, (1, 1, config.text_hidden_size)))
    graph.output("embeddings", ops.concatenation([_project(soft, config), end], 1))
    return graph


def vision_token_graph(config: VisionConfig) -> Graph:
    """ids: int32[1, 1], one of the tower's own tokens -> embeddings: f32[1, 1, text hidden]."""
    graph = Graph()
    ids = ops.sub(graph.input("ids", (1, 1), DType.INT32), graph.ints([config.vocab_offset]))
    table = graph.weight(Weight.whole(TABLE, (config.vocab_size, config.hidden_size)))
    row = ops.reshape(ops.embedding_lookup(ops.reshape(ids, (1,)), table), (1, 1, config.hidden_size))
    graph.output("embeddings", _project(_hard(graph, row, config), config))
    return graph


def _hard(graph: Graph, rows: Value, config: VisionConfig) -> Value:
    """Rows of the tower's own table, normed."""
    return _weighted(graph, Scale.of(rows, config.rms_norm_eps).unit_rms(rows), config, "hard_embedding_norm")


def _project(normed: Value, config: VisionConfig) -> Value:
    """Project to the language model's width, and norm to a root mean square of 1."""
    shape = (config.text_hidden_size, config.hidden_size)
    weight = normed.graph.weight(Weight.whole("embed_vision.embedding_projection.weight", shape))
    projected = ops.fully_connected(normed, weight)
    return Scale.of(projected, config.rms_norm_eps).unit_rms(projected)


def _weighted(graph: Graph, x: Value, config: VisionConfig, norm: str) -> Value:
    return ops.mul(x, graph.weight(Weight.whole(f"embed_vision.{norm}.weight", (config.hidden_size,))))
