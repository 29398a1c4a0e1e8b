"""From checkpoint to logits with images and sounds: a random full model, converted and run, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import multimodal_oracle
import numpy as np
import pytest
import soundfile
from multimodal_oracle import IMAGE_SIZE
from numpy.typing import NDArray
from PIL import Image

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.media.image import load_levels
from toolkit.media.pixels import pixels
from toolkit.media.sound import load_sound
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import Medium, Prompt, build_prompt, read_image, read_sound
from toolkit.runtime.session import Session, SessionSettings

pytestmark = pytest.mark.reference

PICTURE, SOUND = "<image_soft_token>", "<audio_soft_token>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return multimodal_oracle.make_checkpoint(tmp_path_factory.mktemp("random") / "checkpoint", seed=0)


def bundle_of(checkpoint: Path, output: Path, quant: str) -> Bundle:
    request = ConvertRequest(checkpoint, output, {"text": quant}, context=256, prefill_sizes=(4, 16, 64))
    convert(request, gate=None)
    return Bundle(output)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(checkpoint, tmp_path_factory.mktemp("f32") / "bundle", "f32")


@pytest.fixture
def session(bundle: Bundle) -> Iterator[Session]:
    with Session(bundle, SessionSettings(threads=1, weight_cache="memory")) as session:
        yield session


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two images and two sounds; the longer sound is about as long as the tower hears, the shorter half a second."""
    directory = tmp_path_factory.mktemp("media")
    random = np.random.default_rng(5)
    paths = {name: directory / name for name in ("a.png", "b.png", "long.wav", "short.wav")}
    for name, size in (("a.png", (70, 50)), ("b.png", (IMAGE_SIZE, IMAGE_SIZE))):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(paths[name])
    for name, seconds in (("long.wav", 3.1), ("short.wav", 0.5)):
        noise = 0.1 * random.standard_normal(int(seconds * 16_000)).astype(np.float32)
        soundfile.write(paths[name], np.cumsum(noise) / 20 + noise, 16_000, subtype="FLOAT")
    return paths


def media_of(bundle: Bundle, paths: list[Path]) -> list[Medium]:
    vision, audio = bundle.manifest.vision, bundle.manifest.audio
    assert vision is not None and audio is not None
    media: list[Medium] = []
    for path in paths:
        media += [read_image(path, vision)] if path.suffix == ".png" else read_sound(path, audio)
    return media


def prompt_of(bundle: Bundle, text: str, paths: list[Path]) -> Prompt:
    prompt = build_prompt(bundle, bundle.tokenizer(), text, media_of(bundle, paths))
    return prompt.beginning_with(2)


def inputs_of(paths: list[Path]) -> dict[str, Any]:
    return {
        "images": [pixels(load_levels(path, IMAGE_SIZE))[0] for path in paths if path.suffix == ".png"],
        "sounds": [load_sound(path) for path in paths if path.suffix == ".wav"],
    }


def logits_of(session: Session, prompt: Prompt) -> NDArray[np.float32]:
    """Those behind every token of the prompt, each by decode."""
    session.rewind_to(prompt.ids, prompt.spans)
    return np.stack([session.decode(token) for token in prompt.ids])


PROMPTS = {
    "text, image, text, sound, text": (f"What do {PICTURE} and {SOUND} have in common?", ["a.png", "short.wav"]),
    "two images, two sounds": (
        f"{PICTURE}{SOUND} or {SOUND} and {PICTURE}",
        ["a.png", "long.wav", "short.wav", "b.png"],
    ),
    "an image": (f"{PICTURE}Once", ["b.png"]),
    "a sound": (f"Hear: {SOUND}", ["long.wav"]),
    "no image": ("Once upon a time", []),
}


@pytest.mark.parametrize(("text", "names"), PROMPTS.values(), ids=PROMPTS.keys())
def test_a_float_bundle_gives_the_logits_of_transformers(
    session: Session, checkpoint: Path, files: dict[str, Path], text: str, names: list[str]
) -> None:
    paths = [files[name] for name in names]
    prompt = prompt_of(session.bundle, text, paths)
    want = multimodal_oracle.hf_logits(checkpoint, prompt.ids, **inputs_of(paths))
    got = logits_of(session, prompt)
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()
    session.truncate(0)
    session.rewind_to(prompt.ids, prompt.spans)
    prefilled = session.feed(prompt.ids)
    assert np.abs(prefilled - want[-1]).max() < 1e-3 * np.abs(want).max()


@pytest.mark.parametrize(("text", "names"), PROMPTS.values(), ids=PROMPTS.keys())
def test_a_float_bundle_writes_the_tokens_of_transformers(
    session: Session, checkpoint: Path, files: dict[str, Path], text: str, names: list[str]
) -> None:
    paths = [files[name] for name in names]
    prompt = prompt_of(session.bundle, text, paths)
    want, lead = multimodal_oracle.hf_greedy(checkpoint, prompt.ids, 16, **inputs_of(paths))
    session.rewind_to(prompt.ids, prompt.spans)
    logits, got = session.feed(prompt.ids), list[int]()
    while len(got) < len(want):
        got.append(int(np.argmax(logits)))
        logits = session.decode(got[-1])
    assert got == want, lead


def test_an_int8_bundle_stays_close(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    text, names = PROMPTS["text, image, text, sound, text"]
    paths = [files[name] for name in names]
    bundle = bundle_of(checkpoint, tmp_path / "bundle", "int8")
    with Session(bundle, SessionSettings(threads=1, weight_cache="memory")) as session:
        prompt = prompt_of(bundle, text, paths)
        got = logits_of(session, prompt)
    want = multimodal_oracle.hf_logits(checkpoint, prompt.ids, **inputs_of(paths))
    error = np.sqrt(np.mean((got - want) ** 2)) / np.sqrt(np.mean(want**2))
    assert error < 0.1
