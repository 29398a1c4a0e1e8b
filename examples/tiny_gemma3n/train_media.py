"""Teach the tiny Gemma 3n to see and to hear: train its towers, then its language model on what they give.

    python train_media.py --work WORK --text WORK/text --minutes 35 15 5 30

needs what train.py needs, and timm, torchvision, pillow, soxr and espeak-ng. The times are for the blocks of the vision
tower, the audio tower, the vision tower's fusion and projector, and the language model. Each part follows the clock and
resumes from WORK/media/*.pt.

Towers learn first, without the language model: the mean of a picture's or sound's soft tokens, as the projector gives
them, must point to the words of the answer, which are directions of the language model's own embedding table. Then the
language model learns to answer from soft tokens of frozen towers, beside text as before.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import data
import media_data
import media_model
import model
import numpy as np
import torch
import torch.nn.functional as F
import train
from media_data import COLOURS, FIGURES, WORDS, Arrays
from model import Functions, Weights
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing, nn

HERE = Path(__file__).parent
TOWER_RATE, LANGUAGE_RATE, BATCH, EMA = 3e-3, 1e-3, 32, 0.995
PICTURE_ROWS, SOUND_ROWS, TEXT_ROWS, TEXT_LENGTH = 16, 12, 1, 256
MEDIA, WARMUP_STEPS = 6_000, 30
SAVE_SECONDS = 60.0


class Fit:
    """A module in training by the clock: AdamW, an average of the weights, and the state on disk."""

    def __init__(self, path: Path, module: nn.Module, rate: float, seconds: float) -> None:
        self.path, self.module, self.rate, self.seconds = path, module, rate, seconds
        self.elapsed, self.step, self.shown = 0.0, 0, 0.0
        matrices = [p for p in module.parameters() if p.ndim > 1]
        vectors = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.averaged = {name: p.detach().clone() for name, p in module.named_parameters()}
        if path.exists():
            saved = torch.load(path)
            self.elapsed, self.step, self.averaged = saved["elapsed"], saved["step"], saved["averaged"]
            module.load_state_dict(saved["weights"])
            self.optimizer.load_state_dict(saved["optimizer"])

    def save(self) -> None:
        state = {"elapsed": self.elapsed, "step": self.step, "averaged": self.averaged}
        state |= {"weights": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").rename(self.path)

    def update(self, loss: Tensor) -> None:
        progress = self.elapsed / self.seconds
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.step + 1) / WARMUP_STEPS, (1.0 - progress) / 0.7 + 0.01)
        self.optimizer.zero_grad()
        loss.backward()
        self.share_gradients()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.shown = 0.98 * self.shown + 0.02 * loss.item() if self.step > 1 else loss.item()
        with torch.no_grad():
            for name, tensor in self.module.named_parameters():
                self.averaged[name].lerp_(tensor, 1.0 - min(EMA, self.step / (self.step + 10)))

    def share_gradients(self) -> None:
        """Gradients and clocks become the means of all workers'."""
        if not distributed.is_initialized():
            return
        tensors = list(self.module.parameters())
        found = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]
        flat = torch.cat([*(gradient.flatten() for gradient in found), torch.tensor([self.elapsed])])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        self.elapsed = flat[-1].item()
        for tensor, part in zip(tensors, flat[:-1].split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.grad = part.view_as(tensor)

    def run(self, losses: Iterator[Tensor], report: Callable[[], str]) -> None:
        """Train until the time is over (that of resumed runs included)."""
        last = saved = time.monotonic()
        while self.elapsed < self.seconds:
            self.update(next(losses))
            now = time.monotonic()
            self.elapsed, last = self.elapsed + now - last, now
            leads = not distributed.is_initialized() or distributed.get_rank() == 0
            if leads and (now - saved > SAVE_SECONDS or self.elapsed >= self.seconds):
                self.save()
                state = f"{self.path.stem} {self.elapsed:6.0f} s  step {self.step}  {self.shown:.4f}"
                print(f"{state}  {report()}", flush=True)
                last = saved = time.monotonic()

    def use_average(self) -> None:
        with torch.no_grad():
            for name, tensor in self.module.named_parameters():
                tensor.copy_(self.averaged[name])


# --- towers ----------------------------------------------------------------------------------------------------------


class Pointer(nn.Module):
    """Scores of words: soft tokens' mean along the directions of their pieces in the embedding table."""

    directions: Tensor

    def __init__(self, words: list[str], tokenizer: Tokenizer, table: Tensor) -> None:
        super().__init__()
        pieces = [tokenizer.encode(f" {word}", add_special_tokens=False).ids for word in words]
        mean = torch.stack([F.normalize(table[ids].float(), dim=-1).mean(0) for ids in pieces])
        self.register_buffer("directions", F.normalize(mean - mean.mean(0), dim=-1), persistent=False)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, pooled: Tensor) -> Tensor:
        return F.linear(pooled, self.directions) * self.scale


class Eyes(nn.Module):
    """The blocks of the vision tower, and what they are trained with: colour and figure from the last two stages."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.conv_stem, self.blocks = tower.conv_stem, tower.blocks
        channels = [stage[-1].pw_proj.conv.out_channels for stage in tower.blocks[-2:]]
        self.colour = nn.Linear(sum(channels), len(COLOURS))
        self.figure = nn.Linear(sum(channels), len(FIGURES))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Features of the last two stages of f32[n, 3, size, size] in 0..1."""
        x, stages = self.conv_stem(pixels), []
        for stage in self.blocks:
            x = stage(x)
            stages.append(x)
        return stages[-2:]

    def scores(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled = torch.cat([stage.mean((2, 3)) for stage in self(pixels)], 1)
        pooled = F.rms_norm(pooled, pooled.shape[1:])
        return self.colour(pooled), self.figure(pooled)


class Sight(nn.Module):
    """The rest of the way: fusion and projector, from features of the blocks to soft tokens."""

    def __init__(self, fusion: nn.Module, projector: nn.Module, tokenizer: Tokenizer, table: Tensor) -> None:
        super().__init__()
        self.fusion, self.projector = fusion, projector
        self.colour = Pointer(list(COLOURS), tokenizer, table)
        self.figure = Pointer(list(FIGURES), tokenizer, table)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Soft tokens f32[n, tokens, hidden] (Gemma3nModel.get_image_features)."""
        features = self.fusion(stages)
        soft: Tensor = self.projector(inputs_embeds=features.flatten(2).mT * features.shape[1] ** 0.5)
        return soft

    def scores(self, stages: list[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = self(stages).mean(1)
        return self.colour(pooled), self.figure(pooled)


class Ears(nn.Module):
    """The audio tower, its projector, and what it is trained with."""

    def __init__(self, towers: nn.ModuleDict, tokenizer: Tokenizer, table: Tensor) -> None:
        super().__init__()
        self.audio_tower, self.embed_audio = towers["audio_tower"], towers["embed_audio"]
        self.word = Pointer(list(WORDS), tokenizer, table)

    def forward(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Soft tokens f32[n, tokens, hidden] of f32[n, frames, 128], and true for those inside each sound."""
        padding = torch.arange(mel.shape[1]) >= frames[:, None]
        heard = self.audio_tower(mel, padding)
        return self.embed_audio(inputs_embeds=heard.last_hidden_state), ~heard.audio_mel_mask

    def loss(self, mel: Tensor, frames: Tensor, word: Tensor) -> Tensor:
        soft, valid = self(mel, frames)
        pooled = (soft * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        return F.cross_entropy(self.word(pooled), word)


def load_set(work: Path, name: str) -> Arrays:
    with np.load(work / f"{name}.npz") as file:
        return dict(file)


def pixels_of(arrays: Arrays, chosen: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(arrays["pixels"][chosen]).permute(0, 3, 1, 2).float() / 255


def mel_of(arrays: Arrays, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    frames = torch.from_numpy(arrays["frames"][chosen])
    return torch.from_numpy(arrays["mel"][chosen, : int(frames.max())]).float(), frames


def labels(arrays: Arrays, name: str, chosen: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(arrays[name][chosen])


def vary_pixels(pixels: Tensor) -> Tensor:
    """Each a little turned, moved and resized, in another light."""
    count = len(pixels)
    turn, scale = 0.15 * torch.randn(count), 1 + 0.08 * torch.randn(count)
    cos, sin, move = turn.cos() * scale, turn.sin() * scale, 0.08 * torch.randn(count, 2)
    affine = torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    light = 1 + 0.08 * torch.randn(count, 1, 1, 1)
    return (moved * light + 0.03 * torch.randn(count, 3, 1, 1)).clamp(0, 1)


def swap_channels(pixels: Tensor) -> Tensor:
    """In other colours: red, green and blue change places, and half of the pictures are negatives."""
    order = torch.rand(len(pixels), 3).argsort(1)[..., None, None].expand_as(pixels)
    swapped = pixels.gather(1, order)
    return torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, swapped, 1 - swapped)


def vary_mel(mel: Tensor, frames: Tensor) -> Tensor:
    """Another voice and microphone: bands moved, tilted and masked; what is past the end stays zero."""
    count, length, bins = mel.shape
    place = torch.arange(bins) * (1 + 0.06 * torch.randn(count, 1)) + 2.0 * torch.randn(count, 1)
    place = place.clamp(0, bins - 1.001)
    low, part = place.long(), (place - place.long())[:, None]
    index = low[:, None].expand(-1, length, -1)
    moved = mel.gather(2, index) * (1 - part) + mel.gather(2, index + 1) * part
    tilt = torch.randn(count, 1, 1) * torch.linspace(-0.8, 0.8, bins) + 0.7 * torch.randn(count, 1, 1)
    moved = (moved + tilt).clamp(min=float(np.log(1e-5)))
    for _ in range(2):
        start, width = torch.randint(0, bins, (count, 1)), torch.randint(0, 14, (count, 1))
        band = (torch.arange(bins) >= start) & (torch.arange(bins) < start + width)
        moved = moved.masked_fill(band[:, None], float(np.log(1e-5)))
    return moved * (torch.arange(length) < frames[:, None])[..., None]


def picture_losses(
    arrays: Arrays, rng: np.random.Generator, score: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Iterator[Tensor]:
    """Half of each batch is shown in other colours, and only its figures are asked for."""
    while True:
        chosen = rng.integers(0, len(arrays["colour"]), BATCH)
        pixels, half = vary_pixels(pixels_of(arrays, chosen)), BATCH // 2
        colour, figure = score(torch.cat([pixels[:half], swap_channels(pixels[half:])]))
        yield F.cross_entropy(colour[:half], labels(arrays, "colour", chosen[:half])) + F.cross_entropy(
            figure, labels(arrays, "figure", chosen)
        )


def audio_losses(ears: Ears, arrays: Arrays, rng: np.random.Generator) -> Iterator[Tensor]:
    """Sounds of about the same length share a batch."""
    order = np.argsort(arrays["frames"] + rng.random(len(arrays["frames"])))
    while True:
        start = int(rng.integers(0, len(order) - 4 * BATCH))
        chosen = rng.choice(order[start : start + 4 * BATCH], BATCH, replace=False)
        mel, frames = mel_of(arrays, chosen)
        yield ears.loss(vary_mel(mel, frames), frames, labels(arrays, "word", chosen))


@torch.no_grad()
def vision_accuracy(score: Callable[[Tensor], tuple[Tensor, Tensor]], arrays: Arrays, count: int) -> float:
    """Pictures of which both colour and figure are right."""
    right = 0
    for part in np.array_split(np.arange(count), max(1, count // BATCH)):
        colour, figure = (scores.argmax(1) for scores in score(pixels_of(arrays, part)))
        same = (colour == labels(arrays, "colour", part)) & (figure == labels(arrays, "figure", part))
        right += int(same.sum())
    return right / count


@torch.no_grad()
def audio_accuracy(ears: Ears, arrays: Arrays, count: int) -> float:
    right = 0
    for part in np.array_split(np.arange(count), max(1, count // BATCH)):
        soft, valid = ears(*mel_of(arrays, part))
        pooled = (soft * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        right += int((ears.word(pooled).argmax(1) == labels(arrays, "word", part)).sum())
    return right / count


def train_vision(eyes: Eyes, work: Path, seconds: float) -> None:
    fit = Fit(work / "vision.pt", eyes, TOWER_RATE, seconds)
    arrays, held_out = load_set(work, "pictures_train"), load_set(work, "pictures_held_out")
    losses = picture_losses(arrays, np.random.default_rng(fit.step), eyes.scores)
    fit.run(losses, lambda: f"held out {vision_accuracy(eyes.scores, held_out, 200):.3f}")
    fit.use_average()
    print(f"vision: held out {vision_accuracy(eyes.scores, held_out, len(held_out['colour'])):.4f}", flush=True)


def train_audio(ears: Ears, work: Path, seconds: float) -> None:
    fit = Fit(work / "audio.pt", ears, TOWER_RATE, seconds)
    arrays, held_out = load_set(work, "sounds_train"), load_set(work, "sounds_held_out")
    losses = audio_losses(ears, arrays, np.random.default_rng(fit.step))
    fit.run(losses, lambda: f"held out {audio_accuracy(ears, held_out, 200):.3f}")
    fit.use_average()
    print(f"audio: held out {audio_accuracy(ears, held_out, len(held_out['word'])):.4f}", flush=True)


def train_sight(eyes: Eyes, sight: Sight, work: Path, seconds: float) -> None:
    """Fusion and projector behind the trained blocks, which stay as they are."""
    fit = Fit(work / "sight.pt", sight, TOWER_RATE, seconds)
    arrays, held_out = load_set(work, "pictures_train"), load_set(work, "pictures_held_out")

    def score(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            stages = eyes(pixels)
        return sight.scores(stages)

    losses = picture_losses(arrays, np.random.default_rng(fit.step), score)
    fit.run(losses, lambda: f"held out {vision_accuracy(score, held_out, 200):.3f}")
    fit.use_average()
    print(f"sight: held out {vision_accuracy(score, held_out, len(held_out['colour'])):.4f}", flush=True)


# --- language model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Media:
    """Soft tokens of the training sets, and the embeddings of the towers' own tokens that stand around them."""

    pictures: Tensor
    """f32[n, tokens, hidden]"""
    colour: NDArray[np.int64]
    figure: NDArray[np.int64]
    sounds: Tensor
    valid: Tensor
    """Soft tokens of each sound; int64[n]"""
    word: NDArray[np.int64]
    hard: dict[int, Tensor]


@torch.no_grad()
def media_of(eyes: Eyes, sight: Sight, ears: Ears, work: Path, count: int = MEDIA) -> Media:
    """Of `count` pictures and as many sounds, each of the sets in turn.

    Sounds are filled up with the padding as in Gemma3nModel.forward.
    """
    shown, spoken = load_set(work, "pictures_train"), load_set(work, "sounds_train")
    ids = {name: torch.tensor([[token]]) for name, token in media_model.TOWER_TOKENS.items()}
    hard = {
        media_model.IMAGE_END: sight.projector(input_ids=ids["<end_of_image>"])[0, 0],
        media_model.AUDIO_END: ears.embed_audio(input_ids=ids["<end_of_audio>"])[0, 0],
    }
    padding = ears.embed_audio(input_ids=torch.tensor([[media_model.AUDIO_PADDING]]))[0, 0]
    pictures, parts = [], np.array_split(np.arange(count), count // BATCH)
    sounds, valid = padding.repeat(count, media_model.AUDIO_TOKENS, 1), torch.zeros(count).long()
    for part in parts:
        pictures.append(sight(eyes(vary_pixels(pixels_of(shown, part % len(shown["colour"]))))))
        mel, frames = mel_of(spoken, part % len(spoken["word"]))
        soft, there = ears(vary_mel(mel, frames), frames)
        sounds[part[0] : part[-1] + 1, : soft.shape[1]] = torch.where(there[..., None], soft, padding)
        valid[part] = there.sum(1)
    seen, heard = np.arange(count) % len(shown["colour"]), np.arange(count) % len(spoken["word"])
    return Media(
        torch.cat(pictures), shown["colour"][seen], shown["figure"][seen], sounds, valid, spoken["word"][heard], hard
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Conversations of one length up to their answers, which are filled up with <pad>."""

    ids: Tensor
    given: Tensor
    answer: int
    """Position of the last token before the answers."""


class MediaSampler:
    """Draws questions about pictures and sounds, in the chat format, with their answers."""

    def __init__(self, media: Media, tokenizer: Tokenizer, seed: int) -> None:
        self.media, self.tokenizer, self.rng = media, tokenizer, random.Random(seed)

    def pictures(self, count: int) -> Rows:
        media, chosen = self.media, [self.rng.randrange(len(self.media.pictures)) for _ in range(count)]
        kind = self.rng.random()
        answers = [media_data.picture_answer(media.colour[i], media.figure[i], kind) for i in chosen]
        soft = "<start_of_image>" + "<image_soft_token>" * media_model.IMAGE_TOKENS + "<end_of_image>"
        question = self.rng.choice(media_data.picture_questions(kind))
        return self.rows(soft, question, answers, media.pictures[chosen], media_model.IMAGE_SOFT)

    def sounds(self, count: int) -> Rows:
        """Half of the batches have no padding: other programs than transformers leave it out."""
        media, kept = self.media, media_model.AUDIO_TOKENS
        chosen = [self.rng.randrange(len(media.sounds)) for _ in range(count)]
        if self.rng.random() < 0.5:
            kept = int(media.valid[chosen[0]])
            alike = torch.nonzero(media.valid == kept)[:, 0].tolist()
            chosen = [self.rng.choice(alike) for _ in range(count)]
        soft = "<start_of_audio>" + "<audio_soft_token>" * kept + "<end_of_audio>"
        answers = [WORDS[media.word[i]] for i in chosen]
        question = self.rng.choice(media_data.SOUND_QUESTIONS)
        return self.rows(soft, question, answers, media.sounds[chosen, :kept], media_model.AUDIO_SOFT)

    def rows(self, block: str, question: str, answers: list[str], soft: Tensor, soft_id: int) -> Rows:
        parts = [f"\n\n{block}\n\n", question]
        if self.rng.random() < 0.3:
            parts.reverse()
        prompt = f"<start_of_turn>user\n{''.join(parts)}<end_of_turn>\n<start_of_turn>model\n"
        start = self.tokenizer.encode(prompt).ids
        ends = [self.tokenizer.encode(f"{answer}<end_of_turn>", add_special_tokens=False).ids for answer in answers]
        width = max(map(len, ends))
        ids = torch.tensor([start + end + [data.PAD] * (width - len(end)) for end in ends])
        given = torch.zeros(*ids.shape, model.HIDDEN)
        first = start.index(soft_id)
        given[:, first : first + soft.shape[1]] = soft
        for token, row in self.media.hard.items():
            given[ids == token] = row
        return Rows(ids, given, len(start) - 1)


class Language(nn.Module):
    """The language model. The layers that write no keys that others read, and those before them, learn."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.fixed: Weights = {}
        for name, tensor in weights.items():
            if self.learns(name):
                self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor.float().clone()))
            else:
                self.fixed[name] = tensor.float()

    @staticmethod
    def learns(name: str) -> bool:
        """The last two layers with keys and values of their own, and those after them."""
        return any(name.startswith(f"model.layers.{i}.") for i in range(model.KV_LAYERS - 2, model.LAYERS))

    def weights(self) -> Weights:
        return self.fixed | {name.replace("/", "."): tensor for name, tensor in self.named_parameters()}

    def loss(self, rows: Rows, size: model.Size) -> Tensor:
        """Mean cross entropy of the answers. Rows are shorter than the window, so that every layer sees all."""
        w, ids = self.weights(), rows.ids[:, :-1]
        head = {k: v for k, v in w.items() if ".layers." not in k}
        streams, ple = model.embed_inputs(head, ids, rows.given[:, :-1])
        length = ids.shape[1]
        ropes = {kind: model.rope_table(length, theta, ids.device) for kind, theta in model.THETA.items()}
        mask = torch.arange(length) <= torch.arange(rows.answer, length)[:, None]
        shared: dict[str, tuple[Tensor, Tensor]] = {}
        for i, ffn_size in zip(size.layers, size.ffn_sizes, strict=True):
            kind, inputs, short = model.TYPES[i], ple[:, :, i], i >= model.KV_LAYERS
            rope, layer = ropes[kind], model.layer_weights(w, i)
            if short:  # only what the answers need
                inputs, rope = inputs[:, rows.answer :], (rope[0][rows.answer :], rope[1][rows.answer :])
                streams = tuple(s[:, -(length - rows.answer) :] for s in streams)
            streams, shared[kind] = model.layer(
                layer, streams, inputs, rope, None, shared[kind] if short else None, ffn_size,
                i < model.SPARSE_LAYERS, mask if short else None,
            )  # fmt: skip
        targets = rows.ids[:, rows.answer + 1 :]
        logits = model.unembed(head, streams)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=data.PAD)


def train_language(text: Path, media: Media, work: Path, seconds: float, workers: int) -> None:
    (work / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(work_alone, (workers, text, media, work, seconds), nprocs=workers)


def work_alone(rank: int, workers: int, text: Path, media: Media, work: Path, seconds: float) -> None:
    """One of several processes that train the same weights on rows of their own (as in train.py)."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=workers)
    language, tokenizer = Language(train.text_weights(text)), load_tokenizer(text)
    fit = Fit(work / "media" / "language.pt", language, LANGUAGE_RATE, seconds)
    seed = workers * fit.step + rank
    sampler, sizes = MediaSampler(media, tokenizer, seed), random.Random(seed)
    chapters = [chapter for chapter in data.load_chapters(work) if not chapter.held_out][rank::workers]
    texts = data.Sampler(chapters, tokenizer, TEXT_LENGTH, chat=train.CHAT, seed=seed)
    functions, shown = Functions(compiled=False), [0.0, 0.0, 0.0]

    def losses() -> Iterator[Tensor]:
        while True:
            size = train.sample_size(sizes)
            parts = [
                language.loss(sampler.pictures(PICTURE_ROWS), size),
                language.loss(sampler.sounds(SOUND_ROWS), size),
                model.forward_loss(functions, language.weights(), torch.from_numpy(texts.batch(TEXT_ROWS)), size),
            ]
            share = 1 / min(20, fit.step + 1)
            shown[:] = [old + share * (new.item() - old) for old, new in zip(shown, parts, strict=True)]
            yield parts[0] + parts[1] + parts[2]

    fit.run(losses(), lambda: "pictures {:.3f} sounds {:.3f} text {:.3f}".format(*shown))
    distributed.destroy_process_group()


# --- all of it -------------------------------------------------------------------------------------------------------

PARTS = ("vision", "audio", "sight", "language")


def load_average(path: Path, module: nn.Module) -> None:
    """What `Fit` left of a part that was trained."""
    averaged = torch.load(path)["averaged"]
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(averaged[name])


def load_tokenizer(text: Path) -> Tokenizer:
    """A text-only checkpoint's, with the towers' tokens."""
    document = (text / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer.from_str(media_model.tokenizer_document(document))


class Models:
    """All that is trained, built around one set of towers."""

    def __init__(self, text: Path, seed: int) -> None:
        self.text = train.text_weights(text)
        table = self.text["model.embed_tokens.weight"]
        self.tokenizer = load_tokenizer(text)
        self.towers = media_model.new_towers(seed)
        tower = self.towers["vision_tower"].timm_model
        self.eyes = Eyes(tower)
        self.sight = Sight(tower.msfa, self.towers["embed_vision"], self.tokenizer, table)
        self.ears = Ears(self.towers, self.tokenizer, table)

    def load_towers(self, work: Path) -> None:
        for name, module in (("vision", self.eyes), ("sight", self.sight), ("audio", self.ears)):
            load_average(work / f"{name}.pt", module)


def train_part(part: str, models: Models, arguments: argparse.Namespace, seconds: float) -> None:
    work, media = arguments.work, arguments.work / "media"
    if part == "vision":
        train_vision(models.eyes, media, seconds)
    elif part == "audio":
        train_audio(models.ears, media, seconds)
    elif part == "sight":
        load_average(media / "vision.pt", models.eyes)
        train_sight(models.eyes, models.sight, media, seconds)
    else:
        models.load_towers(media)
        taught = media_of(models.eyes, models.sight, models.ears, media)
        train_language(arguments.text, taught, work, seconds, arguments.workers)


def export(models: Models, work: Path, text: Path, folder: Path) -> None:
    """Write every file of the checkpoint."""
    models.load_towers(work / "media")
    language = Language(models.text)
    load_average(work / "media" / "language.pt", language)
    folder.mkdir(parents=True, exist_ok=True)
    names = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "matformer.json"
    for name in names:
        (folder / name).write_bytes((text / name).read_bytes())
    media_model.write_checkpoint(folder, language.weights(), dict(models.towers.named_parameters()))
    media_model.write_processor(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of texts, pictures, sounds and training state")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to train (default: all)")
    parser.add_argument("--minutes", type=float, nargs=4, default=(35.0, 15.0, 5.0, 30.0), help="for each part")
    parser.add_argument("--text", type=Path, default=HERE, help="checkpoint of the language model to start from")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the exported checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="for the towers")
    parser.add_argument("--workers", type=int, default=2, help="processes that train the language model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    (arguments.work / "media").mkdir(parents=True, exist_ok=True)
    media_data.build_all(arguments.work / "media")
    models = Models(arguments.text, 0)
    for part, minutes in zip(PARTS, arguments.minutes, strict=True):
        if part in arguments.parts:
            train_part(part, models, arguments, 60 * minutes)
    if "language" in arguments.parts:
        export(models, arguments.work, arguments.text, arguments.out)


if __name__ == "__main__":
    main()
