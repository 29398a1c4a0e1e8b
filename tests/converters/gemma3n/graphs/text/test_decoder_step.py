"""Whole steps of the decoder, prefills and single tokens, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import MODELS, Compiled, RandomModel, assert_close, cache_inputs, causal_mask, rows_of, whole

from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma.reference import embed
from converters.gemma3n import reference
from converters.gemma3n.graphs.text.decoder import decode_graph, prefill_graph

IDS = np.array([2, 5, 40, 17, 0, 36, 38, 9, 9, 21, 3, 30, 11], np.int32)
PREFILL = 4


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("prefills", [0, 1, 2])
@pytest.mark.parametrize("rings", [False, True], ids=["whole caches", "rings"])
def test_tokens_in_steps_get_the_logits_that_the_whole_sequence_gives_them(
    tmp_path: Path, model: RandomModel, prefills: int, *, rings: bool
) -> None:
    context = 16
    rows = CacheRows.fitting(model.config, context, PREFILL) if rings else CacheRows(context, context, context)
    size = whole(model, 1).size
    graphs = {
        "decode": decode_graph(size, model.config, rows),
        "prefill": prefill_graph(size, model.config, rows, PREFILL),
    }
    steps, caches = Compiled(tmp_path, graphs, model), cache_inputs(graphs["decode"])
    for start in range(0, prefills * PREFILL, PREFILL):
        caches = steps("prefill", {**step_inputs(model, start, PREFILL, rows), **caches})
    found = []
    for position in range(prefills * PREFILL, len(IDS)):
        caches = steps("decode", {**step_inputs(model, position, 1, rows), **caches})
        found.append(caches.pop("logits")[0, 0])
    wanted = reference.forward(model, [IDS])[0][prefills * PREFILL :]
    assert_close(np.array(found), wanted, atol=2e-4)  # rounding grows from layer to layer


def step_inputs(model: RandomModel, start: int, tokens: int, rows: CacheRows) -> dict[str, np.ndarray]:
    """All inputs but the caches."""
    positions = np.arange(start, start + tokens, dtype=np.int32)
    return {
        "embeddings": embed(model, IDS[positions])[None],
        "per_layer_embeddings": rows_of(model, IDS[positions])[None],
        "input_pos": positions,
        "mask": causal_mask(positions, rows.seen),
    }
