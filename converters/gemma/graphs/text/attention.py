"""Builds the text decoder's grouped-query attention; scores are not scaled, because queries and keys are normed.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextAttention), `models/gemma4` (Gemma4TextAttention).
"""

from __future__ import annotations

from dataclasses import dataclass

from converters.gemma.config import DecoderConfig
from converters.gemma.graphs.text.attention_mask import AttentionMasks
from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma.graphs.text.kv_cache import LayerCaches, heads_first
from converters.gemma.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite import ops
from toolkit.tflite.graph import Value, Weight, WeightPart


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one step's layers over their KV caches."""

    caches: LayerCaches
    masks: AttentionMasks
    rotary: RotaryEmbedding

    def attend(self, layer: Layer[DecoderConfig], normed: Value) -> Value:
        """Attend over the layer's own cache or the one that it shares: f32[1, tokens, 1, hidden]."""
        config, tokens = layer.config, layer.tokens
        query, key, value = self._queries_keys_values(layer, normed)
        if layer.own.kv_source is None:
            self.caches.write(layer, key, value)
        keys, values = self.caches.read(layer)
        kv_heads, groups = config.num_kv_heads, config.num_heads // config.num_kv_heads
        # With one token, the heads already come first.
        query = query if tokens == 1 else heads_first(query)
        query = ops.reshape(query, (1, kv_heads, groups * tokens, layer.heads.dim))
        weights = self._weights(layer, ops.batch_matmul(query, keys, transpose_b=True))
        mixed = _heads_last(_mix(values, weights, tokens), config.num_heads, tokens)
        return layer.linear(mixed, "self_attn.o_proj.weight", config.hidden_size)

    def _weights(self, layer: Layer[DecoderConfig], scores: Value) -> Value:
        """Softmax of the scores f32[1, kv_heads, groups * tokens, rows] over the rows that a token may attend to."""
        mask, tokens = self.masks.of(layer.own), layer.tokens
        if tokens == 1:
            return ops.softmax(ops.add(scores, mask))
        by_head = ops.reshape(scores, (1, layer.config.num_heads, tokens, scores.shape[-1]))
        return ops.reshape(ops.softmax(ops.add(by_head, mask)), scores.shape)

    def fill_cache(self, layer: Layer[DecoderConfig], normed: Value) -> None:
        """Compute and write only the keys and values of a layer that owns a cache."""
        # The whole joined matrix, although queries are not needed, so that prefill and decode share one packed copy.
        _, key, value = self._queries_keys_values(layer, normed)
        self.caches.write(layer, key, value)

    def _queries_keys_values(self, layer: Layer[DecoderConfig], normed: Value) -> tuple[Value, Value, Value]:
        """Queries and keys normed and rotated, values normed: f32[1, tokens, heads, head_dim] each.

        A layer that reads another layer's cache has only queries, which are returned in place of keys and values too.
        """
        config, graph, tokens, dim = layer.config, layer.graph, layer.tokens, layer.heads.dim
        owns = layer.own.kv_source is None
        q, kv = config.num_heads, config.num_kv_heads if owns else 0
        kinds = [("q", q), ("k", kv), ("v", kv)] if owns else [("q", q)]
        parts = tuple(WeightPart(layer.name(f"self_attn.{kind}_proj.weight")) for kind, _ in kinds)
        heads = q + 2 * kv
        name = layer.name("self_attn.qkv_proj.weight" if owns else "self_attn.q_proj.weight")
        matrix = graph.weight(Weight(name, (heads * dim, config.hidden_size), parts))
        joined = ops.reshape(ops.fully_connected(normed, matrix), (1, tokens, heads, dim))
        # The factors of values are 1 (text_source.py), so all heads can be scaled at once.
        name = "self_attn.qkv_norm.weight" if owns else "self_attn.q_norms.weight"
        factors = layer.rows(name, heads, dim)
        scaled = ops.mul(layer.step.scale(joined).unit_rms(joined), factors)
        if not owns:
            query = self.rotary.rotate(scaled, layer.own)
            return query, query, query
        rotated = self.rotary.rotate(ops.take(scaled, 2, 0, q + kv), layer.own)
        return ops.take(rotated, 2, 0, q), ops.take(rotated, 2, q, q + kv), ops.take(scaled, 2, q + kv, heads)


def _mix(values: Value, weights: Value, tokens: int) -> Value:
    """weights @ values, where the last axis of values is the positions: f32[1, kv_heads, queries, head_dim].

    XNNPACK packs the second operand of a product every time, so with few queries (one token) the cache comes first.
    """
    if tokens > 1:
        return ops.batch_matmul(weights, values, transpose_b=True)
    return ops.transpose(ops.batch_matmul(values, weights, transpose_b=True), (0, 1, 3, 2))


def _heads_last(x: Value, heads: int, tokens: int) -> Value:
    """[1, kv_heads, queries, dim] -> [1, tokens, 1, heads * dim]."""
    dim = x.shape[-1]
    if tokens > 1:
        x = ops.transpose(ops.reshape(x, (1, heads, tokens, dim)), (0, 2, 1, 3))
    return ops.reshape(x, (1, tokens, 1, heads * dim))
