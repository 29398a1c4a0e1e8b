"""Trains the tiny Gemma 4 on the CPU, from the weights of the tiny Gemma 3n or from a checkpoint of its own.

    PYTHONPATH=../tiny_gemma3n python train4.py --work WORK --tokens 1200000 --out OUT

It needs torch, transformers >= 5.23, tokenizers, safetensors, a C++ compiler (for torch.compile), and Debian 12's
apt-get. It resumes from WORK/on.pt. The learning rate follows the tokens trained, so that a run may be stopped for any
time, with SIGSTOP too; while it has not begun to fall, another --tokens may be given. Every CURVE_STEPS steps, the
held-out perplexities are appended to WORK/curve.jsonl, and the averaged weights are saved in WORK/points.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import data
import model4
import numpy as np
import prose
import topics
import torch
from carry_over import carry_over
from chats4 import Chats, Sample, Storyteller
from model import Weights
from model4 import Functions
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing
from trainer import State, add_to_curve, exchange_parts, take_parts
from transformers import AutoModelForCausalLM, Gemma4TextConfig

HERE = Path(__file__).parent
GEMMA_3N = HERE.parent / "tiny_gemma3n"
WORKERS, PARTS, LENGTH = 2, 4, 512
RATE, EMBED_RATE, WARMUP_STEPS, COOLDOWN = 1.6, 0.004, 20, 0.5
"""RATE: as a share of trainer's rates. In the last COOLDOWN of the tokens, it falls linearly to zero."""
SAVE_SECONDS, CURVE_STEPS = 120.0, 100
KINDS = {"stories": 0.20, "topics": 0.04, "wordnet": 0.09, "sqlite": 0.05, "scripture": 0.05, "chat": 0.57}
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
"""The files of a checkpoint besides config.json and model.safetensors."""


class Mixture:
    """Draws rows of every kind."""

    def __init__(self, work: Path, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer, self.rng = tokenizer, random.Random(seed)
        chapters = [chapter for chapter in data.load_chapters(work) if not chapter.held_out]
        self.scripture = data.Sampler(chapters, tokenizer, LENGTH, chat=0.0, seed=seed)
        documents = [d for d in prose.load(work) if not d.held_out]
        self.streams = {
            source: data.encode_documents([d.text for d in documents if d.source == source], tokenizer)
            for source in ("wordnet", "sqlite")
        }
        self.explainer = topics.Explainer(self.rng)
        self.chats = Chats(self.rng, [d.text.split("\n")[0] for d in documents if d.source == "wordnet"])

    def window(self, stream: NDArray[np.int32]) -> Sample:
        """A part of the stream from a random place on."""
        start = self.rng.randrange(len(stream) - LENGTH)
        return Sample([data.BOS, *stream[start : start + LENGTH].tolist()], [1.0] * (LENGTH + 1))

    def text(self, text: str) -> Sample:
        ids = self.tokenizer.encode(text + "<eos>").ids
        return Sample(ids, [1.0] * len(ids))

    def draw(self, kind: str) -> Sample:
        if kind == "stories":
            return self.text(self.chats.teller.story().text)
        return self.text(self.explainer.text()) if kind == "topics" else self.chats.draw()

    def row(self) -> Sample:
        """LENGTH + 1 tokens."""
        kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "scripture":
            return Sample(self.scripture.row().tolist(), [1.0] * (LENGTH + 1))
        if kind in self.streams:
            return self.window(self.streams[kind])
        ids, shares = list[int](), list[float]()
        while len(ids) <= LENGTH:
            drawn = self.draw(kind)
            ids, shares = ids + drawn.ids, shares + drawn.shares
        return Sample(ids[: LENGTH + 1], shares[: LENGTH + 1])

    def batch(self) -> tuple[Tensor, Tensor]:
        """One row, and how much each token but the first counts."""
        drawn = self.row()
        return torch.tensor([drawn.ids]), torch.tensor([drawn.shares[1:]])


def local_gradients(state: State, functions: Functions, rows: Tensor, shares: Tensor) -> float:
    """The loss of these rows; their gradients are added to the state's."""
    loss = model4.forward_loss(functions, state.working(), rows, shares)
    loss.backward()
    lost: float = loss.item()
    return lost


def learning_rate(step: int, progress: float) -> float:
    """Warm-up, plateau, then a linear fall to zero; `progress`: 0..1."""
    return RATE * max(0.0, min(1.0, (step + 1) / WARMUP_STEPS, (1.0 - progress) / COOLDOWN))


def held_out_rows(work: Path, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """A few rows of each held-out text, for the curve; stories and chats are new draws."""
    rng = random.Random("held out")
    chats, teller = Chats(rng, [d.text.split("\n")[0] for d in prose.load(work) if d.held_out]), Storyteller(rng)
    verses, modern = prose.held_out_texts(work)
    texts = {"verses": verses, "prose": modern, "stories": "\n\n".join(teller.story().text for _ in range(20))}
    streams = {name: tokenizer.encode(text, add_special_tokens=False).ids for name, text in texts.items()}
    streams["chats"] = [i for _ in range(30) for i in chats.encode(chats.render(chats.turns()))]
    return {name: torch.tensor(data.rows_of(ids, LENGTH, 6 * LENGTH + 1)) for name, ids in streams.items()}


def perplexities(state: State, functions: Functions, rows: dict[str, Tensor]) -> dict[str, float]:
    """The perplexity of the averaged weights on each text."""
    working, found = state.working_average(), dict[str, float]()
    for text, ids in rows.items():
        losses = [
            model4.forward_loss(functions, working, row[None], torch.ones(1, LENGTH)).item() for row in ids.unbind()
        ]
        found[text] = round(math.exp(sum(losses) / len(losses)), 3)
    return found


@dataclass(frozen=True, slots=True)
class Run:
    """What one worker trains with, and its progress. Its clock counts seconds of this process on the processor."""

    work: Path
    state: State
    functions: Functions
    mixture: Mixture
    tokens: int

    def step(self, taken: Synchronized[int], limit: int) -> float:
        """One step with all parts up to `limit`; return the mean loss."""
        state, lost = self.state, 0.0
        state.gradients.zero_()
        while take_parts(taken, limit):
            lost += local_gradients(state, self.functions, *self.mixture.batch())
        loss = exchange_parts(state, lost, PARTS, WORKERS)
        state.optimizer.step(learning_rate(state.step, state.tokens / self.tokens))
        state.average()
        state.step, state.tokens = state.step + 1, state.tokens + PARTS * LENGTH
        return loss

    def train(self, taken: Synchronized[int], rows: dict[str, Tensor] | None) -> None:
        """Train until all tokens are trained; the worker that has rows for the curve reports and saves."""
        state, first_step, mean = self.state, self.state.step, 0.0
        last, saved = time.process_time(), time.monotonic()
        while state.tokens < self.tokens:
            loss = self.step(taken, (state.step - first_step + 1) * PARTS)
            mean = loss if mean == 0.0 else 0.9 * mean + 0.1 * loss
            now = time.process_time()
            state.elapsed, last = state.elapsed + now - last, now
            over = state.tokens >= self.tokens
            if rows is not None and state.step % 10 == 0:
                clock = time.strftime("%H:%M:%S")
                print(f"{clock} {state.elapsed:7.1f} s  step {state.step}  {state.tokens}  {mean:.3f}", flush=True)
            if rows is not None and (over or time.monotonic() - saved > SAVE_SECONDS):
                state.save()
                saved = time.monotonic()
            if rows is not None and (over or state.step % CURVE_STEPS == 0):
                add_to_curve(self.work, state, perplexities(state, self.functions, rows))


def work_alone(rank: int, work: Path, start: Weights, tokens: int, seed: int, taken: Synchronized[int]) -> None:
    """One of WORKERS single-threaded processes that train the same weights, each on its own rows."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=WORKERS, timeout=timedelta(hours=6)
    )
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    state = State(work / "on.pt", start)
    state.optimizer.adam.param_groups[0]["base"] = EMBED_RATE
    mixture = Mixture(work, tokenizer, seed + WORKERS * state.step + rank)
    run = Run(work, state, Functions(compiled=True), mixture, tokens)
    for turn in range(WORKERS):  # the first compiles, the others find the code in the cache
        if rank == turn:
            local_gradients(state, run.functions, *mixture.batch())
        distributed.barrier()
    rows = held_out_rows(work, tokenizer) if rank == 0 else None
    if rows is not None and state.step == 0:
        add_to_curve(work, state, perplexities(state, run.functions, rows))
    run.train(taken, rows)
    distributed.destroy_process_group()


def first_weights(start: Path, seed: int) -> Weights:
    """float32 weights of a tiny Gemma 4's checkpoint, or those that a tiny Gemma 3n's gives."""
    prefix, tensors = "model.language_model.", load_file(start / "model.safetensors")
    old = {"model." + name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)}
    return carry_over(old, seed) if old else {name: tensor.float() for name, tensor in tensors.items()}


def text_config() -> Gemma4TextConfig:
    return Gemma4TextConfig(
        architectures=["Gemma4ForCausalLM"], dtype="bfloat16", tie_word_embeddings=True,
        vocab_size=model4.VOCAB, vocab_size_per_layer_input=model4.VOCAB, hidden_size=model4.HIDDEN,
        hidden_size_per_layer_input=model4.PLE, intermediate_size=model4.FFN, use_double_wide_mlp=True,
        num_hidden_layers=model4.LAYERS, num_attention_heads=model4.HEADS, num_key_value_heads=model4.KV_HEADS,
        head_dim=model4.HEAD_DIM["sliding_attention"], global_head_dim=model4.HEAD_DIM["full_attention"],
        layer_types=list(model4.TYPES), sliding_window=model4.WINDOW, rms_norm_eps=model4.EPS,
        num_kv_shared_layers=model4.LAYERS - model4.KV_LAYERS, max_position_embeddings=model4.MAX_POSITIONS,
        rope_parameters={
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        final_logit_softcapping=model4.SOFTCAP, pad_token_id=data.PAD, bos_token_id=data.BOS,
        eos_token_id=[data.EOS, 5],
    )  # fmt: skip


def export(folder: Path, weights: Weights) -> None:
    """Write every file of the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    text_config().save_pretrained(folder)
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in sorted(weights.items())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in FILES if folder.resolve() != HERE.resolve() else ():
        (folder / name).write_bytes((HERE / name).read_bytes())


@torch.no_grad()
def difference_from_transformers(folder: Path) -> float:
    """The largest difference between logits (f32) of model4 and of transformers, for a checkpoint."""
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    ids = torch.randint(0, model4.VOCAB, (2, 3 * model4.WINDOW), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    difference = (model4.forward_logits(weights, ids) - reference.eval()(input_ids=ids).logits).abs().max()
    return float(difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of texts and training state")
    parser.add_argument("--tokens", type=int, default=1_200_000, help="tokens to train, those of earlier runs too")
    parser.add_argument("--start", type=Path, default=GEMMA_3N, help="checkpoint whose weights to begin with")
    parser.add_argument("--out", type=Path, help="folder of the exported checkpoint (default: WORK/out)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--export-only", type=Path, metavar="STATE", help="only export WORK/on.pt or a saved point")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not arguments.export_only:
        (work / "rendezvous").unlink(missing_ok=True)
        taken = multiprocessing.get_context("spawn").Value("q", 0)
        start = first_weights(arguments.start, arguments.seed)
        multiprocessing.spawn(work_alone, (work, start, arguments.tokens, arguments.seed, taken), nprocs=WORKERS)
    state, out = torch.load(arguments.export_only or work / "on.pt"), arguments.out or work / "out"
    export(out, state["averaged"])
    difference = difference_from_transformers(out)
    print(f"max logit difference from transformers: {difference:.1e}")
    assert difference < 1e-3, f"logits differ from transformers by {difference}"


if __name__ == "__main__":
    main()
