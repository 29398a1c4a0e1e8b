"""Recipes: what a file may say, and that every weight and every rule is used."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.base.errors import RecipeError
from toolkit.base.weights import Weight
from toolkit.quant.recipe import FORMAT, Recipe, RecipeSet, Rule
from toolkit.quant.scheme import Scheme

F32, INT8, INT4 = Scheme("f32"), Scheme("int8"), Scheme("int4", 32)


def weights(*names: str, shape: tuple[int, ...] = (8, 64)) -> list[Weight]:
    return [Weight.whole(name, shape) for name in names]


def write(path: Path, *rules: object, **changes: object) -> Path:
    file = path / "mine.json"
    file.write_text(json.dumps({"format": FORMAT, "name": "mine", "rules": list(rules), **changes}))
    return file


OWN = RecipeSet("converters.gemma3n.recipes", {"f32": "f32", "int8": "int8", "ears": "audio-int8"})


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


def test_a_pattern_of_many_stars_takes_no_longer_than_another() -> None:
    name = "layers.0.self_attn.qkv_proj.weight" * 7
    assert not Rule("*" * 255 + "Z", INT8).matches(name)
    assert not Rule("*e" * 127 + "Z", INT8).matches(name)
    assert Rule("*a*" * 7, INT8).matches(name) and not Rule("*a*" * 200, INT8).matches(name)
    assert not Rule("ab*ba", INT8).matches("aba")


def test_a_weight_without_a_rule_is_an_error_that_shows_one() -> None:
    with pytest.raises(RecipeError, match=r'recipe r: no rule for weight b\.w.*"match": "b\.w"'):
        Recipe("r", (Rule("a.*", INT8),)).plan(weights("a.w", "b.w"))


def test_a_rule_without_effect_is_an_error_unless_optional() -> None:
    shadowed = Rule("a.*", INT8)
    with pytest.raises(RecipeError, match=r"recipe r, rule a\.\*: the rule gives no weight its scheme"):
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


def test_a_file_is_read_in_full(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"match": "a.*", "dtype": "int4", "block_size": 64, "search": "absmax", "optional": True},
        {"match": "*", "dtype": "int8", "block_size": None},
    )
    assert (
        OWN.load(file)
        == OWN.load(str(file))
        == Recipe("mine", (Rule("a.*", Scheme("int4", 64, "absmax"), optional=True), Rule("*", INT8)))
    )


RULE = {"match": "*", "dtype": "int4"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "no rules"),
        ([1], "rule 1: found a number, wanted an object"),
        ([{"dtype": "f32"}], "rule 1 match: missing"),
        ([{"match": "a"}], r"rule 1 \(a\) dtype: missing"),
        ([{"match": 3, "dtype": "f32"}], "rule 1 match: found 3, wanted a string"),
        ([{"match": "", "dtype": "f32"}], "rule 1 match"),
        ([{"match": "a[0]", "dtype": "f32"}], r"rule 1 match: found a\[0\]"),
        ([{"match": "*" * 257, "dtype": "f32"}], r"rule 1 match: .* wanted 1 to 256 letters, digits"),
        ([{"match": "a", "dtype": "int3"}], r"rule 1 \(a\) dtype: found int3, wanted f32 or f16 or .*int2"),
        ([{"match": "a", "dtype": ["f32"]}], r"rule 1 \(a\) dtype"),
        ([RULE | {"block_size": 48}], r"rule 1 \(\*\) block_size: found 48, wanted 32 or 64 or 128 or 256"),
        ([RULE | {"block_size": 0}], r"rule 1 \(\*\) block_size"),
        ([RULE | {"block_size": 32.0}], r"rule 1 \(\*\) block_size"),
        ([RULE | {"block_size": True}], r"rule 1 \(\*\) block_size"),
        ([{"match": "*", "dtype": "int8", "block_size": 32}], r"block_size: found 32, wanted none: LiteRT"),
        ([{"match": "*", "dtype": "f32", "block_size": 32}], r"block_size: found 32, wanted none: LiteRT"),
        ([RULE | {"search": "best"}], r"rule 1 \(\*\) search: found best, wanted absmax or mse"),
        ([RULE | {"optional": 1}], r"rule 1 \(\*\) optional: found 1, wanted true or false"),
        ([RULE | {"blocksize": 32}], r"rule 1 \(\*\): unknown key blocksize"),
        ([{"match": "a", "dtype": "f32"}, {"match": "a", "dtype": "int8"}], "rule 2: the match a a second time"),
        ([RULE | {"layers": "x"}] * 2, r"rule 2: the match \* a second time"),
        ([RULE | {"layers": 0.5}], r"rule 1 \(\*\) layers: found 0.5, wanted a string"),
        ([{"match": "a", "dtype": "f32", "layers": "x"}], r"rule 1 \(a\) layers: found x, wanted a \* in match"),
    ],
)
def test_a_bad_rule_is_an_error_that_names_file_and_rule(tmp_path: Path, rules: list[object], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"mine\.json.*{message}"):
        OWN.load(write(tmp_path, *rules))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "gemma-edge-recipe/2"}, "format: found gemma-edge-recipe/2"),
        ({"format": None}, "format"),
        ({"name": "a b"}, "name: found a b"),
        ({"name": ""}, "name"),
        ({"rules": {}}, "rules: found an object, wanted an array"),
        ({"comment": "x"}, "unknown key comment"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"mine\.json.*{message}"):
        OWN.load(write(tmp_path, RULE, **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1, "format": 1}', "null"])
def test_text_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"x\.json"):
        OWN.load(file)


def test_an_unknown_name_lists_the_built_in_ones() -> None:
    with pytest.raises(RecipeError, match=r"recipe: found int5, wanted f32, int8, ears or the path"):
        OWN.load("int5")
    with pytest.raises(RecipeError):
        OWN.load("")


def test_a_recipe_has_the_rules_of_its_base_in_their_order_but_for_what_differs(tmp_path: Path) -> None:
    changed = {"match": "layers.*.self_attn.*_proj.weight", "dtype": "f32"}
    recipe, base = OWN.load(write(tmp_path, changed, base="int8")), OWN.load("int8")
    assert [rule.match for rule in recipe.rules] == [rule.match for rule in base.rules]
    assert [rule for rule in recipe.rules if rule not in base.rules] == [Rule(changed["match"], F32)]


def test_rules_that_the_base_lacks_go_before_its_own_which_may_then_be_without_effect(tmp_path: Path) -> None:
    recipe = OWN.load(write(tmp_path, {"match": "layers.0.*", "dtype": "int8"}, base="f32"))
    assert recipe.rules == (Rule("layers.0.*", INT8), Rule("*", F32, optional=True))
    assert recipe.plan(weights("layers.0.w")) == {"layers.0.w": INT8}


def test_static_activations_are_said_by_a_recipe_or_its_base(tmp_path: Path) -> None:
    assert not OWN.load(write(tmp_path, RULE)).static_activations
    said = OWN.load(write(tmp_path, RULE, static_activations=True))
    assert said.static_activations
    assert said.changed("own", [Rule("a", INT8)]).static_activations
    assert said.with_search("absmax").static_activations
    assert not OWN.load(write(tmp_path, RULE, base="ears", static_activations=False)).static_activations
    with pytest.raises(RecipeError, match="static_activations"):
        OWN.load(write(tmp_path, RULE, static_activations="int8"))


@pytest.mark.parametrize("base", ["int4", "mine", "../recipes/int8", "mine.json", ""])
def test_a_base_is_a_built_in_recipe_for_the_same_weights(tmp_path: Path, base: str) -> None:
    with pytest.raises(RecipeError, match=r"mine\.json, base: found .*, wanted a built-in recipe"):
        OWN.load(write(tmp_path, RULE, base=base))
    OWN.load(write(tmp_path, RULE, base="ears"))


def test_a_rule_for_a_kind_of_layers_is_a_rule_for_each_of_these(tmp_path: Path) -> None:
    match = "layers.*.self_attn.*_proj.weight"
    mine = write(tmp_path, {"match": match, "dtype": "int4", "layers": "odd"}, base="int8")
    recipe = OWN.load(mine)
    made = recipe.for_layers({"odd": [1, 3], "even": [0, 2]})
    assert [rule.match for rule in made.rules[:2]] == [match.replace("*", number, 1) for number in ("1", "3")]
    own, others = "layers.3.self_attn.o_proj.weight", "layers.2.self_attn.o_proj.weight"
    assert made.scheme(own) == Scheme("int4") and made.scheme(others) == INT8  # the base's rule for all layers stays
    assert made.for_layers({}) == made


def test_a_kind_that_a_model_does_not_know_or_has_no_layers_of_is_an_error_unless_optional() -> None:
    recipe = Recipe("r", (Rule("layers.*", INT8, layers="odd"), Rule("*", F32)))
    with pytest.raises(RecipeError, match=r"recipe r, rule layers\.\*: found layers odd, wanted even or big"):
        recipe.for_layers({"even": [0], "big": [1]})
    with pytest.raises(RecipeError, match=r"a model without layers of the kind odd.*optional"):
        recipe.for_layers({"odd": []})
    optional = Recipe("r", (Rule("layers.*", INT8, optional=True, layers="odd"), Rule("*", F32)))
    assert optional.for_layers({"odd": []}).rules == (Rule("*", F32),)
