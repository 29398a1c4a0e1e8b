"""What a size of a bundle is said to take, against what was converted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from paths import EXAMPLE

from converters.checkpoint import open_checkpoint
from converters.convert import ConvertRequest, convert
from converters.gemma3n.recipes import built_in, ple_recipe
from toolkit.bundle.footprint import footprints

TINY = EXAMPLE


def test_parameters_do_not_depend_on_how_they_are_stored_and_caches_are_float32(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(TINY)
    whole = ConvertRequest(
        checkpoint,
        tmp_path / "int4",
        built_in("int4"),
        ple_recipe("int4", checkpoint.config.ple_size),
        context=64,
        prefill_sizes=(4,),
    )
    manifest = convert(whole)
    other = convert(replace(whole, output=tmp_path / "f32", recipe=built_in("f32")))
    (blocks,), (floats,) = (
        footprints(tmp_path / name, made).values() for name, made in (("int4", manifest), ("f32", other))
    )
    assert blocks.parameters == floats.parameters
    assert floats.weight_bytes == 4 * (floats.parameters["text"] + floats.parameters["token_embedding"])
    # Four bits, and sixteen more for each 64 of them; norms and routers stay float32.
    assert floats.weight_bytes / 8 < blocks.weight_bytes < floats.weight_bytes / 6
    shapes = [shape for cache in manifest.text.kv_caches for shape in (cache.shape, cache.value_shape)]
    assert blocks.kv_cache_bytes == 4 * sum(map(math.prod, shapes))
