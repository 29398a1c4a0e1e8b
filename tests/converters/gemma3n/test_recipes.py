"""Recipes for Gemma 3n: every weight has a scheme, and they differ in what they should."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from paths import EXAMPLE, REPOSITORY

from benchmarks.synthetic import PRESETS
from converters.convert import convert
from converters.families import open_checkpoint
from converters.gemma.graphs.text.kv_cache import CacheRows
from converters.gemma.recipes import ple_recipe
from converters.gemma3n.graphs.text.decoder import decode_graph
from converters.gemma3n.recipes import RECIPES
from converters.gemma3n.sizes.elastic import combine
from converters.gemma3n.sizes.matformer import whole_slice
from converters.request import ConvertRequest
from toolkit.base.errors import RecipeError
from toolkit.base.weights import Weight
from toolkit.bundle.footprint import step_weights
from toolkit.quant.recipe import FORMAT, Recipe
from toolkit.quant.scheme import Scheme
from toolkit.tflite.graph import Signature
from toolkit.tflite.schema_unpack import unpack
from toolkit.tflite.writer import layout_files

F32, INT8 = Scheme("f32"), Scheme("int8")
TEXT = RECIPES["text"]
KINDS = {"sparse": (0,), "kv-donors": (1,)}


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
    schemes = TEXT.load(name).for_layers(KINDS).plan(text_weights())
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


_FINE = (
    r"embed_tokens\..*|altup_unembed.*|.*laurel\.linear_left.*|.*per_layer_input_gate.*"
    r"|layers\.[34]\.self_attn\.(qkv|q|o)_proj\.weight"
)


def test_the_small_recipe_spends_bits_where_a_model_feels_them() -> None:
    recipe = TEXT.load("int4-small").for_layers({"sparse": (0, 1), "kv-donors": (3, 4)})
    for weight, scheme in recipe.plan(text_weights(layers=6)).items():
        is_float = "norm" in weight or ".altup." in weight
        is_coarse = re.fullmatch(r"layers\.[01]\.mlp\.up_proj\.weight", weight) is not None
        fine = INT8 if re.fullmatch(_FINE, weight) else Scheme("int2" if is_coarse else "int4")
        assert scheme == (F32 if is_float else fine), weight


def test_rules_can_name_the_sparse_layers_and_those_whose_caches_others_read() -> None:
    assert PRESETS["e2b"].layer_kinds == {"sparse": tuple(range(10)), "kv-donors": (18, 19)}
    with open_checkpoint(EXAMPLE) as checkpoint:
        sizes = [checkpoint.find_slice(name) for name in ("small", "large")]
        assert checkpoint.layer_kinds(sizes) == {"sparse": (0, 1, 2), "kv-donors": (4, 5)}


def test_a_bundle_says_which_layers_the_rules_were_for(tmp_path: Path) -> None:
    request = ConvertRequest(EXAMPLE, tmp_path / "b", {"text": "int4-small"}, groups=("text",), context=64)
    record = convert(request, gate=None).manifest.quant["text"]
    dtypes = {rule.match: rule.dtype for rule in record.rules}
    assert [match for match, dtype in dtypes.items() if dtype == "int2"] == [
        f"layers.{layer}.mlp.up_proj.*weight" for layer in (0, 1, 2)
    ]
    assert dtypes["layers.4.self_attn.*_proj.weight"] == dtypes["layers.5.self_attn.*_proj.weight"] == "int8"


def test_recipes_for_towers_have_no_rules_for_layers(tmp_path: Path) -> None:
    rules = [{"match": "*.weight", "dtype": "int8", "layers": "sparse"}]
    path = tmp_path / "ears.json"
    path.write_text(json.dumps({"format": FORMAT, "name": "ears", "base": "audio-int8", "rules": rules}))
    request = ConvertRequest(EXAMPLE, tmp_path / "b", {"audio": path}, context=64)
    with pytest.raises(RecipeError, match=r"recipe ears, rule \*\.weight: found layers sparse, wanted none"):
        convert(request, gate=None)


def test_the_small_recipe_reads_at_most_1_2_gb_a_token_at_e2b() -> None:
    config = PRESETS["e2b"]
    elastic = combine(config, (whole_slice(config, "E2B"),))
    rows = CacheRows.fitting(elastic.config, 4096, 1024)
    decode = [Signature("decode", decode_graph(elastic.sizes[0], elastic.config, rows))]
    bytes_read = {}
    for name in ("int4", "int4-small"):
        rules = TEXT.load(name).for_layers(config.layer_kinds).rules
        recipe = Recipe(name, tuple(replace(rule, optional=True) for rule in rules))  # the embedder is not here
        layout = layout_files({"decoder": decode}, recipe)["decoder"]
        bytes_read[name] = sum(step_weights(unpack(memoryview(layout.header)), "decode").values())
    assert bytes_read["int4"] > 1.57e9
    assert bytes_read["int4-small"] <= 1.2e9


@pytest.mark.parametrize("name", TEXT.names)
def test_a_model_without_shared_caches_needs_no_other_recipe(name: str) -> None:
    TEXT.load(name).for_layers(KINDS).plan([w for w in text_weights() if "q_norms" not in w.name])


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
