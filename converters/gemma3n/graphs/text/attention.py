"""Grouped-query attention of the text decoder; scores are not scaled, for queries and keys are normed.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextAttention).
"""

from __future__ import annotations

from dataclasses import dataclass

from converters.gemma3n.graphs.norms import unit_rms
from converters.gemma3n.graphs.text.attention_mask import AttentionMasks
from converters.gemma3n.graphs.text.decoder_step import Layer
from converters.gemma3n.graphs.text.kv_cache import KvCaches, heads_first
from converters.gemma3n.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite import ops
from toolkit.tflite.graph import Value, Weight, WeightPart


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one step's layers over their caches."""

    caches: KvCaches
    masks: AttentionMasks
    rotary: RotaryEmbedding

    def attend(self, layer: Layer, normed: Value) -> Value:
        """f32[1, tokens, hidden], over the layer's own cache or the one that it shares."""
        config, tokens = layer.config, layer.tokens
        query, key, value = self._queries_keys_values(layer, normed)
        if layer.own.kv_source is None:
            self.caches.write(layer, key, value)
        keys, values = self.caches.read(layer)
        rows = keys.shape[2]
        heads, kv_heads, groups = config.num_heads, config.num_kv_heads, config.num_heads // config.num_kv_heads
        query = ops.reshape(heads_first(query), (1, kv_heads, groups * tokens, config.head_dim))
        scores = ops.reshape(ops.batch_matmul(query, keys, transpose_b=True), (1, heads, tokens, rows))
        weights = ops.softmax(ops.add(scores, self.masks.of(layer.own)))
        weights = ops.reshape(weights, (1, kv_heads, groups * tokens, rows))
        mixed = ops.reshape(_mix(values, weights, tokens), (1, heads, tokens, config.head_dim))
        mixed = ops.reshape(_heads_last(mixed), (1, tokens, heads * config.head_dim))
        return layer.linear(mixed, "self_attn.o_proj.weight", config.hidden_size)

    def fill_cache(self, layer: Layer, normed: Value) -> None:
        """Only the keys and values of a layer that owns a cache."""
        # The fused matrix runs whole although the queries are not needed: one packed copy serves prefill and decode.
        _, key, value = self._queries_keys_values(layer, normed)
        self.caches.write(layer, key, value)

    def _queries_keys_values(self, layer: Layer, normed: Value) -> tuple[Value, Value, Value]:
        """Queries and keys normed and rotated, values normed: f32[1, tokens, heads, head_dim] each.

        A layer that reads another's cache has queries only: its keys and values are placeholders of the queries.
        """
        config, graph, tokens = layer.config, layer.graph, layer.tokens
        owns = layer.own.kv_source is None
        q, kv = config.num_heads, config.num_kv_heads if owns else 0
        kinds = [("q", q), ("k", kv), ("v", kv)] if owns else [("q", q)]
        parts = tuple(WeightPart(layer.name(f"self_attn.{kind}_proj.weight")) for kind, _ in kinds)
        heads = q + 2 * kv
        name = layer.name("self_attn.qkv_proj.weight" if owns else "self_attn.q_proj.weight")
        matrix = graph.weight(Weight(name, (heads * config.head_dim, config.hidden_size), parts))
        joined = ops.reshape(ops.fully_connected(normed, matrix), (1, tokens, heads, config.head_dim))
        joined = unit_rms(joined, config.rms_norm_eps)
        rotated = self.rotary.rotate(_scaled(layer, joined, kinds[:2]), layer.own)
        query = ops.take(rotated, 2, 0, q)
        if not owns:
            return query, query, query
        return query, ops.take(rotated, 2, q, q + kv), ops.take(joined, 2, q + kv, heads)


def _scaled(layer: Layer, joined: Value, kinds: list[tuple[str, int]]) -> Value:
    """The first heads of f32[1, tokens, heads, head_dim], each kind times its norm's weight."""
    config, heads = layer.config, sum(count for _, count in kinds)
    parts = tuple(
        WeightPart(layer.name(f"self_attn.{kind}_norm.weight")) for kind, count in kinds for _ in range(count)
    )
    name = layer.name("self_attn.qk_norm.weight" if len(kinds) > 1 else "self_attn.q_norms.weight")
    # One row of all heads: the weight is a vector, which broadcasts over tokens.
    scale = layer.graph.weight(Weight(name, (heads * config.head_dim,), parts))
    flat = ops.reshape(ops.take(joined, 2, 0, heads), (1, layer.tokens, heads * config.head_dim))
    return ops.reshape(ops.mul(flat, scale), (1, layer.tokens, heads, config.head_dim))


def _mix(values: Value, weights: Value, tokens: int) -> Value:
    """weights @ values, the values' last axis the positions: f32[1, kv_heads, queries, head_dim].

    XNNPACK packs the second operand of each product anew: for the few queries of one token better not the cache.
    """
    if tokens > 1:
        return ops.batch_matmul(weights, values, transpose_b=True)
    return ops.transpose(ops.batch_matmul(values, weights, transpose_b=True), (0, 1, 3, 2))


def _heads_last(x: Value) -> Value:
    """[1, heads, tokens, dim] -> [1, tokens, heads, dim]."""
    _, heads, tokens, dim = x.shape
    return ops.reshape(x, (1, 1, heads, dim)) if tokens == 1 else ops.transpose(x, (0, 2, 1, 3))
