"""Measures what the tiny Gemma 3n sees and hears in pictures and sounds that are new to it, with three programs.

    python evaluate_media.py transformers
    python evaluate_media.py session BUNDLE --size small
    python evaluate_media.py engine MODEL.litertlm
    python evaluate_media.py files FOLDER

transformers runs the checkpoint beside this file in float32; BUNDLE and MODEL.litertlm are what `gemma-edge convert`
and `gemma-edge export` made from it, run by `gemma-edge` and by Google's LiteRT-LM. All three get the same files (PNG,
WAV) and the same questions, and answer greedily; an answer is right only if it equals the wanted one exactly. One line
of JSON is printed for each set. `files` writes other pictures and sounds, like those of training, into FOLDER: for
`gemma-edge convert --calibrate-media`. It needs pillow, soxr, espeak-ng; transformers with timm and torchvision;
gemma-edge; litert-lm-api.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import media_data
import numpy as np
from PIL import Image

HERE = Path(__file__).parent
PICTURE_QUESTION, SOUND_QUESTION = "What is this?", "What was said?"
MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Item:
    """The file of a picture or a sound, and the right answer."""

    kind: str
    data: bytes
    answer: str

    @property
    def question(self) -> str:
        return PICTURE_QUESTION if self.kind == "image" else SOUND_QUESTION


def picture_items(seed: int, count: int, *, unseen: bool, striped: float) -> Iterator[Item]:
    for picture in media_data.pictures(seed, count, unseen=unseen, striped=striped):
        file = io.BytesIO()
        picture.image.save(file, "PNG")
        yield Item("image", file.getvalue(), media_data.picture_answer(picture.colour, picture.figure, 0.0))


def sound_items(seed: int, count: int) -> Iterator[Item]:
    for sound in media_data.sounds(seed, count, held_out=True):
        yield Item("audio", media_data.wav_bytes(sound.samples), media_data.WORDS[sound.word])


def write_files(folder: Path, count: int) -> None:
    """Write pictures and spoken words that the model was not trained on, with training's combinations and voices."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(picture_items(11_000_000, count, unseen=False, striped=0.0)):
        (folder / f"{number}.png").write_bytes(item.data)
    for number, sound in enumerate(media_data.sounds(12_000_000, count, held_out=False)):
        (folder / f"{number}.wav").write_bytes(media_data.wav_bytes(sound.samples))


def item_sets(count: int) -> dict[str, list[Item]]:
    """The sets by name, drawn and spoken anew: training did not use any of them, not even for decisions."""
    return {
        "pictures": list(picture_items(6_000_000, count, unseen=False, striped=0.0)),
        "pictures, striped grounds": list(picture_items(7_000_000, count // 2, unseen=False, striped=1.0)),
        "pictures, unseen combinations": list(picture_items(8_000_000, count // 2, unseen=True, striped=0.0)),
        "sounds": list(sound_items(9_000_000, count)),
    }


Answer = Callable[[list[Item]], list[str]]


def samples_of(data: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(data)) as wav:
        return np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(np.float32) / 32768


def ask_transformers(checkpoint: Path) -> Answer:
    """Answers from transformers, which runs the checkpoint's weights in float32."""
    import torch
    from transformers import AutoProcessor, Gemma3nForConditionalGeneration

    processor = AutoProcessor.from_pretrained(checkpoint)
    loaded = Gemma3nForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )

    def answer(items: list[Item]) -> list[str]:
        kind, question = items[0].kind, items[0].question
        content = [{"type": kind}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        texts = [text.removeprefix("<bos>")] * len(items)
        if kind == "image":
            media: dict[str, object] = {"images": [[Image.open(io.BytesIO(item.data))] for item in items]}
        else:
            media = {"audio": [samples_of(item.data) for item in items]}
        inputs = processor(text=texts, **media, return_tensors="pt")
        with torch.inference_mode():
            ids = loaded.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, top_k=None, top_p=None)
        return [
            text.strip()
            for text in processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ]

    loaded.eval()
    return answer


def ask_session(path: Path, size: str | None) -> Answer:
    """Answers from gemma-edge's own session, with the prompts of `gemma-edge run`."""
    from toolkit.bundle.chat import Message
    from toolkit.runtime.bundle import Bundle
    from toolkit.runtime.generate import Generation
    from toolkit.runtime.media_prompt import build_prompt, read_image, read_sound
    from toolkit.runtime.sampling import Sampler, Sampling
    from toolkit.runtime.session import Session, SessionSettings

    bundle = Bundle(path)
    tokenizer = bundle.tokenizer()
    vision, audio = bundle.manifest.vision, bundle.manifest.audio
    assert vision is not None and audio is not None, "a bundle without vision or audio"
    session = Session(bundle, SessionSettings(size=size, weight_cache="memory"))
    sampler = Sampler(Sampling(), bundle.drawable_ids(tokenizer))

    def answer_one(item: Item) -> str:
        media = [read_image(item.data, vision)] if item.kind == "image" else read_sound(item.data, audio)
        message = Message("user", item.question, tuple(medium.group for medium in media))
        prompt = build_prompt(bundle, tokenizer, bundle.chat_template(tokenizer).render([message]), media)
        generation = Generation(
            session,
            prompt.ids,
            sampler,
            limit=MAX_TOKENS,
            stops=bundle.manifest.text.stop_token_ids,
            spans=prompt.spans,
        )
        return tokenizer.decode(list(generation))

    return lambda items: [answer_one(item) for item in items]


def ask_engine(path: Path, cache: Path) -> Answer:
    """Answers from Google's LiteRT-LM, which makes prompts, pixels and mel frames by the container's metadata."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    backend = litert_lm.Backend.CPU(thread_count=2)
    engine = litert_lm.Engine(
        str(path), backend=backend, vision_backend=backend, audio_backend=backend, cache_dir=str(cache)
    ).__enter__()
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
    parts = {"image": litert_lm.Content.ImageBytes, "audio": litert_lm.Content.AudioBytes}

    def answer_one(item: Item) -> str:
        contents = [parts[item.kind](item.data), litert_lm.Content.Text(item.question)]
        with engine.create_conversation(sampler_config=greedy, max_output_tokens=MAX_TOKENS) as conversation:
            message = conversation.send_message(litert_lm.Contents(contents))
            return "".join(part["text"] for part in message["content"])

    return lambda items: [answer_one(item) for item in items]


def report(program: str, name: str, items: list[Item], answer: Answer, wrong: int) -> None:
    """Print one line of JSON, and, on request, some wrong answers."""
    answers = [text for start in range(0, len(items), 25) for text in answer(items[start : start + 25])]
    misses = [(item.answer, text) for item, text in zip(items, answers, strict=True) if item.answer != text]
    accuracy = 1 - len(misses) / len(items)
    spread = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(items))
    figures = {"program": program, "set": name, "right": len(items) - len(misses), "of": len(items)}
    print(json.dumps(figures | {"accuracy": round(accuracy, 4), "plus_minus": round(spread, 4)}), flush=True)
    for wanted, text in misses[:wrong]:
        print(f"  wanted {wanted!r}, got {text!r}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=("transformers", "session", "engine", "files"))
    parser.add_argument("model", type=Path, nargs="?", default=HERE, help="checkpoint, bundle, .litertlm or folder")
    parser.add_argument("--size", help="one of the bundle's sizes (default: the bundle's default)")
    parser.add_argument("--count", type=int, default=400, help="pictures and sounds; half of it for the other sets")
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="wrong answers to show of each set")
    arguments = parser.parse_args()
    if arguments.program == "files":
        write_files(arguments.model, arguments.count)
        return
    with tempfile.TemporaryDirectory() as cache:
        if arguments.program == "transformers":
            answer = ask_transformers(arguments.model)
        elif arguments.program == "session":
            answer = ask_session(arguments.model, arguments.size)
        else:
            answer = ask_engine(arguments.model, Path(cache))
        for name, items in item_sets(arguments.count).items():
            report(arguments.program, name, items, answer, arguments.show_wrong)


if __name__ == "__main__":
    main()
