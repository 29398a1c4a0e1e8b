"""Continues the training of the tiny Gemma 3n: stories, definitions, scripture, chats about pictures, sounds and more.

    python train_on.py --work WORK --minutes 120 --out OUT

It needs what train_media.py needs. The towers do not change. Every size is trained as a slice of the same weights, one
size per step, most often the large one, so that width and depth pay off; in the last quarter of a run, each size trains
only what it has and the next smaller one has not. It resumes from WORK/on.pt; the schedule follows the clock. Every
CURVE_SECONDS, the held-out perplexity of every size is appended to WORK/curve.jsonl, and the averaged weights are saved
in WORK/points.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import data
import media_data
import media_model
import model
import numpy as np
import prose
import stories
import topics
import torch
import train_media
from media_chats import MediaChats, Tokens, given_rows
from model import SIZES, Functions, Size, Weights
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing
from trainer import WORKING, State, add_to_curve, exchange_parts, take_parts

HERE = Path(__file__).parent
WORKERS, ROWS, PARTS, LENGTH = 2, 1, 6, 512
"""A step has PARTS parts of ROWS rows; the workers take one part after the other, so that none waits long."""
RATE, EMBED_RATE, WARMUP_STEPS = 1.4, 0.003, 60
"""RATE: the peak, as a share of train.py's rates; from there, it falls linearly to zero. The embeddings' own rate is
lower than train.py's, because a rare word must not lose in one step what it has learned."""
SHARES = {"small": 0.06, "mid-narrow": 0.08, "mid-wide": 0.13, "large": 0.68, "mix": 0.05}
OWN_PART, OWN_SHARES = 0.25, {"mid-narrow": 0.2, "mid-wide": 0.3, "large": 0.5}
"""In the last part of a run, a step changes only what its size has and the next smaller one has not."""
SAVE_SECONDS, CURVE_SECONDS = 120.0, 600.0
MEDIA = 12_000
KINDS = {
    "stories": 0.17, "topics": 0.08, "austen": 0.13, "wordnet": 0.08, "sqlite": 0.05, "scripture": 0.12, "chat": 0.37,
}  # fmt: skip

FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "matformer.json",
    "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
"""The files of a checkpoint besides config.json and model.safetensors."""


def sample_size(rng: random.Random, shares: dict[str, float]) -> Size:
    """The size that one step trains."""
    name = rng.choices(list(shares), list(shares.values()))[0]
    if name == "mix":
        return Size("mix", model.ALL, tuple(rng.choice((256, 512)) for _ in model.ALL))
    return next(size for size in SIZES if size.name == name)


def own_part(name: str, tensor: Tensor, size: Size) -> Tensor | None:
    """A view of the part of a weight that a size has and the next smaller one has not; None if there is none.

    Sizes nest: a size adds whole layers, or further units to the feed-forward networks of layers.
    """
    parts = name.removeprefix("model.layers.").split(".", 1)
    if len(parts) == 1 or not parts[0].isdecimal():
        return None
    layer, rest = int(parts[0]), parts[1]
    smaller = SIZES[[known.name for known in SIZES].index(size.name) - 1]
    if layer not in size.layers:
        return None
    width = size.ffn_sizes[size.layers.index(layer)]
    before = smaller.ffn_sizes[smaller.layers.index(layer)] if layer in smaller.layers else 0
    if rest in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        return tensor[before:width] if before < width else None
    if rest == "mlp.down_proj.weight":
        return tensor[:, before:width] if before < width else None
    return tensor if before == 0 else None


@torch.no_grad()
def restore_all_but(weights: Weights, before: Weights, size: Size) -> None:
    """Undo a step for everything but a size's own part."""
    for name, tensor in weights.items():
        own = own_part(name, tensor, size)
        kept = None if own is None else own.clone()
        tensor.copy_(before[name])
        if own is not None and kept is not None:
            own.copy_(kept)


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows`: int64[n, LENGTH + 1]; `given`: f32[n, LENGTH, HIDDEN]; `shares`: f32[n, LENGTH] (model.forward_loss)."""

    rows: Tensor
    given: Tensor
    shares: Tensor


class Mixture:
    """Draws rows of every kind."""

    def __init__(self, work: Path, tokenizer: Tokenizer, media: train_media.Media, seed: int) -> None:
        self.tokenizer, self.rng = tokenizer, random.Random(seed)
        chapters = [chapter for chapter in data.load_chapters(work) if not chapter.held_out]
        self.scripture = data.Sampler(chapters, tokenizer, LENGTH, chat=0.0, seed=seed)
        self.conversations = data.Conversations(chapters, self.rng)
        texts = {
            source: [d.text for d in prose.load(work) if d.source == source and not d.held_out]
            for source in ("wordnet", "austen", "sqlite")
        }
        self.streams = {source: data.encode_documents(found, tokenizer) for source, found in texts.items()}
        self.meanings = [text.split("\n")[0] for text in texts["wordnet"]]
        self.explainer = topics.Explainer(self.rng)
        self.teller = stories.Storyteller(self.rng)
        self.media_chats = MediaChats(media, tokenizer, self.rng)

    def window(self, stream: NDArray[np.int32]) -> Tokens:
        """A part of the stream from a random place on."""
        start = self.rng.randrange(len(stream) - LENGTH)
        return Tokens([data.BOS, *stream[start : start + LENGTH].tolist()], [1.0] * (LENGTH + 1))

    def text(self, text: str) -> Tokens:
        ids = self.tokenizer.encode(text).ids
        return Tokens(ids, [1.0] * len(ids))

    def conversation(self) -> Tokens:
        kind = self.rng.random()
        if kind < 0.46:
            return self.media_chats.draw()
        if kind < 0.87:
            return self.text(stories.chat_text(self.teller.chat()))
        if kind < 0.94:
            return self.text(stories.chat_text(self.explainer.chat()))
        if kind < 0.97:
            return self.text(self.conversations.text())
        word, meaning = self.rng.choice(self.meanings).split(" ", 1)
        said = meaning.partition("): ")[2].split(". “")[0].rstrip(".")
        ask = self.rng.choice(
            (f"What does “{word}” mean?", f"What is the meaning of “{word}”?", f"Explain the word “{word}”.")
        )
        return self.text(stories.chat_text([("user", ask), ("model", f"{said[:1].upper()}{said[1:]}.")]))

    def row(self) -> Tokens:
        """LENGTH + 1 tokens."""
        kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "scripture":
            return Tokens(self.scripture.row().tolist(), [1.0] * (LENGTH + 1))
        if kind in self.streams:
            return self.window(self.streams[kind])
        row = Tokens()
        while len(row.ids) <= LENGTH:
            if kind == "chat":
                row.extend(self.conversation())
            else:
                said = self.teller.story().text if kind == "stories" else self.explainer.text()
                row.extend(self.text(said + "<eos>"))
        return Tokens(row.ids[: LENGTH + 1], row.shares[: LENGTH + 1], row.given)

    def batch(self, rows: int) -> Batch:
        drawn = [self.row() for _ in range(rows)]
        given = np.stack([given_rows(row, LENGTH, model.HIDDEN) for row in drawn])
        ids, shares = torch.tensor([row.ids for row in drawn]), torch.tensor([row.shares[1:] for row in drawn])
        return Batch(ids, torch.from_numpy(given), shares)


def local_gradients(state: State, functions: Functions, batch: Batch, size: Size) -> float:
    """The loss of these rows; their gradients are added to the state's."""
    given = batch.given.to(WORKING)
    loss = model.forward_loss(functions, state.working(), batch.rows, size, given, batch.shares)
    loss.backward()
    lost: float = loss.item()
    return lost


def learning_rate(step: int, progress: float) -> float:
    """Warm-up, then a linear fall to zero, and a second one from half of the peak for the last part of the run.

    `progress`: 0..1.
    """
    together = 1.0 - OWN_PART
    if progress >= together:
        return RATE * 0.5 * max(0.0, 1.0 - progress) / OWN_PART
    return RATE * min((step + 1) / WARMUP_STEPS, 1.0 - progress / together)


def held_out_rows(work: Path, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """A few rows of each held-out text, for the curve."""
    verses, modern = prose.held_out_texts(work)
    teller = stories.Storyteller(random.Random("held out"))
    texts = {"scripture": verses, "prose": modern, "stories": "\n\n".join(teller.story().text for _ in range(20))}
    streams = {name: tokenizer.encode(text, add_special_tokens=False).ids for name, text in texts.items()}
    return {name: torch.tensor(data.rows_of(ids, LENGTH, 8 * LENGTH)) for name, ids in streams.items()}


def perplexities(state: State, functions: Functions, rows: dict[str, Tensor]) -> dict[str, float]:
    """The perplexity of the averaged weights for every size and text."""
    working, found = state.working_average(), dict[str, float]()
    for text, ids in rows.items():
        for size in SIZES:
            losses = [
                model.forward_loss(
                    functions, working, part, size,
                    torch.zeros(len(part), LENGTH, model.HIDDEN, dtype=WORKING), torch.ones(len(part), LENGTH),
                ).item()
                for part in ids.split(ROWS) if len(part) == ROWS
            ]  # fmt: skip
            found[f"{text} {size.name}"] = round(math.exp(sum(losses) / len(losses)), 3)
    return found


@dataclass(frozen=True, slots=True)
class Run:
    """What one worker trains with, and its progress."""

    work: Path
    state: State
    functions: Functions
    mixture: Mixture
    seconds: float
    seed: int

    def compile(self, rank: int) -> None:
        """Compile in the first worker; the others find the code in the cache."""
        for turn in range(WORKERS):
            for size in (SIZES[1], SIZES[3]) if rank == turn else ():
                local_gradients(self.state, self.functions, self.mixture.batch(ROWS), size)
            distributed.barrier()

    def step(self, taken: Synchronized[int], limit: int) -> tuple[str, float]:
        """One step with all parts up to `limit`; return the size and the mean loss."""
        state, progress = self.state, self.state.elapsed / self.seconds
        own = progress >= 1.0 - OWN_PART
        size = sample_size(random.Random(self.seed + state.step), OWN_SHARES if own else SHARES)
        before = {name: tensor.detach().clone() for name, tensor in state.weights.items()} if own else {}
        state.gradients.zero_()
        lost = 0.0
        while take_parts(taken, limit):
            lost += local_gradients(state, self.functions, self.mixture.batch(ROWS), size)
        loss = exchange_parts(state, lost, PARTS, WORKERS)
        state.optimizer.step(learning_rate(state.step, progress))
        if own:
            restore_all_but(state.weights, before, size)
        state.average()
        state.step, state.tokens = state.step + 1, state.tokens + PARTS * ROWS * LENGTH
        return size.name, loss

    def train(self, taken: Synchronized[int], rows: dict[str, Tensor] | None) -> None:
        """Train until the time is over; the worker that has rows for the curve reports and saves."""
        state, losses = self.state, dict[str, float]()
        first_step, seen = state.step, state.elapsed
        last = saved = time.monotonic()
        while state.elapsed < self.seconds:
            size, loss = self.step(taken, (state.step - first_step + 1) * PARTS)
            losses[size] = 0.95 * losses.get(size, loss) + 0.05 * loss
            now = time.monotonic()
            state.elapsed, last = state.elapsed + now - last, now
            over = state.elapsed >= self.seconds
            if rows is not None and state.step % 25 == 0:
                shown = " ".join(f"{name} {value:.3f}" for name, value in sorted(losses.items()))
                speed = f"{state.tokens / state.elapsed:.0f} tokens/s"
                print(f"{state.elapsed:7.1f} s  step {state.step}  {speed}  {shown}", flush=True)
            if rows is not None and (over or now - saved > SAVE_SECONDS):
                state.save()
                last = saved = time.monotonic()
            if rows is not None and (over or state.elapsed - seen > CURVE_SECONDS):
                add_to_curve(self.work, state, perplexities(state, self.functions, rows))
                last, seen = time.monotonic(), state.elapsed


def work_alone(
    rank: int, work: Path, start: Weights, media: train_media.Media, seconds: float, seed: int, taken: Synchronized[int]
) -> None:
    """One of WORKERS single-threaded processes (as in train.py)."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=WORKERS)
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    state = State(work / "on.pt", start)
    state.optimizer.adam.param_groups[0]["base"] = EMBED_RATE
    mixture = Mixture(work, tokenizer, media, seed + WORKERS * state.step + rank)
    run = Run(work, state, Functions(compiled=True), mixture, seconds, seed)
    run.compile(rank)
    rows = held_out_rows(work, tokenizer) if rank == 0 else None
    if rows is not None and state.step == 0:
        add_to_curve(work, state, perplexities(state, run.functions, rows))
    run.train(taken, rows)
    distributed.destroy_process_group()


def load_towers(checkpoint: Path) -> train_media.Models:
    """The models of train_media.py, with the towers of a checkpoint."""
    models = train_media.Models(checkpoint, 0)
    tensors = load_file(checkpoint / "model.safetensors")
    models.towers.load_state_dict({name: tensors[f"model.{name}"].float() for name in models.towers.state_dict()})
    return models


def load_media(models: train_media.Models, work: Path) -> train_media.Media:
    """The soft tokens of the training sets, cached in WORK/soft.pt."""
    path = work / "soft.pt"
    if not path.exists():
        media_data.build_all(work / "media")
        made = train_media.media_of(models.eyes, models.sight, models.ears, work / "media", MEDIA)
        torch.save(made, path)
    loaded: train_media.Media = torch.load(path, weights_only=False)
    return loaded


def export(folder: Path, weights: Weights, models: train_media.Models) -> None:
    """Write model.safetensors and config.json; the other files of the checkpoint stay as they are."""
    weights = dict(weights)
    table = weights["model.embed_tokens.weight"].clone()
    table[model.PLE_VOCAB :] = table[data.PAD]
    weights["model.embed_tokens.weight"] = table
    for name, tensor in weights.items():
        if name.endswith("prediction_coefs.weight"):
            weights[name] = tensor.clamp(-model.COEF_CLIP, model.COEF_CLIP)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES if folder.resolve() != HERE.resolve() else ():
        (folder / name).write_bytes((HERE / name).read_bytes())
    media_model.write_checkpoint(folder, weights, dict(models.towers.named_parameters()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of texts, pictures, sounds and training state")
    parser.add_argument("--minutes", type=float, default=120.0, help="minutes of training, of all runs together")
    parser.add_argument("--start", type=Path, default=HERE, help="checkpoint to continue from")
    parser.add_argument("--out", type=Path, help="folder of the exported checkpoint (default: WORK/out)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--export-only", type=Path, metavar="STATE", help="only export WORK/on.pt or a saved point")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    models = load_towers(arguments.start)
    if not arguments.export_only:
        media = load_media(models, work)
        (work / "rendezvous").unlink(missing_ok=True)
        taken = multiprocessing.get_context("spawn").Value("q", 0)
        start = {name: tensor.float() for name, tensor in models.text.items()}
        multiprocessing.spawn(
            work_alone, (work, start, media, arguments.minutes * 60, arguments.seed, taken), nprocs=WORKERS
        )
    state = torch.load(arguments.export_only or work / "on.pt")
    export(arguments.out or work / "out", state["averaged"], models)


if __name__ == "__main__":
    main()
