"""The published picture: Gemma 3n E2B loads over 5 B parameters and needs under 2 B. Counts are those published."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from bundles import fill_with_towers
from checkpoints import safetensors_bytes
from numpy.typing import NDArray
from PIL import Image
from towers import write_multimodal_checkpoint

import gemma_edge
from benchmarks import synthetic
from benchmarks.synthetic_gemma4 import write_synthetic
from converters.huggingface.safetensors import SafetensorsFile
from converters.huggingface.tensor_reader import read_tensor
from gemma_edge.cli import main
from toolkit.bundle.write import write_bundle

TEXT = ["text", "token_embedding", "per_layer_embedding"]
E2B_TEXT, E2B_ALL, E2B_EFFECTIVE = 4_456_156_768, 5_439_438_272, 1_905_495_648
E4B_TEXT, E4B_ALL, E4B_EFFECTIVE = 6_866_696_688, 7_849_978_192, 3_980_491_248
VISION, AUDIO = 294_126_912 + 4_460_544, 681_348_640 + 3_345_408
TOKEN_EMBEDDING, E2B_PLE = 537_395_200, 2_013_265_920


def change_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "config.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """E2B and E4B with both towers as published, and E2B's text alone; their 33 GB of zeros take no room."""
    root = tmp_path_factory.mktemp("published")
    architecture = "Gemma3nForConditionalGeneration"
    for preset in ("e2b", "e4b"):
        synthetic.write_synthetic(
            root / preset, preset, architecture=architecture, vision=True, audio=True, sparse=True
        )
    synthetic.write_synthetic(root / "text", "e2b", sparse=True)
    return {path.name: path for path in root.iterdir()}


def inspect(path: Path, *arguments: str) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["inspect", str(path), "--json", *arguments]) == 0
    value = json.loads(out.getvalue())
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def inspected(published: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What `inspect` says of E2B and E4B."""
    return {name: inspect(published[name]) for name in ("e2b", "e4b")}


@pytest.mark.slow
def test_e2b_loads_over_5_b_and_needs_under_2_b(inspected: dict[str, dict[str, Any]]) -> None:
    value = inspected["e2b"]
    groups = value["groups"]
    assert {name: group["parameters"] for name, group in groups.items()} == {
        "text": E2B_EFFECTIVE,
        "token_embedding": TOKEN_EMBEDDING,
        "per_layer_embedding": E2B_PLE,
        "vision": VISION,
        "audio": AUDIO,
    }
    assert sum(group["bytes"] for group in groups.values()) == 2 * E2B_ALL
    size = value["sizes"]["E2B"]
    assert (size["parameters_loaded"], size["parameters_effective"]) == (E2B_ALL, E2B_EFFECTIVE)


@pytest.mark.slow
def test_e4b_holds_itself_and_e2b_with_the_same_figures(inspected: dict[str, dict[str, Any]]) -> None:
    sizes = inspected["e4b"]["sizes"]
    assert len(sizes) == 16
    figures = {name: (size["parameters_loaded"], size["parameters_effective"]) for name, size in sizes.items()}
    assert figures["E4B"] == (E4B_ALL, E4B_EFFECTIVE)
    assert figures["E2B"] == (E2B_ALL, E2B_EFFECTIVE)


@pytest.mark.slow
def test_every_set_of_groups_says_what_it_loads(inspected: dict[str, dict[str, Any]]) -> None:
    sets = inspected["e4b"]["sizes"]["E4B"]["sets"]
    assert [(item["groups"], item["parameters_loaded"]) for item in sets] == [
        (TEXT, E4B_TEXT),
        ([*TEXT, "vision"], E4B_TEXT + VISION),
        ([*TEXT, "audio"], E4B_TEXT + AUDIO),
        ([*TEXT, "vision", "audio"], E4B_ALL),
    ]
    assert {item["parameters_effective"] for item in sets} == {E4B_EFFECTIVE}
    memory = [item["memory_bytes"] for item in sets]
    assert memory[0] == E4B_EFFECTIVE + TOKEN_EMBEDDING  # the output matrix
    assert [m - memory[0] for m in memory] == [0, VISION, AUDIO, VISION + AUDIO]


@pytest.mark.slow
def test_a_text_checkpoint_has_one_set(published: dict[str, Path]) -> None:
    value = inspect(published["text"])
    assert list(value["groups"]) == TEXT
    (only,) = value["sizes"]["E2B"]["sets"]
    assert (only["groups"], only["parameters_loaded"]) == (TEXT, E2B_TEXT)


@pytest.mark.full
def test_the_table_says_which_groups_make_each_figure(
    published: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(published["e2b"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("E2B ")]
    assert " ".join(row) == "E2B 30 4.46 B 4.75 B 5.14 B 5.44 B 1.91 B 2.44 GB"
    assert "loaded: text, token_embedding, per_layer_embedding, and the towers named: vision, audio" in lines
    (effective,) = [line for line in lines if line.startswith("effective: ")]
    assert effective.endswith("without token_embedding, per_layer_embedding, vision, audio")


def test_the_memory_of_a_checkpoint_of_codes_is_that_of_its_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic(tmp_path / "qat", "tiny", "qat")
    assert main(["inspect", str(tmp_path / "qat")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("memory as stored") for line in lines)
    assert any(line.endswith("without token_embedding, per_layer_embedding") for line in lines)
    (expected,) = gemma_edge.inspect(tmp_path / "qat").sizes.values()
    gemma_edge.convert(tmp_path / "qat", tmp_path / "bundle", verify=False)
    (found,) = gemma_edge.inspect(tmp_path / "bundle").sizes.values()
    read = sum(found.bytes_per_token.values())
    assert read < expected.memory["text"] < 1.1 * read


@pytest.mark.full
def test_the_picture_shows_both_figures_of_each_size(published: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "sizes.svg"
    inspect(published["e2b"], "--plot", str(path))
    drawn = path.read_bytes()
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"E2B  loaded", "effective", "5.44", "1.91", "2.01", "billion parameters", *TEXT, "vision", "audio"} <= set(
        texts
    )
    inspect(published["e2b"], "--plot", str(path))
    assert path.read_bytes() == drawn
    inspect(published["e4b"], "--plot", str(tmp_path / "sizes.png"))
    with Image.open(tmp_path / "sizes.png") as image:
        assert image.height > image.width


def test_a_bundle_is_drawn_too(random_bundle: Path, tmp_path: Path) -> None:
    value = inspect(random_bundle, "--plot", str(tmp_path / "b.svg"))
    for size in value["sizes"].values():
        assert size["parameters_loaded"] == sum(size["parameters"].values())
        assert size["sets"][0]["memory_bytes"] == size["memory_bytes"]
    drawn = (tmp_path / "b.svg").read_bytes()
    assert b"small  loaded" in drawn and b"million parameters" in drawn


def test_a_bundle_with_towers_has_a_set_for_each_choice_of_them(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", fill_with_towers)
    value = inspect(tmp_path / "b", "--plot", str(tmp_path / "b.svg"))
    vision, audio = (value["groups"][name]["bytes"] for name in ("vision", "audio"))
    for size in value["sizes"].values():
        sets = size["sets"]
        assert [item["groups"][3:] for item in sets] == [[], ["vision"], ["audio"], ["vision", "audio"]]
        text = sets[0]["memory_bytes"]
        assert [item["memory_bytes"] - text for item in sets] == [0, vision, audio, vision + audio]
        assert size["parameters_loaded"] == sets[-1]["parameters_loaded"] == sum(size["parameters"].values())


def test_a_plot_of_another_ending_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "missing"), "--plot", str(tmp_path / "sizes.pdf")]) == 2
    assert "wanted .svg or .png" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def as_first_released(config: dict[str, Any]) -> None:
    """What Google's first upload said of audio, which the one of July 2025 says in other words."""
    for key in ("sscp_conv_group_norm_eps", "vocab_offset"):
        del config["audio_config"][key]
    config["audio_config"] |= {"sscp_conv_eps": 0.001, "conf_positional_bias_size": 256}


def as_sparse_as_possible(config: dict[str, Any]) -> None:
    for key in [key for key in config if key not in ("architectures", "model_type", "text_config")]:
        del config[key]


@pytest.mark.full
@pytest.mark.parametrize("form", [lambda config: None, as_first_released, as_sparse_as_possible])
def test_every_form_of_the_published_config_is_accepted_with_its_towers(
    tmp_path: Path, form: Callable[[dict[str, Any]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write_synthetic(
        tmp_path, "e2b", architecture="Gemma3nForConditionalGeneration", vision=True, audio=True, sparse=True
    )
    change_config(tmp_path, form)
    assert main(["inspect", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "5.44 B" in output.out
    if form is as_sparse_as_possible:
        # The markers have the published ids now, which the small tokenizer of the synthetic checkpoint does not spell.
        assert output.err.count("warning: ") == 1 and "tokenizer.json: no token for image" in output.err
    else:
        assert output.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("group", ["vision", "audio"])
def test_a_tower_with_the_axes_of_mlx_is_named_with_the_way_out(
    tmp_path: Path, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """mlx keeps the channels of a convolution's kernel last."""
    checkpoint = tmp_path / "checkpoint"
    write_multimodal_checkpoint(checkpoint)
    file = SafetensorsFile(checkpoint / "model.safetensors")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, info in file.tensors.items():
        tensors[name] = read_tensor(file, info, None, None)
        if f"{group}_tower" in name and len(info.shape) > 2:
            tensors[name] = np.ascontiguousarray(np.moveaxis(tensors[name], 1, -1))
    (checkpoint / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    assert main(["inspect", str(checkpoint)]) == 0
    error = capsys.readouterr().err
    assert f"{group} cannot be converted" in error and "these axes are in mlx" in error
    assert main(["convert", str(checkpoint), "-o", str(tmp_path / "bundle"), "--context", "64"]) == 2
    assert "convert the 16-bit checkpoint in Hugging Face's form that it was made from" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_tower_that_cannot_be_converted_is_said_before_anything_is_downloaded_in_vain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_multimodal_checkpoint(tmp_path)
    change_config(tmp_path, lambda config: config["audio_config"].update(conf_attention_context_right=3))
    assert main(["inspect", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "audio cannot be converted" in error and "conf_attention_context_right: found 3" in error
    assert "--groups text,vision leaves it out" in error
