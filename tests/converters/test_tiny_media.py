"""The tiny model sees and hears: its sample pictures and sounds, each named by the answer that is wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle_models import import_torch
from paths import EXAMPLE
from timm_oracle import let_transformers_use_timm

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.bundle.chat import Message
from toolkit.media.sound import load_sound
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.generate import Generation
from toolkit.runtime.media_prompt import build_prompt, read_image, read_sound
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings

TINY = EXAMPLE
PICTURES = sorted((TINY / "samples").glob("*.png"))
SOUNDS = sorted((TINY / "samples").glob("*.wav"))
QUESTIONS = {".png": "What is this?", ".wav": "What was said?"}
MAX_TOKENS = 16
MISSES = 1
"""Of the samples of each kind: another rounding may cost one; a front end or tower that is wrong costs most."""


def wanted(sample: Path) -> str:
    """`red-circle.png` -> `a red circle`; `seven.wav` -> `seven`."""
    return f"a {sample.stem.replace('-', ' ')}" if sample.suffix == ".png" else sample.stem


def require_right(answers: dict[Path, str]) -> None:
    wrong = {sample.name: answer for sample, answer in answers.items() if answer != wanted(sample)}
    for kind in (".png", ".wav"):
        assert len([name for name in wrong if name.endswith(kind)]) <= MISSES, wrong


def test_there_are_samples_of_both_kinds() -> None:
    assert len(PICTURES) >= 6 and len(SOUNDS) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("size", ["large", pytest.param("small", marks=pytest.mark.full)])
def test_an_int8_bundle_answers_what_the_samples_show_and_say(tmp_path: Path, size: str) -> None:
    convert(ConvertRequest(TINY, tmp_path / "bundle", sizes=(size,), context=512), gate=None)
    bundle = Bundle(tmp_path / "bundle")
    with Session(bundle, SessionSettings(threads=1, weight_cache="memory")) as session:
        require_right({sample: _ask(session, bundle, sample) for sample in (*PICTURES, *SOUNDS)})


def _ask(session: Session, bundle: Bundle, sample: Path) -> str:
    tokenizer, manifest = bundle.tokenizer(), bundle.manifest
    assert manifest.vision is not None and manifest.audio is not None
    media = [read_image(sample, manifest.vision)] if sample.suffix == ".png" else read_sound(sample, manifest.audio)
    message = Message("user", QUESTIONS[sample.suffix], tuple(medium.group for medium in media))
    prompt = build_prompt(bundle, tokenizer, bundle.chat_template(tokenizer).render([message]), media)
    sampler = Sampler(Sampling(), bundle.drawable_ids(tokenizer))
    stops = manifest.text.stop_token_ids
    return tokenizer.decode(
        list(Generation(session, prompt.ids, sampler, limit=MAX_TOKENS, stops=stops, spans=prompt.spans))
    )


@pytest.mark.reference
def test_transformers_answers_what_the_samples_show_and_say() -> None:
    """Through its own processor, read from the checkpoint's files."""
    torch = import_torch()
    let_transformers_use_timm()
    from PIL import Image
    from transformers import AutoProcessor, Gemma3nForConditionalGeneration

    processor = AutoProcessor.from_pretrained(TINY)
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    loaded = Gemma3nForConditionalGeneration.from_pretrained(TINY, **settings).train(False)
    answers = {}
    for sample in (*PICTURES, *SOUNDS):
        is_picture = sample.suffix == ".png"
        content = [{"type": "image" if is_picture else "audio"}, {"type": "text", "text": QUESTIONS[sample.suffix]}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        media = {"images": [Image.open(sample)]} if is_picture else {"audio": [np.asarray(load_sound(sample))]}
        inputs = processor(text=text.removeprefix("<bos>"), **media, return_tensors="pt")
        with torch.inference_mode():
            ids = loaded.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, top_k=None, top_p=None)
        answers[sample] = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    require_right(answers)
