"""What a size of a bundle is said to take, against what was converted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.bundle.footprint import footprints

TINY = EXAMPLE


@pytest.mark.full
def test_parameters_do_not_depend_on_how_they_are_stored_and_caches_are_float32(tmp_path: Path) -> None:
    whole = ConvertRequest(TINY, tmp_path / "int4", {"text": "int4"}, groups=("text",), context=64, prefill_sizes=(4,))
    manifest = convert(whole, gate=None).manifest
    other = convert(replace(whole, output=tmp_path / "f32", recipes={"text": "f32"}), gate=None).manifest
    (blocks,), (floats,) = (
        footprints(tmp_path / name, made).values() for name, made in (("int4", manifest), ("f32", other))
    )
    assert blocks.parameters == floats.parameters
    assert floats.parameters["text"] == manifest.groups["text"].parameters
    # Graphs repeat the values of norms, which count once.
    values = floats.parameters["text"] + floats.parameters["token_embedding"]
    assert 4 * values < floats.weight_bytes < 4 * values * 1.002
    # Four bits, and sixteen more for each 64 of them; norms and routers stay float32.
    assert floats.weight_bytes / 8 < blocks.weight_bytes < floats.weight_bytes / 6
    config = json.loads((TINY / "config.json").read_text())["text_config"]
    assert floats.bytes_per_token["lm_head"] == 4 * config["vocab_size"] * config["hidden_size"]
    mlp = 3 * config["hidden_size"] * sum(config["intermediate_size"])
    assert floats.bytes_per_token["mlp"] == 4 * mlp and blocks.bytes_per_token["mlp"] == mlp // 2 + 2 * mlp // 64
    shapes = [shape for cache in manifest.text.kv_caches for shape in (cache.shape, cache.value_shape)]
    assert blocks.kv_cache_bytes == 4 * sum(map(math.prod, shapes))
