"""Per-layer embeddings, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import LAYERS, MODELS, assert_close, layer_of, numbers, product_of, rows_of, run, whole

from converters.gemma import reference
from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma.graphs.text.per_layer_embedding import PerLayerEmbeddings
from converters.gemma3n.graphs.text.per_layer_embedding import inject

IDS = np.array([7, 38, 0], np.int32)  # 38 lies behind the table


@pytest.mark.parametrize(("name", "index"), LAYERS)
def test_a_layer_adds_its_gated_embedding_to_every_stream_but_the_first(tmp_path: Path, name: str, index: int) -> None:
    model, step = MODELS[name], whole(MODELS[name], len(IDS))
    config, graph = model.config, step.graph
    embeddings, rows = reference.embed(model, IDS), rows_of(model, IDS)
    streams = numbers(len(IDS), config.altup_num_inputs, config.hidden_size)
    per_layer = PerLayerEmbeddings(
        step, graph.input("embeddings", (1, len(IDS), 1, config.hidden_size)), graph.input("rows", (1, *rows.shape))
    )
    injected, active = inject(per_layer, Layer(step, index), graph.input("streams", (1, *streams.shape)))
    graph.output("y", injected)
    graph.output("active", active)
    inputs = {"embeddings": embeddings[None, :, None], "rows": rows[None], "streams": streams[None]}
    outputs = run(tmp_path, graph, model, inputs)
    found, index_of_active = outputs["y"], config.altup_active_index
    np.testing.assert_array_equal(outputs["active"][0, :, 0], found[0, :, index_of_active])
    wanted = reference.per_layer_embeddings(model, IDS, embeddings, product_of(model))[:, index]
    assert_close(found[0], layer_of(model, index).inject(streams.copy(), wanted))
    np.testing.assert_array_equal(found[0, :, 0], streams[:, 0])
