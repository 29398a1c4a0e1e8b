"""convert --groups and the towers' recipes: what is converted by default, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from towers import write_multimodal_checkpoint

from gemma_edge.cli import main
from toolkit.bundle.manifest_json import read_manifest

SMALL = ["--context", "64", "--prefill", "4,16", "--no-verify", "-q"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal_checkpoint(tmp_path_factory.mktemp("multimodal") / "checkpoint")


def recipes(bundle: Path) -> dict[str, str]:
    return {role: quant.recipe for role, quant in read_manifest(bundle).quant.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        pytest.param(
            [], {"text": "int8", "ple": "int8", "vision": "vision-int8", "audio": "audio-int8"}, marks=pytest.mark.full
        ),
        pytest.param(
            ["--quant", "f32"], {"text": "f32", "ple": "f32", "vision": "f32", "audio": "f32"}, marks=pytest.mark.full
        ),
        (
            ["--quant", "int4-channel", "--ple-quant", "int8"],
            {"text": "int4-channel", "ple": "int8", "vision": "vision-int8", "audio": "audio-int8"},
        ),
        (
            ["--groups", "text,ple,audio", "--audio-quant", "int4", "--audio-lengths", "0.5,2"],
            {"text": "int8", "ple": "int8", "audio": "audio-int4"},
        ),
        (["--groups", "text", "--vision-quant", "f16"], None),
        (["--groups", "vision"], None),
        pytest.param(
            ["--vision-quant", "f16"],
            {"text": "int8", "ple": "int8", "vision": "vision-f16", "audio": "audio-int8"},
            marks=pytest.mark.full,
        ),
    ],
)
def test_towers_follow_the_arguments(
    checkpoint: Path, tmp_path: Path, arguments: list[str], wanted: dict[str, str] | None
) -> None:
    code = main(["convert", str(checkpoint), "-o", str(tmp_path / "bundle"), *arguments, *SMALL])
    assert code == (0 if wanted else 2)
    assert (recipes(tmp_path / "bundle") if wanted else None) == wanted


@pytest.mark.slow
def test_the_search_for_scales_holds_for_the_towers_too(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(checkpoint), "-o", str(tmp_path / "bundle"), "--search", "absmax", *SMALL]
    assert main(arguments) == 0
    quant = read_manifest(tmp_path / "bundle").quant
    assert {rule.search for role in ("vision", "audio") for rule in quant[role].rules} == {"absmax"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--groups", "text,sight"], "groups: found sight, wanted text, token_embedding"),
        (["--groups", "vision,audio"], "add text, as in text,vision,audio"),
        (["--groups", "text", "--audio-lengths", "5"], "audio is not converted"),
        (["--vision-quant", "int4"], "vision recipe: found int4, wanted f32, f16, int8 or the path"),
        (["--audio-lengths", "60"], "up to 3.2"),
    ],
)
def test_what_cannot_be_is_one_error(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["convert", str(checkpoint), "-o", str(tmp_path / "bundle"), *arguments, *SMALL]) == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_json_lists_the_groups_and_inspect_shows_them(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(checkpoint), "-o", str(tmp_path / "bundle"), *SMALL, "--json"]) == 0
    groups = json.loads(capfd.readouterr().out)["groups"]
    assert groups["vision"]["files"] == ["vision_encoder.tflite", "vision_adapter.tflite"]
    assert main(["inspect", str(tmp_path / "bundle"), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)["groups"]
    assert {name: group["bytes"] for name, group in shown.items()} == {n: g["bytes"] for n, g in groups.items()}
