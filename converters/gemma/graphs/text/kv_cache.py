"""The KV caches of the text decoder: their rows, the rows that a step writes, and the cache that each layer reads.

Keys are f32[1, kv_heads, rows, head_dim]; values are transposed, f32[1, kv_heads, head_dim, rows].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from converters.gemma.config import DecoderConfig, DecoderLayer
from converters.gemma.graphs.text.decoder_step import Layer, Step
from converters.gemma.graphs.text.kv_ring import RingWrite, slice_start
from toolkit.tflite import ops
from toolkit.tflite.graph import Value

_KEY_POSITIONS, _VALUE_POSITIONS = 2, 3  # axes of the positions in the caches


@dataclass(frozen=True, slots=True)
class CacheRows:
    """The rows of the KV caches: `context` for layers with full attention, `sliding` for those with a window.

    With fewer rows than the context, a sliding cache is a ring: position p is in row p mod `sliding`. A prefill of N
    overwrites the N oldest rows, which none of its tokens may need, so `sliding` is at least the window plus N.
    Positions from `seen` on are not read: a short conversation does not need the rest of its caches.
    """

    context: int
    sliding: int
    seen: int

    @classmethod
    def fitting(cls, config: DecoderConfig, context: int, largest_prefill: int) -> CacheRows:
        """The smallest caches for prefills of up to `largest_prefill` tokens."""
        return cls(context, min(context, config.sliding_window + largest_prefill), context)

    @property
    def has_rings(self) -> bool:
        """Whether sliding caches are rings."""
        return self.sliding < self.context

    def of(self, layer: DecoderLayer) -> int:
        """The rows of one layer's cache."""
        return self.context if layer.attention == "full" else self.sliding

    def read(self, layer: DecoderLayer) -> int:
        """The number of rows that one layer reads."""
        return self.seen if self.of(layer) == self.context else self.sliding


class LayerCaches(Protocol):
    """The caches that the layers of one step attend to."""

    rows: CacheRows
    first: Value
    """The position of the step's first token: int32[1]."""

    def write(self, layer: Layer[DecoderConfig], key: Value, value: Value) -> None:
        """Write the key and value, f32[1, tokens, kv_heads, head_dim], of a layer that owns a cache."""
        ...

    def read(self, layer: Layer[DecoderConfig]) -> tuple[Value, Value]:
        """The keys and values that a layer attends to."""
        ...


class StepCaches:
    """The caches of one step: inputs of its graph, then written layer by layer, and finally outputs."""

    def __init__(self, step: Step[DecoderConfig], rows: CacheRows, positions: Value) -> None:
        """`positions`: int32[tokens], the consecutive positions of the step's tokens."""
        self.rows = rows
        self._step = step
        self._caches: list[tuple[Value, Value]] = []
        config = step.config
        for i, owner in enumerate(step.widest.kv_layers):
            layer, heads = step.widest.layers[owner], config.num_kv_heads
            count, dim = rows.of(layer), config.heads(layer.attention).dim
            keys = step.graph.input(f"kv_cache_k_{i}", (1, heads, count, dim))
            # The values' last axis is the position: BATCH_MATMUL then reads them without rearranging them.
            self._caches.append((keys, step.graph.input(f"kv_cache_v_{i}", (1, heads, dim, count))))
        self.first = ops.take(positions, 0, 0, 1)
        """The first token's position: int32[1]."""
        self._starts: dict[tuple[int, int], Value] = {}
        self._ring_writes: dict[int, RingWrite] = {}
        self._seen: dict[int, tuple[Value, Value]] = {}

    def write(self, layer: Layer[DecoderConfig], key: Value, value: Value) -> None:
        """Write the key and value, f32[1, tokens, kv_heads, head_dim], of a layer that owns a cache."""
        cache = self._index(layer)
        rows = self.rows.of(layer.own)
        keys, values = self._caches[cache]
        self._caches[cache] = (
            self._written(keys, heads_first(key), rows, _KEY_POSITIONS),
            self._written(values, _tokens_last(value), rows, _VALUE_POSITIONS),
        )

    def read(self, layer: Layer[DecoderConfig]) -> tuple[Value, Value]:
        """The keys and values that a layer attends to; layers that share a cache share a copy of its first rows.

        All rows of a ring are read, because attending to masked rows costs less than first copying the window's rows.
        """
        cache = self._index(layer)
        if cache not in self._seen:
            keys, values = self._caches[cache]
            rows = self.rows.read(layer.own)
            self._seen[cache] = ops.take(keys, _KEY_POSITIONS, 0, rows), ops.take(values, _VALUE_POSITIONS, 0, rows)
        return self._seen[cache]

    def output(self) -> None:
        """Declare all caches as outputs, updated or not."""
        for i, (keys, values) in enumerate(self._caches):
            self._step.graph.output(f"kv_cache_k_{i}", keys)
            self._step.graph.output(f"kv_cache_v_{i}", values)

    def _index(self, layer: Layer[DecoderConfig]) -> int:
        """The index of the cache that a layer reads: its own, or that of the layer it shares with."""
        source = layer.own.kv_source
        owner = self._step.size.layers[layer.index if source is None else source]
        return self._step.widest.kv_layers.index(owner)

    def _written(self, cache: Value, new: Value, rows: int, axis: int) -> Value:
        """The cache with this step's rows written to it; `axis` is the axis of the positions."""
        if rows == self.rows.context or self._step.tokens == 1:
            return ops.dynamic_update_slice(cache, new, self._start(rows, axis))
        if axis not in self._ring_writes:
            self._ring_writes[axis] = RingWrite.at(self._step.graph, self.first, rows, new.shape, axis)
        return self._ring_writes[axis](cache, new)

    def _start(self, rows: int, axis: int) -> Value:
        """Where this step's rows start in a cache: int32[4]."""
        graph = self._step.graph
        if (rows, axis) not in self._starts:
            wraps = rows < self.rows.context
            first = ops.floor_mod(self.first, graph.ints([rows])) if wraps else self.first
            self._starts[rows, axis] = slice_start(graph, axis, first)
        return self._starts[rows, axis]


def heads_first(x: Value) -> Value:
    """[1, tokens, heads, dim] -> [1, heads, tokens, dim]; with one token, only the shape changes."""
    _, tokens, heads, dim = x.shape
    return ops.reshape(x, (1, heads, 1, dim)) if tokens == 1 else ops.transpose(x, (0, 2, 1, 3))


def _tokens_last(x: Value) -> Value:
    """[1, tokens, heads, dim] -> [1, heads, dim, tokens]."""
    _, tokens, heads, dim = x.shape
    return ops.reshape(x, (1, heads, dim, 1)) if tokens == 1 else ops.transpose(x, (0, 2, 3, 1))
