"""Rounds the inputs and outputs of products as LiteRT does where the matrix has codes: by scales of their own, or by
those that a checkpoint states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEVELS = 255


def dynamic_int8(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row f32[..., columns] in 256 equal steps from its smallest number, or 0, to its largest, or 0.

    Zero stays exact. Source: XNNPACK's qd8, `xnn_f32_qd8_asymmetric_quantization_params`.

    >>> rows = np.array([[0.0, 1.0, 254.6, -0.2], [0.0, 0.0, 0.0, 0.0]], np.float32)
    >>> dynamic_int8(rows).astype(float).round(3).tolist()
    [[0.0, 0.999, 254.8, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    low = np.minimum(x.min(-1, keepdims=True), 0)
    high = np.maximum(x.max(-1, keepdims=True), 0)
    step = (high - low) / np.float32(_LEVELS)
    step = np.where(step > 0, step, np.float32(1))
    zero = np.rint(-low / step)
    codes: NDArray[np.float32] = np.clip(np.rint(x / step) + zero, 0, _LEVELS)
    codes -= zero
    codes *= step
    return codes


def static_int8(x: NDArray[np.float32], scale: float | None) -> NDArray[np.float32]:
    """x rounded to the nearest of the 256 multiples of `scale` that int8 can represent; x itself without a scale.

    Source: apply_srq in transformers' `integrations/gemma_quant.py`.

    >>> static_int8(np.float32([0.6, 1.25, -9.0, 900.0]), 0.5).tolist()
    [0.5, 1.0, -9.0, 63.5]
    """
    if scale is None:
        return x
    step = np.float32(scale)
    codes: NDArray[np.float32] = np.clip(np.rint(x / step), -128, 127)
    return codes * step
