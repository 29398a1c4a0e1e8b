"""Computes the embedding of a tower's own token with a fixed id, which graphs then use as a constant."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from toolkit.quant.source import TensorSource

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def token_row(source: TensorSource, tower: str, row: int, epsilon: float) -> F32:
    """Row `row` of the table of `embed_vision` or `embed_audio`, normed, projected and normed: f32[1, 1, text hidden].

    Every sum has a fixed order, so the bytes depend only on the checkpoint.
    """
    table = source.read(f"{tower}.embedding.weight", (row, row + 1))[0].astype(np.float64)
    weight = source.read(f"{tower}.hard_embedding_norm.weight").astype(np.float64)
    normed = _unit_rms(table, epsilon) * weight
    projection = source.read(f"{tower}.embedding_projection.weight")
    projected = np.zeros(len(projection))
    # Not as a matrix product: BLAS sums in a different order on each processor.
    for column, factor in zip(np.ascontiguousarray(projection.T, np.float64), normed, strict=True):
        projected += column * factor
    return _unit_rms(projected, epsilon).astype(np.float32)[None, None]


def _unit_rms(x: F64, epsilon: float) -> F64:
    result: F64 = x / math.sqrt(math.fsum(np.square(x).tolist()) / len(x) + epsilon)
    return result
