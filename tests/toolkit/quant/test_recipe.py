"""Recipes: what a file may say, and that every weight and every rule is used."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import REPOSITORY

from toolkit.base.errors import RecipeError
from toolkit.base.weights import Weight
from toolkit.quant.recipe import BUILT_IN, FORMAT, Recipe, Rule, load_recipe, ple_recipe
from toolkit.quant.scheme import Scheme

F32, INT8, INT4 = Scheme("f32"), Scheme("int8"), Scheme("int4", 32)


def weights(*names: str, shape: tuple[int, ...] = (8, 64)) -> list[Weight]:
    return [Weight.whole(name, shape) for name in names]


def write(path: Path, *rules: object, **changes: object) -> Path:
    file = path / "mine.json"
    file.write_text(json.dumps({"format": FORMAT, "name": "mine", "rules": list(rules), **changes}))
    return file


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


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipes_give_every_weight_of_a_text_model_a_scheme(name: str) -> None:
    schemes = load_recipe(name).plan(text_weights())
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
    recipe = load_recipe(name)
    schemes = recipe.plan(text_weights())
    assert recipe.name == name
    side = F32 if name == "f32" else INT8
    for weight, scheme in schemes.items():
        is_core = ("self_attn" in weight or ".mlp." in weight) and "norm" not in weight
        is_small = "norm" in weight or ".altup." in weight
        assert scheme == (core if is_core else F32 if is_small else side), weight


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_model_without_shared_caches_needs_no_other_recipe(name: str) -> None:
    load_recipe(name).plan([w for w in text_weights() if "q_norms" not in w.name])


def test_the_first_rule_that_matches_decides() -> None:
    recipe = Recipe("r", (Rule("layers.0.*", F32), Rule("layers.*", INT8), Rule("*", INT4)))
    schemes = recipe.plan(weights("layers.1.w", "layers.0.w", "w"))
    assert schemes == {"layers.1.w": INT8, "layers.0.w": F32, "w": INT4}


@pytest.mark.parametrize(
    ("match", "name", "matches"),
    [
        ("*", "layers.0.w", True),
        ("layers.*.w", "layers.0.mlp.w", True),
        ("layers*w", "layersw", True),
        ("layers.*.w", "layers.w", False),
        ("layers.0", "layers.0.w", False),
        ("*.0.w", "layers.0.wx", False),
        ("layers.0.w", "layersX0Xw", False),
    ],
)
def test_a_star_is_any_run_of_characters_and_the_rest_is_literal(match: str, name: str, matches: bool) -> None:
    schemes = Recipe("r", (Rule(match, INT8, optional=True), Rule("*", F32, optional=True))).plan(weights(name))
    assert (schemes[name] == INT8) == matches


@given(st.from_regex(r"[a-z_.]{0,6}(\*[a-z_.]{0,3}){0,3}", fullmatch=True), st.text("abc._", max_size=8))
def test_matching_is_python_s_fnmatch_without_its_other_wildcards(match: str, name: str) -> None:
    schemes = Recipe("r", (Rule(match, INT8, optional=True), Rule("*", F32, optional=True))).plan(weights(name))
    assert (schemes[name] == INT8) == fnmatch.fnmatchcase(name, match)


def test_a_weight_without_a_rule_is_an_error_that_shows_one() -> None:
    with pytest.raises(RecipeError, match=r'recipe r: found no rule for weight b\.w.*"match": "b\.w"'):
        Recipe("r", (Rule("a.*", INT8),)).plan(weights("a.w", "b.w"))


def test_a_rule_without_effect_is_an_error_unless_optional() -> None:
    shadowed = Rule("a.*", INT8)
    with pytest.raises(RecipeError, match=r"recipe r, rule a\.\*: found a rule that gives no weight its scheme"):
        Recipe("r", (Rule("*", F32), shadowed)).plan(weights("a.w"))
    with pytest.raises(RecipeError, match=r"rule c\.\*"):
        Recipe("r", (Rule("*", F32), Rule("c.*", F32))).plan(weights("a.w"))
    Recipe("r", (Rule("*", F32), Rule("c.*", F32, optional=True))).plan(weights("a.w"))


def test_a_scheme_that_does_not_fit_names_the_weight_and_the_rule() -> None:
    recipe = Recipe("r", (Rule("*", Scheme("int4", 128)),))
    with pytest.raises(
        RecipeError, match=r"weight a\.w \(recipe r, rule \*\) as int4 in blocks of 128: found 64 columns"
    ):
        recipe.plan(weights("a.w"))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_per_layer_embeddings_have_a_scale_for_each_token_and_layer(dtype: str) -> None:
    table = Weight.whole("embed_tokens_per_layer.weight", (10, 3 * 64))
    recipe = ple_recipe("int8" if dtype == "int8" else "int4", 64)
    assert recipe.name == dtype
    assert recipe.plan([table])[table.name].block_size == 64
    assert ple_recipe("f32", 64).plan([table])[table.name] == F32


def test_a_file_is_read_in_full(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"match": "a.*", "dtype": "int4", "block_size": 64, "search": "absmax", "optional": True},
        {"match": "*", "dtype": "int8", "block_size": None},
    )
    assert (
        load_recipe(file)
        == load_recipe(str(file))
        == Recipe("mine", (Rule("a.*", Scheme("int4", 64, "absmax"), optional=True), Rule("*", INT8)))
    )


def test_the_example_of_the_format_s_document_is_a_recipe(tmp_path: Path) -> None:
    document = REPOSITORY / "docs" / "formats" / "recipe.md"
    file = tmp_path / "example.json"
    file.write_text(document.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0])
    load_recipe(file).plan(text_weights())


RULE = {"match": "*", "dtype": "int4"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "no rules"),
        ([1], "rule 1: found a number, wanted an object"),
        ([{"dtype": "f32"}], "rule 1: found no 'match'"),
        ([{"match": "a"}], r"rule 1 \(a\): found no 'dtype'"),
        ([{"match": 3, "dtype": "f32"}], "rule 1 match: found 3, wanted a string"),
        ([{"match": "", "dtype": "f32"}], "rule 1 match"),
        ([{"match": "a[0]", "dtype": "f32"}], r"rule 1 match: found a\[0\]"),
        ([{"match": "a", "dtype": "int2"}], r"rule 1 \(a\) dtype: found int2, wanted f32 or f16 or int8 or int4"),
        ([{"match": "a", "dtype": ["f32"]}], r"rule 1 \(a\) dtype"),
        ([RULE | {"block_size": 48}], r"rule 1 \(\*\) block_size: found 48, wanted 32 or 64 or 128 or 256"),
        ([RULE | {"block_size": 0}], r"rule 1 \(\*\) block_size"),
        ([RULE | {"block_size": 32.0}], r"rule 1 \(\*\) block_size"),
        ([RULE | {"block_size": True}], r"rule 1 \(\*\) block_size"),
        ([{"match": "*", "dtype": "int8", "block_size": 32}], r"block_size: found 32, wanted none: LiteRT"),
        ([{"match": "*", "dtype": "f32", "block_size": 32}], r"block_size: found 32, wanted none: LiteRT"),
        ([RULE | {"search": "best"}], r"rule 1 \(\*\) search: found best, wanted absmax or mse"),
        ([RULE | {"optional": 1}], r"rule 1 \(\*\) optional: found 1, wanted true or false"),
        ([RULE | {"blocksize": 32}], r"rule 1 \(\*\): found unknown keys blocksize"),
        ([{"match": "a", "dtype": "f32"}, {"match": "a", "dtype": "int8"}], "rule 2: found match a again"),
    ],
)
def test_a_bad_rule_is_an_error_that_names_file_and_rule(tmp_path: Path, rules: list[object], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"recipe .*mine\.json.*{message}"):
        load_recipe(write(tmp_path, *rules))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "gemma-edge-recipe/2"}, "format: found gemma-edge-recipe/2"),
        ({"format": None}, "format"),
        ({"name": "a b"}, "name: found a b"),
        ({"name": ""}, "name"),
        ({"rules": {}}, "rules: found {}, wanted an array"),
        ({"comment": "x"}, "unknown keys comment"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"recipe .*mine\.json.*{message}"):
        load_recipe(write(tmp_path, RULE, **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1, "format": 1}', "null"])
def test_text_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"x\.json"):
        load_recipe(file)


def test_an_unknown_name_lists_the_built_in_ones() -> None:
    with pytest.raises(RecipeError, match=r"recipe: found int5, wanted f32, int8, int4, .* or the path"):
        load_recipe("int5")
    with pytest.raises(RecipeError):
        load_recipe("")
