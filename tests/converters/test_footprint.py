"""What a size of a bundle is said to take, against what was converted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from paths import EXAMPLE

from converters.calibration.rounding import decoder_files
from converters.convert import convert
from converters.families import open_checkpoint
from converters.family import Checkpoint
from converters.plan import PlanRequest
from converters.request import ConvertRequest
from converters.slices import Budget
from toolkit.bundle.footprint import footprints, step_weights
from toolkit.bundle.manifest import TEXT_DECODER
from toolkit.bundle.manifest_json import read_manifest
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme
from toolkit.tflite import schema_unpack

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


def read_by_a_step(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """What the decode step of a bundle with this recipe reads, by its header, from which footprints are computed."""
    request = PlanRequest(
        slices=(checkpoint.default_slice,),
        recipes=checkpoint.recipes({"text": recipe}, ()),
        towers=(),
        context=64,
        prefill_sizes=(4,),
        shard_bytes=1 << 20,
        audio_seconds=(),
    )
    plan = checkpoint.plan(request)
    header = decoder_files(plan).layouts[TEXT_DECODER].header
    (size,) = plan.sizes.values()
    return sum(step_weights(schema_unpack.unpack(memoryview(header)), size.decode).values())


@pytest.mark.parametrize("recipe", ["int4-small", "int4-block32"])
def test_a_budget_takes_exactly_what_a_step_reads(random_checkpoint: Path, recipe: str) -> None:
    with open_checkpoint(random_checkpoint) as checkpoint:
        text = checkpoint.recipes({"text": recipe}, ())["text"].for_layers(
            checkpoint.layer_kinds([checkpoint.default_slice])
        )
        if recipe == "int4-block32":
            text = text.changed("own", [Rule("layers.*.mlp.down_proj.*weight", Scheme("int8"))])  # of 24 columns
        read = read_by_a_step(checkpoint, text)
        assert checkpoint.choose_slice(Budget(read, "bytes"), text).name == "full"
        assert checkpoint.choose_slice(Budget(read - 1, "bytes"), text).name == "small"


def test_a_footprint_is_what_the_header_of_the_decoder_says(random_bundle: Path, random_checkpoint: Path) -> None:
    found = footprints(random_bundle, read_manifest(random_bundle))["full"].weight_bytes
    with open_checkpoint(random_checkpoint) as checkpoint:
        floats = checkpoint.recipes({"text": "f32"}, ())["text"]
        assert found == read_by_a_step(checkpoint, floats)
        assert checkpoint.choose_slice(Budget(found - 1, "bytes"), floats).name == "small"
