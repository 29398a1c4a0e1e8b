"""The token embedding, run by LiteRT, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import MODELS, RandomModel, assert_close, run

from converters.gemma import reference
from converters.gemma.graphs.text.embedder import embedder_graph


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_token_becomes_its_row_times_the_root_of_the_hidden_size(tmp_path: Path, model: RandomModel) -> None:
    ids = np.array([[5, 0, model.config.vocab_size - 1, 5]], np.int32)
    found = run(tmp_path, embedder_graph(model.config, 4), model, {"ids": ids})["embeddings"]
    assert_close(found[0], reference.embed(model, ids[0]))
