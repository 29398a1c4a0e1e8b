"""Recipes for Gemma 3n: every weight has a scheme, and they differ in what they should."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from paths import REPOSITORY

from benchmarks.synthetic import PRESETS
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma.recipes import ple_recipe
from converters.gemma3n.graphs.text.decoder import decode_graph
from converters.gemma3n.recipes import RECIPES
from converters.gemma3n.sizes.elastic import combine
from converters.gemma3n.sizes.matformer import whole_slice
from toolkit.base.weights import Weight
from toolkit.bundle.footprint import step_weights
from toolkit.quant.recipe import Recipe
from toolkit.quant.scheme import Scheme
from toolkit.tflite.graph import Signature
from toolkit.tflite.schema_unpack import unpack
from toolkit.tflite.writer import layout_files

F32, INT8 = Scheme("f32"), Scheme("int8")
TEXT = RECIPES["text"]


def weights(*names: str, shape: tuple[int, ...] = (8, 64)) -> list[Weight]:
    return [Weight.whole(name, shape) for name in names]


def text_weights(layers: int = 2) -> list[Weight]:
    """The names of an emitted text model, with shapes in E2B's proportions."""
    vectors = ["norm.weight", "per_layer_projection_norm.weight"]
    matrices = [
        "embed_tokens.weight",
        "lm_head.weight",
        "per_layer_model_projection.weight",
        "altup_projections.weight",
    ]
    matrices += [f"altup_unembed_projections.{j}.weight" for j in range(3)]
    for i in range(layers):
        norms = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"
        norms += " post_per_layer_input_norm laurel.post_laurel_norm altup.router_norm"
        vectors += [f"layers.{i}.{norm}.weight" for norm in norms.split()]
        vectors += [f"layers.{i}.altup.correct_output_scale"]
        vectors += [f"layers.{i}.self_attn.{'qk_norm' if i == 0 else 'q_norms'}.weight"]
        projections = (
            f"self_attn.{'qkv' if i == 0 else 'q'}_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj"
        )
        projections += (
            " mlp.gate_proj.1 laurel.linear_left laurel.linear_right per_layer_input_gate per_layer_projection"
        )
        projections += " altup.modality_router altup.prediction_coefs altup.correction_coefs"
        matrices += [f"layers.{i}.{projection}.weight" for projection in projections.split()]
    return weights(*vectors, shape=(256,)) + weights(*matrices, shape=(16, 256))


@pytest.mark.parametrize("name", TEXT.names)
def test_built_in_recipes_give_every_weight_of_a_text_model_a_scheme(name: str) -> None:
    schemes = TEXT.load(name).plan(text_weights())
    assert list(schemes) == [weight.name for weight in text_weights()]


@pytest.mark.parametrize(
    ("name", "core"),
    [
        ("f32", F32),
        ("int8", INT8),
        ("int4", Scheme("int4", 64)),
        ("int4-block32", Scheme("int4", 32)),
        ("int4-block128", Scheme("int4", 128)),
        ("int4-channel", Scheme("int4")),
    ],
)
def test_built_in_recipes_differ_in_attention_and_feed_forward_only(name: str, core: Scheme) -> None:
    recipe = TEXT.load(name)
    schemes = recipe.plan(text_weights())
    assert recipe.name == name
    side = F32 if name == "f32" else INT8
    for weight, scheme in schemes.items():
        is_core = ("self_attn" in weight or ".mlp." in weight) and "norm" not in weight
        is_small = "norm" in weight or ".altup." in weight
        assert scheme == (core if is_core else F32 if is_small else side), weight


def test_the_small_recipe_has_products_in_int4_the_first_up_projections_in_int2_and_embeddings_in_int8() -> None:
    for weight, scheme in TEXT.load("int4-small").plan(text_weights(layers=6)).items():
        is_float = "norm" in weight or ".altup." in weight
        is_coarse = re.fullmatch(r"layers\.[0-3]\.mlp\.up_proj\.weight", weight) is not None
        wanted = (
            F32 if is_float else INT8 if weight == "embed_tokens.weight" else Scheme("int2" if is_coarse else "int4")
        )
        assert scheme == wanted, weight


def test_the_small_recipe_reads_at_most_1_2_gb_a_token_at_e2b() -> None:
    config = PRESETS["e2b"]
    elastic = combine(config, (whole_slice(config, "E2B"),))
    rows = CacheRows.fitting(elastic.config, 4096, 1024)
    decode = [Signature("decode", decode_graph(elastic.sizes[0], elastic.config, rows))]
    bytes_read = {}
    for name in ("int4", "int4-small"):
        rules = TEXT.load(name).rules
        recipe = Recipe(name, tuple(replace(rule, optional=True) for rule in rules))  # the embedder is not here
        layout = layout_files({"decoder": decode}, recipe)["decoder"]
        bytes_read[name] = sum(step_weights(unpack(memoryview(layout.header)), "decode").values())
    assert bytes_read["int4"] > 1.57e9
    assert bytes_read["int4-small"] <= 1.2e9


@pytest.mark.parametrize("name", TEXT.names)
def test_a_model_without_shared_caches_needs_no_other_recipe(name: str) -> None:
    TEXT.load(name).plan([w for w in text_weights() if "q_norms" not in w.name])


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_per_layer_embeddings_have_a_scale_for_each_token_and_layer(dtype: str) -> None:
    table = Weight.whole("embed_tokens_per_layer.weight", (10, 3 * 64))
    recipe = ple_recipe("int8" if dtype == "int8" else "int4", 64)
    assert recipe.name == dtype
    assert recipe.plan([table])[table.name].block_size == 64
    assert ple_recipe("f32", 64).plan([table])[table.name] == F32


def test_the_example_of_the_format_s_document_is_a_recipe(tmp_path: Path) -> None:
    document = REPOSITORY / "docs" / "formats" / "recipe.md"
    file = tmp_path / "example.json"
    file.write_text(document.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0])
    TEXT.load(file).plan(text_weights())
