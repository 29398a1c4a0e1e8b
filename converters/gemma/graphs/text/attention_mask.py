"""Builds the text decoder's attention masks: the caller's mask, on sliding layers combined with the window."""

from __future__ import annotations

import numpy as np

from converters.gemma.config import DecoderConfig, DecoderLayer
from converters.gemma.graphs.text.decoder_step import Step
from converters.gemma.graphs.text.kv_cache import LayerCaches
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Value

BLOCKED = -3e4  # far below any score, and finite in float16, where a GPU computes


class AttentionMasks:
    """One mask for each type of attention, f32[1, 1, tokens, rows], added to the scores: 0, or far below any score."""

    def __init__(self, step: Step[DecoderConfig], caches: LayerCaches, positions: Value, mask: Value) -> None:
        """mask: the caller's, f32[1, 1, tokens, rows in sight]; positions: int32[tokens]."""
        self._step, self._caches, self._positions, self._full = step, caches, positions, mask
        self._window = step.config.sliding_window
        self._sliding: Value | None = None

    def of(self, layer: DecoderLayer) -> Value:
        """The caller's mask; on sliding layers, keys outside the window are blocked too."""
        if layer.attention == "full":
            return self._full
        if self._sliding is None:
            self._sliding = self._ring_mask() if self._caches.rows.has_rings else self._window_mask()
        return self._sliding

    def _window_mask(self) -> Value:
        """The caller's mask, limited to the window, for caches whose row numbers are positions."""
        keys = np.arange(self._caches.rows.seen, dtype=np.int32)
        position = ops.reshape(self._positions, (1, 1, self._step.tokens, 1))
        distance = _float(ops.sub(position, self._step.graph.constant(keys.reshape(1, 1, 1, -1))))
        # The minimum instead of the sum, in which two blocked values would be -inf, and a fully blocked row NaN.
        return ops.minimum(self._full, _blocked_below_zero(_up_to(self._window - 1, distance)))

    def _ring_mask(self) -> Value:
        """The mask of a ring's rows for each token, from the rows' positions after this step's rows were written."""
        graph, rows = self._step.graph, self._caches.rows.sliding
        last = ops.add(self._caches.first, graph.ints([self._step.tokens - 1]))
        age = ops.floor_mod(ops.sub(last, graph.ints(range(rows))), graph.ints([rows]))
        return self._mask_of(ops.sub(last, age))

    def _mask_of(self, held: Value) -> Value:
        """The mask f32[1, 1, tokens, rows] for rows at the positions `held`, int32[rows]; negative ones are blocked."""
        held = ops.reshape(held, (1, 1, 1, *held.shape))
        # Not from input_pos, where a caller may give padding any position.
        tokens = np.arange(self._step.tokens, dtype=np.int32)
        offsets = self._step.graph.constant(tokens.reshape(1, 1, -1, 1))
        position = ops.add(offsets, ops.reshape(self._caches.first, (1, 1, 1, 1)))
        distance, held = _float(ops.sub(position, held)), _float(held)
        inside = ops.minimum(_up_to(self._window - 1, distance), ops.minimum(distance, held))
        return _blocked_below_zero(inside)


def _up_to(limit: int, x: Value) -> Value:
    """A value that is 0 or more where x <= limit, and negative elsewhere."""
    return ops.sub(x.graph.scalar(limit), x)


def _blocked_below_zero(x: Value) -> Value:
    """0 for integers of 0 or more, `BLOCKED` for negative ones."""
    graph = x.graph
    return ops.mul(ops.minimum(ops.maximum(x, graph.scalar(-1.0)), graph.scalar(0.0)), graph.scalar(-BLOCKED))


def _float(x: Value) -> Value:
    """Convert distances to float32. They were subtracted as integers, not all of which above 2,048 fit in float16."""
    return ops.cast(x, DType.FLOAT32)
