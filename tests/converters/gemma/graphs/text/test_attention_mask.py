"""What each token may attend to, run by LiteRT, against the rule written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_blocks import BLOCKED, MODELS, cache_inputs, causal_mask, run, whole

from converters.gemma.config import Attention
from converters.gemma.graphs.text.attention_mask import AttentionMasks
from converters.gemma.graphs.text.kv_cache import CacheRows, StepCaches
from toolkit.tflite import ops
from toolkit.tflite.graph import DType

MODEL = MODELS["two key heads"]
WINDOW = MODEL.config.sliding_window
LOW = -2e4  # far below any score, so that a softmax gives it no weight


def masks_of(
    directory: Path, attention: Attention, rows: CacheRows, positions: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """f32[tokens, rows], as a layer of this type adds it to its scores."""
    step = whole(MODEL, len(positions))
    graph = step.graph
    where = graph.input("positions", (len(positions),), DType.INT32)
    caches = StepCaches(step, rows, where)
    masks = AttentionMasks(step, caches, where, graph.input("mask", mask.shape))
    layer = next(layer for layer in MODEL.config.layers if layer.attention == attention)
    graph.output("y", ops.add(masks.of(layer), graph.scalar(0.0)))  # an input cannot be an output itself
    caches.output()
    inputs = {"positions": positions, "mask": mask, **cache_inputs(graph)}
    found: np.ndarray = run(directory, graph, MODEL, inputs)["y"][0, 0]
    return found


def assert_sees(found: np.ndarray, seen: np.ndarray) -> None:
    assert np.isfinite(found).all(), "a softmax over a row of -inf would give NaN"
    assert (found[seen] == 0).all()
    assert (found[~seen] < LOW).all()


@pytest.mark.parametrize("start", [0, 3, 9])
def test_a_full_layer_sees_what_the_caller_says(tmp_path: Path, start: int) -> None:
    positions = np.arange(start, start + 4, dtype=np.int32)
    mask = causal_mask(positions, 16)
    found = masks_of(tmp_path, "full", CacheRows(16, 9, 16), positions, mask)
    np.testing.assert_array_equal(found, mask[0, 0])


@pytest.mark.parametrize("start", [0, 3, 9])
def test_a_sliding_layer_sees_its_window_of_what_the_caller_says(tmp_path: Path, start: int) -> None:
    positions = np.arange(start, start + 4, dtype=np.int32)
    mask = causal_mask(positions, 14)
    mask[..., 2] = BLOCKED  # one that the caller blocks for a reason of its own
    found = masks_of(tmp_path, "sliding", CacheRows(16, 16, 14), positions, mask)
    distance = positions[:, None] - np.arange(14)
    assert_sees(found, (mask[0, 0] == 0) & (distance >= 0) & (distance < WINDOW))


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("start", [0, 2, 4, 8, 9, 17, 35])
def test_in_a_ring_each_row_counts_as_the_position_that_it_holds(tmp_path: Path, tokens: int, start: int) -> None:
    positions, rows = np.arange(start, start + tokens, dtype=np.int32), WINDOW + 4
    found = masks_of(tmp_path, "sliding", CacheRows(40, rows, 40), positions, causal_mask(positions, 40))
    held = np.full(rows, -1)
    for position in range(start + tokens):
        held[position % rows] = position
    distance = positions[:, None] - held
    assert_sees(found, (held >= 0) & (distance >= 0) & (distance < WINDOW))


def test_positions_of_padding_do_not_change_what_a_ring_shows(tmp_path: Path) -> None:
    """A caller may give padding any position; the first position is right, and the rest follow it."""
    rows, true = CacheRows(40, WINDOW + 4, 40), np.array([6, 7, 8, 9], np.int32)
    mask = causal_mask(true, 40)
    found = masks_of(tmp_path, "sliding", rows, np.array([6, 7, 0, 0], np.int32), mask)
    np.testing.assert_array_equal(found, masks_of(tmp_path, "sliding", rows, true, mask))


def test_a_token_that_sees_nothing_has_a_finite_mask_however_low_the_caller_blocks(tmp_path: Path) -> None:
    """Padding: blocked by the caller and outside every window."""
    positions = np.array([30_000], np.int32)
    mask = np.full((1, 1, 1, 14), np.finfo(np.float32).min)
    found = masks_of(tmp_path, "sliding", CacheRows(16, 16, 14), positions, mask)
    assert_sees(found, np.zeros((1, 14), bool))
