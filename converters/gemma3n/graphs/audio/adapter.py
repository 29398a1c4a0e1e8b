"""Builds the audio adapter as LiteRT graphs: from the encoder's features to the language model's embeddings.

Soft tokens are the encoder's features; hard tokens are ids in the tower's own table: the end of a sound, and the
padding that fills a sound's remaining positions in a prompt. Neither is scaled by sqrt(hidden), unlike text embeddings.
Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nMultimodalEmbedder, and Gemma3nModel.forward for the
padding).
"""

from __future__ import annotations

from converters.gemma.graphs.norms import Scale
from converters.gemma3n.config.audio import AudioConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value, Weight

# Tensors computed by audio_source.py, f32[1, 1, text_hidden]: a GPU refuses operators that have only constants.
PADDING = "embed_audio.padding"
END_OF_AUDIO = "embed_audio.end_of_audio"


def adapter_graph(config: AudioConfig, frames: int) -> Graph:
    """The encoder's mask, bool[1, tokens], and features -> embeddings: f32[1, soft_tokens, text_hidden].

    Rows whose mask is false, or whose features are all zero (as the encoder writes them), and the rows from `tokens` up
    to soft_tokens, become the padding. LiteRT-LM needs the mask as the first input, and uses the rows where it is true.
    """
    graph = Graph()
    tokens, padding_rows = config.tokens(frames), config.soft_tokens - config.tokens(frames)
    mask = graph.input("mask", (1, tokens), DType.BOOL)
    features = graph.input("features", (1, tokens, config.hidden_size))
    there = ops.greater(ops.reshape(ops.reduce_max(ops.abs_(features)), (1, tokens)), graph.scalar(0.0))
    valid = ops.cast(ops.logical_and(mask, there), DType.FLOAT32)
    norm = graph.weight(Weight.whole("embed_audio.soft_embedding_norm.weight", (config.hidden_size,)))
    soft = Scale.of(features, config.rms_norm_eps).rms_norm(features, norm)
    # PAD in three axes: a GPU does not accept fewer.
    valid = ops.pad(ops.reshape(valid, (1, tokens, 1)), [(0, 0), (0, padding_rows), (0, 0)])
    soft = ops.mul(ops.pad(_project(config, soft), [(0, 0), (0, padding_rows), (0, 0)]), valid)
    rest = ops.mul(_token(graph, config, PADDING), ops.sub(graph.scalar(1.0), valid))
    graph.output("embeddings", ops.add(soft, rest))
    return graph


def hard_embedder_graph(config: AudioConfig, tokens: int) -> Graph:
    """ids: int32[1, tokens], each vocab_offset or above -> embeddings: f32[1, tokens, text_hidden]."""
    graph = Graph()
    ids = ops.reshape(graph.input("ids", (1, tokens), DType.INT32), (tokens,))
    rows = ops.sub(ids, graph.ints([config.vocab_offset]))
    graph.output("embeddings", _project(config, _hard(config, rows)))
    return graph


def end_of_audio_graph(config: AudioConfig) -> Graph:
    """No input -> embeddings: f32[1, 1, text_hidden] of the id that ends a sound; LiteRT-LM needs this graph."""
    graph = Graph()
    graph.output("embeddings", _token(graph, config, END_OF_AUDIO))
    return graph


def _token(graph: Graph, config: AudioConfig, name: str) -> Value:
    """A token's embedding, normed and projected during conversion: f32[1, 1, text_hidden]."""
    return graph.weight(Weight.whole(name, (1, 1, config.text_hidden_size)))


def _hard(config: AudioConfig, rows: Value) -> Value:
    """Normed rows of the table: f32[1, n, hidden]."""
    graph = rows.graph
    table = graph.weight(Weight.whole("embed_audio.embedding.weight", (config.vocab_size, config.hidden_size)))
    norm = graph.weight(Weight.whole("embed_audio.hard_embedding_norm.weight", (config.hidden_size,)))
    found = ops.reshape(ops.embedding_lookup(rows, table), (1, rows.shape[0], config.hidden_size))
    return Scale.of(found, config.rms_norm_eps).rms_norm(found, norm)


def _project(config: AudioConfig, normed: Value) -> Value:
    """Project to the language model's width, and norm to a root mean square of 1."""
    shape = (config.text_hidden_size, config.hidden_size)
    matrix = normed.graph.weight(Weight.whole("embed_audio.embedding_projection.weight", shape))
    projected = ops.fully_connected(normed, matrix)
    return Scale.of(projected, config.rms_norm_eps).unit_rms(projected)
