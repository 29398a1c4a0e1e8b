"""LAuReL, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import LAYERS, MODELS, assert_close, layer_of, numbers, run, whole

from converters.gemma import reference
from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma3n.graphs.text.laurel import joined, low_rank


@pytest.mark.parametrize(("name", "index"), LAYERS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_laurel_joins_attention_and_the_normed_result_of_its_bottleneck(
    tmp_path: Path, name: str, index: int, tokens: int
) -> None:
    model, step = MODELS[name], whole(MODELS[name], tokens)
    layer, names = Layer(step, index), ("active", "normed", "attended")
    active, normed, attended = (step.graph.input(n, (1, tokens, 1, model.config.hidden_size)) for n in names)
    step.graph.output("y", joined(layer, active, normed, attended, low_rank(layer, normed)))
    given = {n: numbers(tokens, model.config.hidden_size, seed=seed) for seed, n in enumerate(names)}
    found = run(tmp_path, step.graph, model, {n: x[None, :, None] for n, x in given.items()})["y"]
    weight = model.read(f"layers.{index}.post_attention_layernorm.weight")
    residual = given["active"] + reference.rms_norm(given["attended"], model.config.rms_norm_eps, weight)
    wanted = (residual + layer_of(model, index).laurel(given["normed"])) * np.float32(0.5**0.5)
    assert_close(found[0, :, 0], wanted)
