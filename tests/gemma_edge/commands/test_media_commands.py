"""run and chat with images and sounds: what they say, what they load, and one clear error for each wrong use."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from towers import write_multimodal_checkpoint

from gemma_edge.cli import main

TEXT_GROUPS = {"per_layer_embedding", "text", "token_embedding"}
QUICK = ["-n", "2", "--weight-cache", "memory", "--threads", "1"]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that can be shown and heard, and one that is neither."""
    directory = tmp_path_factory.mktemp("media")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(directory / "a.png")
    soundfile.write(directory / "short.wav", 0.1 * random.standard_normal(8_000), 16_000)
    soundfile.write(directory / "long.wav", 0.1 * random.standard_normal(16_000 * 5), 16_000)
    soundfile.write(directory / "click.wav", np.ones(100), 16_000)
    (directory / "neither.bin").write_bytes(b"neither")
    return directory


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    checkpoint = write_multimodal_checkpoint(directory / "checkpoint")
    arguments = ["--groups", "text", "--context", "64", "--prefill", "4,16", "--no-verify", "-q"]
    assert main(["convert", str(checkpoint), "-o", str(directory / "bundle"), *arguments]) == 0
    return directory / "bundle"


def run_json(capfd: pytest.CaptureFixture[str], bundle: Path, *arguments: object) -> tuple[dict[str, object], str]:
    assert main(["run", str(bundle), "--json", *QUICK, *map(str, arguments)]) == 0
    out, err = capfd.readouterr()
    return json.loads(out), err


def test_run_lists_the_groups_it_loaded_and_the_peak_of_each_stage(
    capfd: pytest.CaptureFixture[str], multimodal_bundle: Path, media: Path
) -> None:
    value, _ = run_json(capfd, multimodal_bundle, "-p", "See", "--image", media / "a.png")
    assert set(value["groups_loaded"]) == {*TEXT_GROUPS, "vision"}  # type: ignore[call-overload]
    assert list(value["memory"]["peaks"]) == ["load", "vision", "prefill", "decode"]  # type: ignore[index]
    assert all(peak > 0 for peak in value["memory"]["peaks"].values())  # type: ignore[index]
    assert isinstance(value["media_s"], float)
    text, _ = run_json(capfd, multimodal_bundle, "-p", "See")
    assert set(text["groups_loaded"]) == TEXT_GROUPS  # type: ignore[call-overload]
    assert list(text["memory"]["peaks"]) == ["load", "prefill", "decode"]  # type: ignore[index]
    assert text["media_s"] is None


@pytest.mark.parametrize("raw", [[], ["--raw"]], ids=["turn", "raw"])
def test_media_stand_before_the_text_unless_it_says_where(
    capfd: pytest.CaptureFixture[str], multimodal_bundle: Path, media: Path, raw: list[str]
) -> None:
    shown = ["--image", media / "a.png", "--audio", media / "short.wav"]
    before, _ = run_json(capfd, multimodal_bundle, "-p", "See", *shown, *raw)
    placed = "<image_soft_token><audio_soft_token>See"
    spelled, _ = run_json(capfd, multimodal_bundle, "-p", placed, *shown, *raw)
    assert before["token_ids"] == spelled["token_ids"] and before["prompt_tokens"] == spelled["prompt_tokens"]
    turned, _ = run_json(capfd, multimodal_bundle, "-p", "See", *shown[2:], *shown[:2], *raw)
    assert turned["prompt_tokens"] == before["prompt_tokens"]


def test_a_sound_that_is_too_long_is_said_to_be_cut(
    capfd: pytest.CaptureFixture[str], multimodal_bundle: Path, media: Path
) -> None:
    short, _ = run_json(capfd, multimodal_bundle, "-p", "Hear", "--audio", media / "short.wav")
    value, err = run_json(capfd, multimodal_bundle, "-p", "Hear", "--audio", media / "long.wav", "-q")
    assert "longer than the 3.232 s that the model hears at once: it is split into 2 pieces" in err
    assert value["prompt_tokens"] - short["prompt_tokens"] in range(22, 28)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image", "neither.bin"], "not an image of a known format"),
        (["--audio", "neither.bin"], "Format not recognised"),
        (["--image", "absent.png"], "no such file"),
        (["--audio", "click.wav"], "click.wav: found 0.006 s of sound, wanted at least 0.032; append silence"),
        (["--image", "a.png", "--groups", "text,audio"], "found --groups text,audio, wanted the group vision too"),
        (["--groups", "sight"], "group sight: found no such group in the bundle"),
        (["--image", "a.png"] * 9, "at most 160, the bundle's context"),
    ],
)
def test_what_cannot_be_shown_is_one_error(
    capfd: pytest.CaptureFixture[str], multimodal_bundle: Path, media: Path, arguments: list[str], says: str
) -> None:
    given = [str(media / argument) if "." in argument else argument for argument in arguments]
    assert main(["run", str(multimodal_bundle), "-p", "See", *QUICK, *given]) == 2
    out, err = capfd.readouterr()
    assert says in err and err.count("error:") == 1 and not out


@pytest.mark.parametrize(
    ("option", "file", "group"), [("--image", "a.png", "vision"), ("--audio", "short.wav", "audio")]
)
def test_a_bundle_without_the_group_says_how_to_add_it(
    capfd: pytest.CaptureFixture[str], text_bundle: Path, media: Path, option: str, file: str, group: str
) -> None:
    assert main(["run", str(text_bundle), "-p", "See", *QUICK, option, str(media / file)]) == 2
    err = capfd.readouterr().err
    remedy = f"convert the checkpoint again with {group} among --groups; gemma-edge inspect says whether it can be"
    assert f"bundle: no group {group}" in err and remedy in err


def test_chat_shows_and_plays_with_the_next_message(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, multimodal_bundle: Path, media: Path
) -> None:
    lines = [f"/image {media / 'a.png'}", "See", "again", f"/audio {media / 'absent.wav'}", "/reset", "words"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["chat", str(multimodal_bundle), "--json", "--temperature", "0", *QUICK]) == 0
    out, err = capfd.readouterr()
    seen, again, absent, words = map(json.loads, out.splitlines())
    assert absent["error"]["found"] == "no such file"
    assert seen["prompt_tokens"] > 18 + words["prompt_tokens"]
    assert again["reused_tokens"] > 18, "the image is not taken in again"
    assert "a.png will be sent with the next message" in err and "absent.wav: no such file" in err


def test_a_copy_without_the_group_says_how_to_add_it(
    capfd: pytest.CaptureFixture[str], multimodal_bundle: Path, media: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(multimodal_bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("vision_*"))
    assert main(["run", str(copy), "-p", "See", *QUICK, "--image", str(media / "a.png")]) == 2
    err = capfd.readouterr().err
    assert "copy: a copy without the files of the group vision, which" in err
    assert "a.png needs; push the bundle with vision among --groups" in err
