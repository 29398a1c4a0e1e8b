"""Rotary embeddings, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import LAYERS, MODELS, assert_close, numbers, run, whole

from converters.gemma3n import reference
from converters.gemma3n.graphs.text.rotary_embedding import RotaryEmbedding
from toolkit.tflite.graph import DType


@pytest.mark.parametrize(("name", "index"), LAYERS)
@pytest.mark.parametrize("positions", [[0], [5, 6, 7], [31_999, 32_000]], ids=str)
def test_heads_turn_by_their_position_and_the_base_of_their_layer(
    tmp_path: Path, name: str, index: int, positions: list[int]
) -> None:
    model, step = MODELS[name], whole(MODELS[name], len(positions))
    config, own = model.config, model.config.layers[index]
    x = numbers(len(positions), 2, config.head_dim)
    rotary = RotaryEmbedding(step, step.graph.input("positions", (len(positions),), DType.INT32))
    step.graph.output("y", rotary.rotate(step.graph.input("x", (1, *x.shape)), own))
    found = run(tmp_path, step.graph, model, {"x": x[None], "positions": np.array(positions, np.int32)})["y"]
    theta = config.rope_theta_sliding if own.attention == "sliding" else config.rope_theta_full
    assert_close(found[0], reference.rotate(x, np.array(positions), theta))
