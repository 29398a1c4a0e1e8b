"""Measures the held-out perplexity of the tiny Gemma 3n's sizes in float32, plots it, and prints sample outputs.

    python evaluate.py --work WORK

It needs matplotlib. The held-out text is five whole books of both translations, none of whose lines was trained on.
model.py computes perplexity (train.py compares its logits with those of transformers); transformers writes the samples.
Effective parameters are all except the token and per-layer embedding tables, counted as Google counts Gemma 3n's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import data
import matplotlib
import torch
import train
from model import ALL, SIZES, Size, Weights, forward_logits
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

matplotlib.use("svg")
HERE = Path(__file__).parent
WINDOW, STRIDE = 512, 384
MIXES = tuple(
    Size(f"{wide} of 10 layers wide", ALL, tuple(512 if 2 <= i < 2 + wide else 256 for i in ALL)) for wide in (3, 8)
)
PROMPTS = ("And it came to pass", "In the beginning", "The king said to his servants, “")
QUESTIONS = (
    "Hello",
    "Tell me of bread.",
    "Continue: And the LORD said unto Moses,",
    "Say it in modern English: And he said unto them, Go ye up, and see what thou hast done.",
)


@dataclass(frozen=True, slots=True)
class Score:
    """The mean negative log likelihood (nats) of the held-out text, per token and per byte."""

    size: Size
    parameters: int
    per_token: float
    per_byte: float


def load_size(weights: Weights, size: Size, work: Path) -> PreTrainedModel:
    folder = work / "evaluated"
    train.write_checkpoint(folder, train.slice_weights(weights, size), size)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return reference.eval()


def effective_parameters(weights: Weights, size: Size) -> int:
    sliced = train.slice_weights(weights, size)
    return sum(tensor.numel() for name, tensor in sliced.items() if "embed_tokens" not in name)


@torch.no_grad()
def negative_log_likelihood(logits_of: Callable[[Tensor], Tensor], stream: Tensor) -> float:
    """The sum over the stream; each token sees `<bos>` and at least WINDOW - STRIDE tokens, if there are so many.

    `logits_of`: f32[1, WINDOW, vocabulary] of ids [1, WINDOW].
    """
    total = 0.0
    for start in range(0, len(stream), STRIDE):
        first = max(0, start + STRIDE - WINDOW)
        targets = stream[first : start + STRIDE]
        ids = torch.full((1, WINDOW), data.PAD)  # right padding: no token sees it
        ids[0, 0], ids[0, 1 : len(targets)] = data.BOS, targets[:-1]
        log_probabilities = logits_of(ids)[0, : len(targets)].log_softmax(-1)
        chosen = log_probabilities.gather(1, targets[:, None])[:, 0]
        total -= chosen[start - first :].double().sum().item()
    return total


def score(weights: Weights, size: Size, streams: list[Tensor], text_bytes: int) -> Score:
    total = sum(negative_log_likelihood(partial(forward_logits, weights, size=size), stream) for stream in streams)
    tokens = sum(len(stream) for stream in streams)
    return Score(size, effective_parameters(weights, size), total / tokens, total / text_bytes)


def plot(scores: list[Score], path: Path) -> None:
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tiny_gemma3n"
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    ordered = sorted(scores, key=lambda item: item.parameters)
    axes.plot([s.parameters / 1e6 for s in ordered], [math.exp(s.per_token) for s in ordered], color="0.8", zorder=1)
    named = {size.name for size in SIZES}
    for item in ordered:
        x, y, is_named = item.parameters / 1e6, math.exp(item.per_token), item.size.name in named
        axes.scatter(x, y, s=45 if is_named else 18, color="tab:blue" if is_named else "0.55", zorder=2)
        if is_named:
            axes.annotate(item.size.name, (x, y), xytext=(6, 6), textcoords="offset points")
    axes.set(xlabel="effective parameters (millions)", ylabel="held-out perplexity per token")
    axes.grid(alpha=0.3)
    axes.margins(x=0.12, y=0.15)
    figure.savefig(path, metadata={"Date": None})


@torch.no_grad()
def generate(reference: PreTrainedModel, tokenizer: Tokenizer, text: str, *, new_tokens: int, sample: bool) -> str:
    """The text that the model generates after `text`, which is encoded with `<bos>` in front."""
    ids = torch.tensor([tokenizer.encode(text).ids])
    torch.manual_seed(1)
    settings = {"temperature": 0.7, "top_k": 40, "top_p": 0.95} if sample else {"top_k": None, "top_p": None}
    out = reference.generate(ids, max_new_tokens=new_tokens, do_sample=sample, **settings)
    return tokenizer.decode(out[0, ids.shape[1] :].tolist())


def samples(weights: Weights, size: Size, work: Path, tokenizer: Tokenizer) -> list[str]:
    reference, chat = load_size(weights, size, work), AutoTokenizer.from_pretrained(HERE)
    lines = [f"- `{p}` …{generate(reference, tokenizer, p, new_tokens=60, sample=True)}" for p in PROMPTS]
    for question in QUESTIONS:
        prompt = chat.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        answer = generate(reference, tokenizer, prompt.removeprefix("<bos>"), new_tokens=80, sample=False)
        lines.append(f"- user: {question}\n  model: {answer}")
    return lines


def held_out_text(chapters: list[data.Chapter]) -> str:
    """The text of eval.txt: Ruth 1 and Jonah 2 of both translations."""
    wanted = (("Ruth", 1), ("Jonah", 2))
    return "".join(data.document(chapter) for chapter in chapters if (chapter.book, chapter.number) in wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of texts (the one that train.py used)")
    parser.add_argument("--checkpoint", type=Path, default=HERE)
    arguments = parser.parse_args()
    chapters = data.load_chapters(arguments.work)
    held_out = [chapter for chapter in chapters if chapter.held_out]
    tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    weights = {name: tensor.float() for name, tensor in train.text_weights(arguments.checkpoint).items()}
    streams = [torch.from_numpy(stream).long() for stream in data.token_streams(held_out, tokenizer)]
    text_bytes = sum(len(data.document(chapter).encode()) for chapter in held_out)
    print(f"held out: {sum(map(len, streams))} tokens, {text_bytes} bytes", flush=True)
    scores = [score(weights, size, streams, text_bytes) for size in (*SIZES, *MIXES)]
    print("| size | layers | effective parameters | perplexity per token | per byte | bits per byte |")
    print("|---|---:|---:|---:|---:|---:|")
    for s in scores:
        figures = f"{math.exp(s.per_token):.2f} | {math.exp(s.per_byte):.3f} | {s.per_byte / math.log(2):.3f}"
        print(f"| {s.size.name} | {len(s.size.layers)} | {s.parameters:,} | {figures} |")
    plot(scores, arguments.checkpoint / "perplexity.svg")
    (arguments.checkpoint / "eval.txt").write_text(held_out_text(held_out), encoding="utf-8")
    for size in (SIZES[0], SIZES[-1]):
        print(f"\n{size.name}:", *samples(weights, size, arguments.work, tokenizer), sep="\n")


if __name__ == "__main__":
    main()
