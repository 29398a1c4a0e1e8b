"""LAuReL, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from text_blocks import LAYERS, MODELS, assert_close, numbers, run, whole

from converters.gemma3n import reference
from converters.gemma3n.graphs.text.decoder_step import Layer
from converters.gemma3n.graphs.text.laurel import laurel


@pytest.mark.parametrize(("name", "index"), LAYERS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_laurel_adds_the_normed_result_of_its_bottleneck(tmp_path: Path, name: str, index: int, tokens: int) -> None:
    model, step = MODELS[name], whole(MODELS[name], tokens)
    x = step.graph.input("x", (1, tokens, model.config.hidden_size))
    step.graph.output("y", laurel(Layer(step, index), x))
    normed = numbers(tokens, model.config.hidden_size)
    found = run(tmp_path, step.graph, model, {"x": normed[None]})["y"]
    assert_close(found[0], reference.Layer(model, index).laurel(normed))
