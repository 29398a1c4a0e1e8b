"""Rotary embeddings, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import LAYERS, MODELS, assert_close, numbers, run, whole

from converters.gemma import reference
from converters.gemma.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite.graph import DType

CONTEXT = 32_768


@pytest.mark.parametrize(("name", "index"), LAYERS)
@pytest.mark.parametrize("positions", [[0], [5, 6, 7], [31_999, 32_000]], ids=str)
def test_heads_turn_by_their_position_and_the_base_of_their_layer(
    tmp_path: Path, name: str, index: int, positions: list[int]
) -> None:
    model, step = MODELS[name], whole(MODELS[name], len(positions))
    config, own = model.config, model.config.layers[index]
    x = numbers(len(positions), 2, config.head_dim)
    rotary = RotaryEmbedding(step, step.graph.input("positions", (len(positions),), DType.INT32), CONTEXT)
    step.graph.output("y", rotary.rotate(step.graph.input("x", (1, *x.shape)), own))
    found = run(tmp_path, step.graph, model, {"x": x[None], "positions": np.array(positions, np.int32)})["y"]
    theta = config.rope_theta_sliding if own.attention == "sliding" else config.rope_theta_full
    # Not by the reference far into a context: its angles are rounded to float32.
    assert_close(found[0], turned(x, positions, theta))
    if max(positions) < 100:
        assert_close(found[0], reference.rotate(x, np.array(positions), config.heads(own.attention)))


def turned(x: np.ndarray, positions: list[int], theta: float) -> np.ndarray:
    """Pairs of elements as complex numbers, turned by angles in float64."""
    half = x.shape[-1] // 2
    frequencies = 1 / np.float32(theta) ** (np.arange(half, dtype=np.float32) * 2 / np.float32(2 * half))
    angles = np.array(positions)[:, None, None] * frequencies.astype(np.float64)
    rotated = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([rotated.real, rotated.imag], -1).astype(np.float32)
