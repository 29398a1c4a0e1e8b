"""What a token of the text decoder may attend to: the caller's mask, and on sliding layers the window too."""

from __future__ import annotations

import numpy as np

from converters.gemma3n.config.text import LayerConfig
from converters.gemma3n.graphs.text.decoder_step import Step
from converters.gemma3n.graphs.text.kv_cache import KvCaches
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Value

WINDOW_SLOPE = 1e30  # mask per position beyond the window: far below any score, far from overflow at 32K positions


class AttentionMasks:
    """One mask for each type of attention, f32[1, 1, tokens, rows], added to the scores: 0, or far below any score."""

    def __init__(self, step: Step, caches: KvCaches, positions: Value, mask: Value) -> None:
        """mask: the caller's, f32[1, 1, tokens, rows in sight]; positions: int32[tokens]."""
        self._step, self._caches, self._positions, self._full = step, caches, positions, mask
        self._window = step.config.sliding_window
        self._sliding: Value | None = None

    def of(self, layer: LayerConfig) -> Value:
        """The caller's mask; on sliding layers all keys outside the window blocked too."""
        if layer.attention == "full":
            return self._full
        if self._sliding is None:
            self._sliding = self._ring_mask() if self._caches.rows.has_rings else self._window_mask()
        return self._sliding

    def _window_mask(self) -> Value:
        """The caller's mask, narrowed: a cache row is a position."""
        keys = np.arange(self._caches.rows.seen, dtype=np.float32)
        position = ops.reshape(ops.cast(self._positions, DType.FLOAT32), (1, 1, self._step.tokens, 1))
        distance = ops.sub(position, self._step.graph.constant(keys.reshape(1, 1, 1, -1)))
        # Minimum, not sum: two blocked values would overflow to -inf and a fully blocked padding row to NaN.
        return ops.minimum(self._full, _at_most(distance, self._window - 1))

    def _ring_mask(self) -> Value:
        """Which rows of the ring each token sees, by the position that a row holds after this step's were written."""
        graph, rows = self._step.graph, self._caches.rows.sliding
        last = ops.add(self._caches.first, graph.ints([self._step.tokens - 1]))
        age = ops.floor_mod(ops.sub(last, graph.ints(range(rows))), graph.ints([rows]))
        return self._mask_of(ops.sub(last, age))

    def _mask_of(self, held: Value) -> Value:
        """f32[1, 1, tokens, rows]: what each token sees of rows that hold these positions, int32[rows]; none is < 0."""
        held = ops.reshape(ops.cast(held, DType.FLOAT32), (1, 1, 1, *held.shape))
        # Not input_pos: a caller may give padding any position there.
        tokens = np.arange(self._step.tokens, dtype=np.float32)
        offsets = self._step.graph.constant(tokens.reshape(1, 1, -1, 1))
        position = ops.add(offsets, ops.reshape(ops.cast(self._caches.first, DType.FLOAT32), (1, 1, 1, 1)))
        distance = ops.sub(position, held)
        inside = ops.minimum(_at_most(distance, self._window - 1), _at_least(distance, 0))
        return ops.minimum(inside, _at_least(held, 0))


def _at_most(x: Value, limit: int) -> Value:
    """0 where an integer x <= limit, far below any score elsewhere."""
    return _blocked_below_zero(ops.sub(x.graph.scalar(limit + 0.5), x))


def _at_least(x: Value, limit: int) -> Value:
    """0 where an integer x >= limit, far below any score elsewhere."""
    return _blocked_below_zero(ops.sub(x, x.graph.scalar(limit - 0.5)))


def _blocked_below_zero(x: Value) -> Value:
    return ops.minimum(ops.mul(x, x.graph.scalar(WINDOW_SLOPE)), x.graph.scalar(0.0))
