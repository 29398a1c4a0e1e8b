"""The text decoder of Gemma 3n as LiteRT graphs: model, layer, blocks, in the order of the forward pass.

Streams are f32[1, tokens, 4, hidden] (AltUp's predictions of the hidden state); all else is f32[1, tokens, ...].
A prefill computes only what fills the KV caches: the layers that own one, and of the last of them its keys and values.
Source: transformers `models/gemma3n/modeling_gemma3n.py`; `reference.py` has the same mathematics in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from converters.gemma3n.config import LayerConfig, TextConfig
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Value, Weight, WeightPart

WINDOW_SLOPE = 1e30  # mask per position beyond the window: far below any score, far from overflow at 32K positions
_KEY_POSITIONS, _VALUE_POSITIONS = 2, 3  # axes of the positions in the caches
MAGNITUDE_FLOOR = 1e-5  # AltUp's floor under the mean square of a projected stream


@dataclass(frozen=True, slots=True)
class Size:
    """One MatFormer size over the weights of the widest model in the file.

    `layers[i]` is the widest model's index of this size's layer i; `ffn_segments[i]`: widths of the FFN pieces it runs.
    """

    config: TextConfig
    layers: tuple[int, ...]
    ffn_segments: tuple[tuple[int, ...], ...]

    @classmethod
    def alone(cls, config: TextConfig) -> Size:
        """The only size of a file: every layer, each FFN in one piece."""
        return cls(config, tuple(range(config.num_layers)), tuple((layer.ffn_size,) for layer in config.layers))


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Rows of the KV caches: `context` of layers that attend to everything, `sliding` of those with a window.

    With fewer rows than the context a sliding cache is a ring: position p lies in row p mod `sliding`. A prefill of N
    overwrites the N oldest rows, which none of its tokens may need: `sliding` is at least the window plus N.
    Positions from `seen` on are out of sight: while a conversation is short, nothing reads the rest of its caches.
    """

    context: int
    sliding: int
    seen: int

    @classmethod
    def fitting(cls, config: TextConfig, context: int, largest_prefill: int) -> CacheRows:
        """The smallest caches for prefills of up to `largest_prefill` tokens."""
        return cls(context, min(context, config.sliding_window + largest_prefill), context)

    def of(self, layer: LayerConfig) -> int:
        """Rows of the cache of one layer."""
        return self.context if layer.attention == "full" else self.sliding

    def read(self, layer: LayerConfig) -> int:
        """Rows that one layer reads."""
        return self.seen if self.of(layer) == self.context else self.sliding


def decode_graph(size: Size, widest: TextConfig, rows: CacheRows) -> Graph:
    """One token in, caches updated at its position, logits f32[1, 1, vocab] out."""
    step = _Step(size, widest, tokens=1, rows=rows)
    streams = step.embed()
    for index in range(size.config.num_layers):
        streams = step.layer(index, streams)
    step.finish(logits=step.logits(streams))
    return step.graph


def prefill_graph(size: Size, widest: TextConfig, rows: CacheRows, tokens: int) -> Graph:
    """`tokens` tokens in, caches updated from the first one's position on; no logits."""
    step = _Step(size, widest, tokens=tokens, rows=rows)
    streams = step.embed()
    last_owner = size.config.kv_layers[-1]
    for index in range(last_owner):
        streams = step.layer(index, streams)
    step.keys_and_values(last_owner, streams)
    step.finish(logits=None)
    return step.graph


class _Step:
    """One forward pass under construction: the graph, its inputs, and what all layers share."""

    def __init__(self, size: Size, widest: TextConfig, *, tokens: int, rows: CacheRows) -> None:
        self.graph = graph = Graph()
        self.size, self.config, self.widest = size, size.config, widest
        self.tokens, self.rows = tokens, rows
        config = self.config
        self._embeddings = graph.input("embeddings", (1, tokens, config.hidden_size))
        self._per_layer = graph.input("per_layer_embeddings", (1, tokens, widest.num_layers, config.ple_size))
        self._position = graph.input("input_pos", (tokens,), DType.INT32)
        self._mask_full = graph.input("mask", (1, 1, tokens, rows.seen))
        self._caches: list[tuple[Value, Value]] = []
        for i, owner in enumerate(widest.kv_layers):
            positions, heads, dim = rows.of(widest.layers[owner]), config.num_kv_heads, config.head_dim
            keys = graph.input(f"kv_cache_k_{i}", (1, heads, positions, dim))
            # Values by position in the last axis: BATCH_MATMUL then reads them as they lie, and rearranges none.
            self._caches.append((keys, graph.input(f"kv_cache_v_{i}", (1, heads, dim, positions))))
        self._first = ops.take(self._position, 0, 0, 1)
        self._cache_starts: dict[tuple[int, int], Value] = {}
        self._ring_rows: Value | None = None
        self._seen: dict[int, tuple[Value, Value]] = {}
        self._rope: dict[str, tuple[Value, Value]] = {}
        self._masks: dict[str, Value] = {"full": self._mask_full}
        self._ple: Value | None = None

    # --- model ---------------------------------------------------------------------------------------------------

    def embed(self) -> Value:
        """The four AltUp streams: the embedding, and three projections of it scaled to its magnitude."""
        config, embeddings = self.config, self._embeddings
        others = config.altup_num_inputs - 1
        tensors = [f"altup_projections.{j}.weight" for j in range(others)]
        shape = (others * config.hidden_size, config.hidden_size)
        matrix = self.graph.weight(Weight("altup_projections.weight", shape, tuple(map(WeightPart, tensors))))
        projected = ops.fully_connected(embeddings, matrix)
        projected = ops.reshape(projected, (1, self.tokens, others, config.hidden_size))
        first = ops.reshape(embeddings, (1, self.tokens, 1, config.hidden_size))
        return ops.concatenation([first, self._at_magnitude_of(first, projected)], 2)

    def layer(self, index: int, streams: Value) -> Value:
        """One decoder layer: predict, LAuReL beside attention, feed-forward, correct, per-layer embedding."""
        predicted = self._altup_predict(index, streams)
        active = self._stream(predicted, self.config.altup_active_index)
        normed = self._rms_norm(active, self._vector(index, "input_layernorm.weight"))
        laurel = self._laurel(index, normed)
        attended = self._rms_norm(
            self._attention(index, normed), self._vector(index, "post_attention_layernorm.weight")
        )
        hidden = ops.mul(ops.add(ops.add(active, attended), laurel), self.graph.scalar(2**-0.5))
        normed = self._rms_norm(hidden, self._vector(index, "pre_feedforward_layernorm.weight"))
        fed = self._rms_norm(
            self._feed_forward(index, normed), self._vector(index, "post_feedforward_layernorm.weight")
        )
        corrected = self._altup_correct(index, predicted, active, ops.add(hidden, fed))
        return self._inject_per_layer_embedding(index, corrected)

    def keys_and_values(self, index: int, streams: Value) -> None:
        """The part of a layer that fills its KV cache."""
        active = self._stream(self._altup_predict(index, streams), self.config.altup_active_index)
        normed = self._rms_norm(active, self._vector(index, "input_layernorm.weight"))
        # The fused matrix runs whole although the queries are not needed: one packed copy serves prefill and decode.
        _, key, value = self._qkv(index, normed)
        self._update_cache(index, key, value)

    def logits(self, streams: Value) -> Value:
        """Streams at one magnitude, averaged, normed, against the embedding, soft-capped: f32[1, tokens, vocab]."""
        config = self.config
        first = self._stream(streams, 0)
        total = first
        for j in range(config.altup_num_inputs - 1):
            name = f"altup_unembed_projections.{j}.weight"
            projected = self._linear(self._stream(streams, j + 1), name, config.hidden_size, config.hidden_size)
            total = ops.add(total, self._at_magnitude_of(first, projected))
        average = ops.mul(total, self.graph.scalar(1 / config.altup_num_inputs))
        normed = self._rms_norm(average, self.graph.weight(Weight.whole("norm.weight", (config.hidden_size,))))
        shape = (config.vocab_size, config.hidden_size)
        head = self.graph.weight(Weight("lm_head.weight", shape, (WeightPart("embed_tokens.weight"),)))
        logits = ops.fully_connected(normed, head)
        if config.final_logit_softcap is None:
            return logits
        cap = config.final_logit_softcap
        return ops.mul(ops.tanh(ops.mul(logits, self.graph.scalar(1 / cap))), self.graph.scalar(cap))

    def finish(self, *, logits: Value | None) -> None:
        """Declare the outputs: every cache, updated or not, and the logits."""
        for i, (key, value) in enumerate(self._caches):
            self.graph.output(f"kv_cache_k_{i}", key)
            self.graph.output(f"kv_cache_v_{i}", value)
        if logits is not None:
            self.graph.output("logits", logits)

    # --- AltUp ---------------------------------------------------------------------------------------------------

    def _altup_predict(self, index: int, streams: Value) -> Value:
        """streams + coefficients @ streams; the identity is folded into the coefficients as a bias."""
        n = self.config.altup_num_inputs
        coefficients = ops.fully_connected(
            self._modalities(index, self._stream(streams, self.config.altup_active_index)),
            self._matrix(index, "altup.prediction_coefs.weight", n * n, n),
            self.graph.constant(np.eye(n, dtype=np.float32).reshape(-1)),
        )
        return ops.batch_matmul(ops.reshape(coefficients, (1, self.tokens, n, n)), streams)

    def _altup_correct(self, index: int, predicted: Value, active: Value, activated: Value) -> Value:
        """predicted + (1 + coefficients) * (activated - the active prediction)."""
        n = self.config.altup_num_inputs
        coefficients = ops.fully_connected(
            self._modalities(index, activated),
            self._matrix(index, "altup.correction_coefs.weight", n, n),
            self.graph.constant(np.ones(n, np.float32)),
        )
        innovation = ops.reshape(ops.sub(activated, active), (1, self.tokens, 1, self.config.hidden_size))
        return ops.add(predicted, ops.mul(ops.reshape(coefficients, (1, self.tokens, n, 1)), innovation))

    def _modalities(self, index: int, x: Value) -> Value:
        """The router: tanh of a linear map of x normed and divided by the hidden size; f32[1, tokens, 4]."""
        config = self.config
        normed = self._rms_norm(x, self._vector(index, "altup.router_norm.weight"))
        router = self._matrix(index, "altup.modality_router.weight", config.altup_num_inputs, config.hidden_size)
        routed = ops.fully_connected(normed, router)
        return ops.tanh(ops.mul(routed, self.graph.scalar(1 / config.hidden_size)))

    def _at_magnitude_of(self, reference: Value, x: Value) -> Value:
        """x scaled along the last axis to the root mean square of the reference."""
        wanted = ops.sqrt(ops.mean(ops.mul(reference, reference)))
        square = ops.maximum(ops.mean(ops.mul(x, x)), self.graph.scalar(MAGNITUDE_FLOOR))
        return ops.mul(x, ops.mul(wanted, ops.rsqrt(square)))

    def _stream(self, streams: Value, j: int) -> Value:
        return ops.reshape(ops.take(streams, 2, j, j + 1), (1, self.tokens, self.config.hidden_size))

    # --- blocks --------------------------------------------------------------------------------------------------

    def _laurel(self, index: int, normed: Value) -> Value:
        """normed + norm(right(left(normed))): the learned low-rank residual."""
        rank, hidden = self.config.laurel_rank, self.config.hidden_size
        left = ops.fully_connected(normed, self._matrix(index, "laurel.linear_left.weight", rank, hidden))
        right = ops.fully_connected(left, self._matrix(index, "laurel.linear_right.weight", hidden, rank))
        return ops.add(normed, self._rms_norm(right, self._vector(index, "laurel.post_laurel_norm.weight")))

    def _attention(self, index: int, normed: Value) -> Value:
        """Grouped-query attention over a cache, the layer's own or the one it shares; score scale is 1."""
        config, layer = self.config, self.config.layers[index]
        query, key, value = self._qkv(index, normed)
        if layer.kv_source is None:
            self._update_cache(index, key, value)
        keys, values = self._read_cache(self._cache_index(index), layer)
        rows = keys.shape[2]
        heads, groups = config.num_heads, config.num_heads // config.num_kv_heads
        query = self._heads_first(query)
        grouped = (1, config.num_kv_heads, groups * self.tokens, config.head_dim)
        scores = ops.batch_matmul(ops.reshape(query, grouped), keys, transpose_b=True)
        scores = ops.reshape(scores, (1, heads, self.tokens, rows))
        weights = ops.softmax(ops.add(scores, self._mask(layer)))
        weights = ops.reshape(weights, (1, config.num_kv_heads, groups * self.tokens, rows))
        mixed = ops.reshape(self._mix(values, weights), (1, heads, self.tokens, config.head_dim))
        width = heads * config.head_dim
        mixed = ops.reshape(self._heads_last(mixed), (1, self.tokens, width))
        return ops.fully_connected(mixed, self._matrix(index, "self_attn.o_proj.weight", config.hidden_size, width))

    def _mix(self, values: Value, weights: Value) -> Value:
        """weights @ values, the values' last axis the positions: f32[1, kv_heads, queries, head_dim].

        XNNPACK packs the second operand of each product anew: for the few queries of one token better not the cache.
        """
        if self.tokens > 1:
            return ops.batch_matmul(weights, values, transpose_b=True)
        return ops.transpose(ops.batch_matmul(values, weights, transpose_b=True), (0, 1, 3, 2))

    def _qkv(self, index: int, normed: Value) -> tuple[Value, Value, Value]:
        """Queries and keys normed and rotated, values normed: f32[1, tokens, heads, head_dim] each.

        A layer that reads another's cache has queries only: its keys and values are placeholders of the queries.
        """
        config, layer = self.config, self.config.layers[index]
        owns = layer.kv_source is None
        q, kv = config.num_heads, config.num_kv_heads if owns else 0
        kinds = [("q", q), ("k", kv), ("v", kv)] if owns else [("q", q)]
        parts = tuple(WeightPart(self._name(index, f"self_attn.{kind}_proj.weight")) for kind, _ in kinds)
        heads = q + 2 * kv
        name = self._name(index, "self_attn.qkv_proj.weight" if owns else "self_attn.q_proj.weight")
        matrix = self.graph.weight(Weight(name, (heads * config.head_dim, config.hidden_size), parts))
        joined = ops.reshape(ops.fully_connected(normed, matrix), (1, self.tokens, heads, config.head_dim))
        joined = self._unit_rms(joined)
        rotated_heads = q + kv
        scales = tuple(
            WeightPart(self._name(index, f"self_attn.{kind}_norm.weight"))
            for kind, count in kinds[:2]
            for _ in range(count)
        )
        name = self._name(index, "self_attn.qk_norm.weight" if owns else "self_attn.q_norms.weight")
        scale = self.graph.weight(Weight(name, (rotated_heads * config.head_dim,), scales))
        flat = ops.reshape(ops.take(joined, 2, 0, rotated_heads), (1, self.tokens, rotated_heads * config.head_dim))
        scaled = ops.reshape(ops.mul(flat, scale), (1, self.tokens, rotated_heads, config.head_dim))
        rotated = self._rotate(scaled, layer)
        query = ops.take(rotated, 2, 0, q)
        if not owns:
            return query, query, query
        return query, ops.take(rotated, 2, q, q + kv), ops.take(joined, 2, q + kv, heads)

    def _feed_forward(self, index: int, normed: Value) -> Value:
        """down(gelu(sparse(gate(x))) * up(x)), each FFN piece by itself, their results added."""
        layer, hidden = self.config.layers[index], self.config.hidden_size
        pieces = self._ffn_pieces(index)
        gates = [ops.fully_connected(normed, self._piece(index, "gate", n, rows)) for n, rows in enumerate(pieces)]
        if layer.sparsity > 0:
            gates = self._keep_largest(gates, layer.sparsity)
        total: Value | None = None
        for n, (gate, rows) in enumerate(zip(gates, pieces, strict=True)):
            up = ops.fully_connected(normed, self._piece(index, "up", n, rows))
            tensor = self._name(index, "mlp.down_proj.weight")
            name = tensor if n == 0 else self._name(index, f"mlp.down_proj.{n}.weight")
            part = WeightPart(tensor, columns=rows)
            down = self.graph.weight(Weight(name, (hidden, rows[1] - rows[0]), (part,)))
            out = ops.fully_connected(ops.mul(ops.gelu_tanh(gate), up), down)
            total = out if total is None else ops.add(total, out)
        assert total is not None
        return total

    def _keep_largest(self, gates: Sequence[Value], sparsity: float) -> list[Value]:
        """relu(gate - (mean + z * std)) over the units that run; z: normal quantile; std of the population."""
        units = sum(g.shape[-1] for g in gates)
        mean = self._sum([ops.mul(ops.sum_(g), self.graph.scalar(1 / units)) for g in gates])
        centred = [ops.sub(g, mean) for g in gates]
        variance = self._sum([ops.mul(ops.sum_(ops.mul(c, c)), self.graph.scalar(1 / units)) for c in centred])
        cut = ops.mul(ops.sqrt(variance), self.graph.scalar(NormalDist().inv_cdf(sparsity)))
        return [ops.relu(ops.sub(c, cut)) for c in centred]

    def _inject_per_layer_embedding(self, index: int, streams: Value) -> Value:
        """Gate the layer's own embedding by the active stream and add it to the streams but the first."""
        config, hidden = self.config, self.config.hidden_size
        x = self._stream(streams, config.altup_active_index)
        if config.altup_correct_scale:
            x = ops.mul(x, self._vector(index, "altup.correct_output_scale"))
        gate = ops.gelu_tanh(
            ops.fully_connected(x, self._matrix(index, "per_layer_input_gate.weight", config.ple_size, hidden))
        )
        gated = ops.mul(gate, self._per_layer_embedding(index))
        projected = ops.fully_connected(
            gated, self._matrix(index, "per_layer_projection.weight", hidden, config.ple_size)
        )
        projected = self._rms_norm(projected, self._vector(index, "post_per_layer_input_norm.weight"))
        others = np.ones((1, 1, config.altup_num_inputs, 1), np.float32)
        others[0, 0, 0, 0] = 0
        spread = ops.mul(ops.reshape(projected, (1, self.tokens, 1, hidden)), self.graph.constant(others))
        return ops.add(streams, spread)

    def _per_layer_embedding(self, index: int) -> Value:
        """The table's row and a projection of the embedding, averaged with weight 2^-0.5: f32[1, tokens, ple]."""
        if self._ple is None:
            config, layers = self.config, self.widest.num_layers
            projected = self._linear(
                self._embeddings, "per_layer_model_projection.weight", layers * config.ple_size, config.hidden_size
            )
            projected = ops.reshape(projected, (1, self.tokens, layers, config.ple_size))
            norm = self.graph.weight(Weight.whole("per_layer_projection_norm.weight", (config.ple_size,)))
            # The model scales the projection by hidden^-0.5 before this norm: that is the same as a larger epsilon.
            projected = self._rms_norm(projected, norm, epsilon=config.rms_norm_eps * config.hidden_size)
            self._ple = ops.mul(ops.add(projected, self._per_layer), self.graph.scalar(2**-0.5))
        layer = self.size.layers[index]
        return ops.reshape(ops.take(self._ple, 2, layer, layer + 1), (1, self.tokens, self.config.ple_size))

    # --- pieces --------------------------------------------------------------------------------------------------

    def _rms_norm(self, x: Value, weight: Value, *, epsilon: float | None = None) -> Value:
        """x / rms(x) * weight over the last axis."""
        return ops.mul(self._unit_rms(x, epsilon), weight)

    def _unit_rms(self, x: Value, epsilon: float | None = None) -> Value:
        epsilon = self.config.rms_norm_eps if epsilon is None else epsilon
        return ops.mul(x, ops.rsqrt(ops.add(ops.mean(ops.mul(x, x)), self.graph.scalar(epsilon))))

    def _rotate(self, x: Value, layer: LayerConfig) -> Value:
        """Rotary embedding, half-split: x * cos + (-x2, x1) * sin; the sign is folded into the sines."""
        cos, sin = self._rotation(layer)
        half = self.config.head_dim // 2
        swapped = ops.concatenation([ops.take(x, 3, half, 2 * half), ops.take(x, 3, 0, half)], 3)
        return ops.add(ops.mul(x, cos), ops.mul(swapped, sin))

    def _rotation(self, layer: LayerConfig) -> tuple[Value, Value]:
        """cos and signed sin of position * frequency, f32[1, tokens, 1, head_dim], one pair per attention type."""
        if layer.attention not in self._rope:
            config = self.config
            theta = config.rope_theta_full if layer.attention == "full" else config.rope_theta_sliding
            exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
            frequencies = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
            position = ops.reshape(ops.cast(self._position, DType.FLOAT32), (1, self.tokens, 1, 1))
            angles = ops.mul(position, self.graph.constant(frequencies.reshape(1, 1, 1, -1)))
            cos, sin = ops.cos(angles), ops.sin(angles)
            self._rope[layer.attention] = (ops.concatenation([cos, cos], 3), ops.concatenation([ops.neg(sin), sin], 3))
        return self._rope[layer.attention]

    def _mask(self, layer: LayerConfig) -> Value:
        """f32[1, 1, tokens, rows]: the caller's mask; on sliding layers all keys outside the window blocked too."""
        if layer.attention not in self._masks:
            ring = self.rows.sliding < self.rows.context
            self._masks[layer.attention] = self._ring_mask() if ring else self._window_mask()
        return self._masks[layer.attention]

    def _window_mask(self) -> Value:
        """The caller's mask, narrowed: a cache row is a position."""
        keys = np.arange(self.rows.seen, dtype=np.float32)
        position = ops.reshape(ops.cast(self._position, DType.FLOAT32), (1, 1, self.tokens, 1))
        distance = ops.sub(position, self.graph.constant(keys.reshape(1, 1, 1, -1)))
        # Minimum, not sum: two blocked values would overflow to -inf and a fully blocked padding row to NaN.
        return ops.minimum(self._mask_full, self._at_most(distance, self.config.sliding_window - 1))

    def _ring_mask(self) -> Value:
        """Which rows of the ring each token sees, by the position that a row holds after this step's were written."""
        last = ops.add(self._first, self.graph.ints([self.tokens - 1]))
        rows = self.graph.ints(range(self.rows.sliding))
        age = ops.floor_mod(ops.sub(last, rows), self.graph.ints([self.rows.sliding]))
        return self._mask_of(ops.sub(last, age))

    def _mask_of(self, held: Value) -> Value:
        """f32[1, 1, tokens, rows]: what each token sees of rows that hold these positions, int32[rows]; none is < 0."""
        held = ops.reshape(ops.cast(held, DType.FLOAT32), (1, 1, 1, *held.shape))
        # Not input_pos: a caller may give padding any position there.
        offsets = self.graph.constant(np.arange(self.tokens, dtype=np.float32).reshape(1, 1, -1, 1))
        position = ops.add(offsets, ops.reshape(ops.cast(self._first, DType.FLOAT32), (1, 1, 1, 1)))
        distance = ops.sub(position, held)
        inside = ops.minimum(self._at_most(distance, self.config.sliding_window - 1), self._at_least(distance, 0))
        return ops.minimum(inside, self._at_least(held, 0))

    def _at_most(self, x: Value, limit: int) -> Value:
        """0 where an integer x <= limit, far below any score elsewhere."""
        return ops.minimum(self._slope(ops.sub(self.graph.scalar(limit + 0.5), x)), self.graph.scalar(0.0))

    def _at_least(self, x: Value, limit: int) -> Value:
        """0 where an integer x >= limit, far below any score elsewhere."""
        return ops.minimum(self._slope(ops.sub(x, self.graph.scalar(limit - 0.5))), self.graph.scalar(0.0))

    def _slope(self, x: Value) -> Value:
        return ops.mul(x, self.graph.scalar(WINDOW_SLOPE))

    def _update_cache(self, index: int, key: Value, value: Value) -> None:
        """key, value: f32[1, tokens, heads, dim]."""
        cache = self._cache_index(index)
        rows = self.rows.of(self.config.layers[index])
        keys, values = self._caches[cache]
        self._caches[cache] = (
            self._written(keys, self._heads_first(key), rows, _KEY_POSITIONS),
            self._written(values, self._tokens_last(value), rows, _VALUE_POSITIONS),
        )

    def _read_cache(self, cache: int, layer: LayerConfig) -> tuple[Value, Value]:
        """The keys and values that a layer attends to; layers that share a cache share a copy of its first rows.

        Of a ring all rows: to attend to rows out of sight is cheaper than to copy those of the window first.
        """
        if cache not in self._seen:
            keys, values = self._caches[cache]
            rows = self.rows.read(layer)
            self._seen[cache] = ops.take(keys, _KEY_POSITIONS, 0, rows), ops.take(values, _VALUE_POSITIONS, 0, rows)
        return self._seen[cache]

    def _written(self, cache: Value, new: Value, rows: int, axis: int) -> Value:
        """The cache with this step's rows in it, `axis` being that of the positions."""
        if rows == self.rows.context or self.tokens == 1:
            return ops.dynamic_update_slice(cache, new, self._start(rows, axis))
        # The rows of a ring may wrap: each is taken from the old cache or from the new rows behind it. GATHER is slow
        # along the last axis, where it copies number by number.
        across = axis == _VALUE_POSITIONS
        old, new = (ops.transpose(x, (0, 1, 3, 2)) if across else x for x in (cache, new))
        turned = ops.gather(ops.concatenation([old, new], 2), self._ring_sources(), 2)
        return ops.transpose(turned, (0, 1, 3, 2)) if across else turned

    def _start(self, rows: int, axis: int) -> Value:
        """Where this step's rows start in a cache: int32[4]."""
        if (rows, axis) not in self._cache_starts:
            first = self._first
            if rows < self.rows.context:
                first = ops.floor_mod(first, self.graph.ints([rows]))
            start = [self.graph.ints([0] * axis), first, *([self.graph.ints([0] * (3 - axis))] if axis < 3 else [])]
            self._cache_starts[rows, axis] = ops.concatenation(start, 0)
        return self._cache_starts[rows, axis]

    def _ring_sources(self) -> Value:
        """For each row of a ring, its row in (old ring, new rows): int32[sliding]."""
        if self._ring_rows is None:
            count = self.graph.ints([self.rows.sliding])
            rows = self.graph.ints(range(self.rows.sliding))
            offset = ops.floor_mod(ops.sub(rows, self._first), count)
            fresh = ops.less(offset, self.graph.ints([self.tokens]))
            self._ring_rows = ops.select(fresh, ops.add(offset, count), rows)
        return self._ring_rows

    def _cache_index(self, index: int) -> int:
        """Which cache a layer reads: its own, or that of the layer it shares with."""
        source = self.config.layers[index].kv_source
        owner = self.size.layers[index if source is None else source]
        return self.widest.kv_layers.index(owner)

    def _heads_first(self, x: Value) -> Value:
        """[1, tokens, heads, dim] -> [1, heads, tokens, dim]; with one token only the shape changes."""
        _, tokens, heads, dim = x.shape
        return ops.reshape(x, (1, heads, 1, dim)) if tokens == 1 else ops.transpose(x, (0, 2, 1, 3))

    def _tokens_last(self, x: Value) -> Value:
        """[1, tokens, heads, dim] -> [1, heads, dim, tokens]."""
        _, tokens, heads, dim = x.shape
        return ops.reshape(x, (1, heads, dim, 1)) if tokens == 1 else ops.transpose(x, (0, 2, 3, 1))

    def _heads_last(self, x: Value) -> Value:
        _, heads, tokens, dim = x.shape
        return ops.reshape(x, (1, 1, heads, dim)) if tokens == 1 else ops.transpose(x, (0, 2, 1, 3))

    def _sum(self, values: Sequence[Value]) -> Value:
        total = values[0]
        for value in values[1:]:
            total = ops.add(total, value)
        return total

    # --- weights -------------------------------------------------------------------------------------------------

    def _name(self, index: int, tensor: str) -> str:
        return f"layers.{self.size.layers[index]}.{tensor}"

    def _vector(self, index: int, tensor: str) -> Value:
        return self.graph.weight(Weight.whole(self._name(index, tensor), (self.config.hidden_size,)))

    def _matrix(self, index: int, tensor: str, rows: int, columns: int) -> Value:
        return self.graph.weight(Weight.whole(self._name(index, tensor), (rows, columns)))

    def _linear(self, x: Value, tensor: str, rows: int, columns: int) -> Value:
        return ops.fully_connected(x, self.graph.weight(Weight.whole(tensor, (rows, columns))))

    def _ffn_pieces(self, index: int) -> list[tuple[int, int]]:
        """The units of each FFN piece that this size runs: half-open ranges."""
        stops = np.cumsum(self.size.ffn_segments[index]).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    def _piece(self, index: int, kind: str, n: int, rows: tuple[int, int]) -> Value:
        tensor = self._name(index, f"mlp.{kind}_proj.weight")
        name = tensor if n == 0 else self._name(index, f"mlp.{kind}_proj.{n}.weight")
        part = WeightPart(tensor, rows=rows)
        return self.graph.weight(Weight(name, (rows[1] - rows[0], self.config.hidden_size), (part,)))
