"""Which family a checkpoint is of, and what is said of one that is of none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import TINY, random_tensors, write_checkpoint
from paths import EXAMPLE, GEMMA_4_EXAMPLE

from converters.convert import convert
from converters.families import FAMILIES, open_checkpoint, recipe_names
from converters.request import ConvertRequest, plan_request
from toolkit.base.errors import CheckpointError, RecipeError, SliceError


def test_a_checkpoint_is_opened_by_the_family_that_knows_its_architecture(tmp_path: Path) -> None:
    with open_checkpoint(write_checkpoint(tmp_path, TINY, random_tensors(TINY))) as checkpoint:
        assert checkpoint.architecture in FAMILIES[0].architectures


@pytest.mark.parametrize("stated", [["LlamaForCausalLM"], [], ["Gemma3nForCausalLM", "Gemma3nForCausalLM"], [3]])
def test_an_architecture_that_no_family_knows_is_one_error_that_lists_those_known(
    tmp_path: Path, stated: list[object]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": stated}))
    known = " or ".join(name for family in FAMILIES for name in family.architectures)
    with pytest.raises(CheckpointError, match=f"config.json, architectures: found .*, wanted {known}"):
        open_checkpoint(tmp_path)


def test_without_a_family_every_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="architectures"):
        open_checkpoint(write_checkpoint(tmp_path, TINY, random_tensors(TINY)), families=())


def test_config_json_is_read_once_however_many_parts_need_it(tmp_path: Path) -> None:
    """From a file that is gone as soon as it is read."""
    directory = write_checkpoint(tmp_path, TINY, random_tensors(TINY))
    with open_checkpoint(directory) as checkpoint:
        (directory / "config.json").unlink()
        assert len(checkpoint.fingerprint()) == 64
        assert checkpoint.facts(checkpoint.default_slice, bits_per_weight=8).layers == TINY["num_hidden_layers"]


@pytest.mark.parametrize(
    ("role", "name", "says"),
    [
        ("text", "int5", r"text recipe: found int5, wanted f32, int8, int4, .* or the path of a recipe file"),
        ("vision", "int4", "vision recipe: found int4, wanted f32, f16, int8 or the path"),
        ("ple", "f16", "ple recipe: found f16, wanted f32 or int8 or int4"),
    ],
)
def test_a_recipe_that_no_family_has_is_refused_before_a_checkpoint_is_looked_for(
    tmp_path: Path, role: str, name: str, says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        convert(ConvertRequest("owner/name", tmp_path / "bundle", {role: name}))


def test_recipes_have_names_by_role() -> None:
    assert recipe_names("text")[:3] == ("f32", "int8", "int4")
    assert recipe_names("smell") == ()


def test_a_directory_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_the_name_of_a_built_in_recipe_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for role in ("text", "ple"):
        chosen = ConvertRequest("someone/model", tmp_path / "int4", recipes={role: "int4"})
        assert chosen.bundle_output().inputs == (Path("someone/model"),)
    own = ConvertRequest("someone/model", tmp_path / "int4", recipes={"text": "own.json"})
    assert Path("own.json") in own.bundle_output().inputs


@pytest.mark.parametrize("example", [EXAMPLE, GEMMA_4_EXAMPLE])
def test_a_size_is_named_once(example: Path) -> None:
    with open_checkpoint(example) as opened:
        size = next(iter(opened.slices))
        with pytest.raises(SliceError, match=f"sizes: found {size} twice, wanted distinct names; name each size once"):
            plan_request(ConvertRequest(opened, Path("out"), groups=("text",), sizes=(size, size.upper())), opened)
