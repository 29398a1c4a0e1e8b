"""Shows what the tiny Gemma 4 says, and measures its held-out perplexity in float32.

    PYTHONPATH=../tiny_gemma3n python evaluate4.py [CHECKPOINT] [--work WORK]

Chats are greedy, one of them with thoughts; paragraphs are sampled. With --work: perplexity on the held-out books and
prose, as the tiny Gemma 3n's evaluate.py and evaluate_chat.py measure it. transformers writes the samples; model4.py
computes perplexity.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import data
import evaluate
import prose
import torch
from model4 import forward_logits
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
CHATS: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("Your name is Ruth.", False, ("Hello", "What is your name?", "What colour is the sky?")),
    ("Answer in one word.", False, ("What colour is snow?", "Is fire cold?", "What do bees make?")),
    ("", False, ("Hello! I am David.", "I have a dog.", "What is my name?")),
    ("", False, ("Tell me a story about a cat.", "What was the name of the cat?", "Thank you!")),
    ("You are Peter, a baker.", False, ("Who are you?", "What do you do?", "What is 2 plus 3?")),
    ("You are Peter, a baker.", True, ("Who are you?", "What is 2 plus 3?", "Tell me a story about a boat.")),
)
"""The system turn, whether the model thinks first, and what the user says."""
PARAGRAPHS = ("Once upon a time", "One day", "I live in", "The captain", "When you arrive,", "In the beginning")
PROSE, MAX_DOCUMENTS = ("endless-sky", "gnome-help", "wesnoth", "wordnet"), 60


class Speaker:
    """A checkpoint and its tokenizer."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def generate(self, text: str, limit: int, *, sample: bool) -> str:
        """What follows `text`, which begins with `<bos>`; the marks of a thought stay, those of the end go."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        torch.manual_seed(1)
        settings = {"temperature": 0.7, "top_k": 40, "top_p": 0.95} if sample else {"top_k": None, "top_p": None}
        out = self.model.generate(ids, max_new_tokens=limit, do_sample=sample, **settings)
        said: str = self.tokenizer.decode(out[0, ids.shape[1] :])
        return said.replace("<turn|>", "").replace("<eos>", "").strip()

    def chat(self, system: str, thinking: bool, asked: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """What the user says, and the answer, thoughts included."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for question in asked:
            messages.append({"role": "user", "content": question})
            prompt = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
            said = self.generate(prompt, 240, sample=False)
            messages.append({"role": "assistant", "content": said})  # the template leaves its thought out
            yield question, said


def held_out(work: Path, tokenizer: Tokenizer) -> Iterator[tuple[str, list[Tensor], int]]:
    """Name, streams of ids and bytes of each held-out text."""
    chapters = [chapter for chapter in data.load_chapters(work) if chapter.held_out]
    streams = [torch.from_numpy(stream).long() for stream in data.token_streams(chapters, tokenizer)]
    yield "books", streams, sum(len(data.document(chapter).encode()) for chapter in chapters)
    documents = [d for d in prose.load(work) if d.held_out and d.source in PROSE]
    for source in sorted({d.source for d in documents}):
        texts = [d.text for d in documents if d.source == source][:MAX_DOCUMENTS]
        streams = [torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
        yield source, streams, sum(len(text.encode()) for text in texts)


def print_perplexities(checkpoint: Path, work: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    weights = {name: tensor.float() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    print("| held out | tokens | perplexity per token | per byte | bits per byte |\n|---|---:|---:|---:|---:|")
    for name, streams, text_bytes in held_out(work, tokenizer):
        total = sum(evaluate.negative_log_likelihood(partial(forward_logits, weights), stream) for stream in streams)
        tokens, per_byte = sum(map(len, streams)), total / text_bytes
        figures = f"{math.exp(total / tokens):.2f} | {math.exp(per_byte):.3f} | {per_byte / math.log(2):.3f}"
        print(f"| {name} | {tokens:,} | {figures} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=HERE)
    parser.add_argument("--work", type=Path, help="folder of texts: held-out perplexity")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    speaker = Speaker(arguments.checkpoint)
    for system, thinking, asked in CHATS:
        print(f"system{' (thinking)' if thinking else ''}: {system}")
        for question, said in speaker.chat(system, thinking, asked):
            print(f"user: {question}\n  model: {said}", flush=True)
        print()
    for start in PARAGRAPHS:
        print(f"{start} … {speaker.generate(f'<bos>{start}', 120, sample=True)}\n", flush=True)
    if arguments.work:
        print_perplexities(arguments.checkpoint, arguments.work)


if __name__ == "__main__":
    main()
