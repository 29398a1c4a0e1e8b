"""Shows what the tiny Gemma 3n says: ten questions about pictures and sounds, chats of three turns, and paragraphs.

    python evaluate_chat.py [CHECKPOINT] [--work WORK]

Training has none of the ten questions in these words, and none of the pictures and sounds in `samples/`; an answer
counts as right if it has the wanted words. Chats are greedy; paragraphs are sampled. With --work, it also measures the
perplexity of every size on the held-out modern prose. transformers runs the weights in float32 (needs timm,
torchvision, pillow).
"""

from __future__ import annotations

import argparse
import math
import wave
from functools import partial
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import prose
import torch
import train
from model import SIZES, forward_logits
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor, Gemma3nForConditionalGeneration

HERE = Path(__file__).parent
QUESTIONS = (
    ("red-circle.png", "Can you tell me what is drawn here?", ("red", "circle")),
    ("yellow-star.png", "Name the shape in this picture.", ("star",)),
    ("green-seven.png", "What number is in the picture?", ("seven",)),
    ("blue-heart.png", "Which colour has the heart in this picture?", ("blue",)),
    ("white-three.png", "Is there a three or a four in the picture?", ("three",)),
    ("black-cross.png", "Say what is shown, please.", ("black", "cross")),
    ("seven.wav", "Can you repeat the word?", ("seven",)),
    ("three.wav", "Which word was spoken?", ("three",)),
    ("left.wav", "Please say what you heard.", ("left",)),
    ("stop.wav", "What did the person say?", ("stop",)),
)
CHATS = (
    ("Your name is Ruth.", "Hello", "What is your name?", "What colour is the sky?"),
    ("Answer in one word.", "What colour is snow?", "Is fire cold?", "What do bees make?"),
    ("", "Hello! I am David.", "I have a dog.", "What is my name?"),
    ("", "Tell me a story about a cat.", "What was the name of the cat?", "Thank you!"),
    ("You are Peter, a baker.", "Who are you?", "What do you do?", "What is 2 plus 3?"),
)
PARAGRAPHS = ("One day", "I live in", "The captain", "When you arrive,", "In the beginning")


class Speaker:
    """A checkpoint and its processor."""

    def __init__(self, checkpoint: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = Gemma3nForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Any], limit: int, *, sample: bool) -> str:
        torch.manual_seed(1)
        settings = {"temperature": 0.7, "top_k": 40, "top_p": 0.95} if sample else {"top_k": None, "top_p": None}
        out = self.model.generate(**inputs, max_new_tokens=limit, do_sample=sample, **settings)
        new = out[0, inputs["input_ids"].shape[1] :]
        said: str = self.processor.decode(new, skip_special_tokens=True)
        return said.strip()

    def answer(self, messages: list[dict[str, Any]], medium: Path | None = None) -> str:
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True).removeprefix("<bos>")
        media: dict[str, Any] = {}
        if medium and medium.suffix == ".png":
            media = {"images": [[Image.open(medium)]]}
        elif medium:
            with wave.open(str(medium)) as file:
                samples = np.frombuffer(file.readframes(1 << 30), "<i2").astype(np.float32) / 32768
            media = {"audio": [samples]}
        inputs = self.processor(text=[text], **media, return_tensors="pt")
        said: str = self.generate(inputs, 160, sample=False)
        return said


def ask_about_media(speaker: Speaker) -> None:
    right = 0
    for name, question, wanted in QUESTIONS:
        kind = "image" if name.endswith(".png") else "audio"
        content = [{"type": kind}, {"type": "text", "text": question}]
        said = speaker.answer([{"role": "user", "content": content}], HERE / "samples" / name)
        good = all(word in said.lower() for word in wanted)
        right += good
        print(f"{'right' if good else 'WRONG'}  {name}: {question} -> {said}", flush=True)
    print(f"{right} of {len(QUESTIONS)} answered in words\n")


def chat(speaker: Speaker) -> None:
    for system, *asked in CHATS:
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        if system:
            print(f"system: {system}")
        for question in asked:
            messages.append({"role": "user", "content": question})
            said = speaker.answer(messages)
            messages.append({"role": "assistant", "content": said})
            print(f"user: {question}\n  model: {said}", flush=True)
        print()


def perplexities(checkpoint: Path, work: Path) -> None:
    """Print the perplexity on the held-out missions, scenarios, pages and words, for every size."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    weights = {name: tensor.float() for name, tensor in train.text_weights(checkpoint).items()}
    documents = [d for d in prose.load(work) if d.held_out]
    for source in sorted({d.source for d in documents}):
        texts = [d.text for d in documents if d.source == source]
        streams = [torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts][:60]
        tokens = sum(map(len, streams))
        for size in SIZES:
            logits_of = partial(forward_logits, weights, size=size)
            total = sum(evaluate.negative_log_likelihood(logits_of, stream) for stream in streams)
            print(f"{source} ({tokens} tokens), {size.name}: {math.exp(total / tokens):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=HERE)
    parser.add_argument("--work", type=Path, help="folder of texts: perplexity on held-out prose")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    speaker = Speaker(arguments.checkpoint)
    ask_about_media(speaker)
    chat(speaker)
    for start in PARAGRAPHS:
        inputs = speaker.processor(text=[start], return_tensors="pt")
        print(f"{start} … {speaker.generate(inputs, 120, sample=True)}\n", flush=True)
    if arguments.work:
        perplexities(arguments.checkpoint, arguments.work)


if __name__ == "__main__":
    main()
