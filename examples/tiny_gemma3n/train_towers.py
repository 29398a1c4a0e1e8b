"""Trains the tiny Gemma 3n's towers, each without the language model; train_media.py calls it and says how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fit import Fit
from media_data import COLOURS, FIGURES, WORDS, Arrays
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

TOWER_RATE, BATCH = 3e-3, 32


class Pointer(nn.Module):
    """Scores words: the mean of the soft tokens along the directions of the words' pieces in the embedding table."""

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
    """The blocks of the vision tower, with the heads that they are trained with: colour and figure."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.conv_stem, self.blocks = tower.conv_stem, tower.blocks
        channels = [stage[-1].pw_proj.conv.out_channels for stage in tower.blocks[-2:]]
        self.colour = nn.Linear(sum(channels), len(COLOURS))
        self.figure = nn.Linear(sum(channels), len(FIGURES))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The features of the last two stages, for pixels f32[n, 3, size, size] in 0..1."""
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
    """The rest of the vision tower: fusion and projector, from the features of the blocks to soft tokens."""

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
    """The audio tower and its projector, with the head that they are trained with."""

    def __init__(self, towers: nn.ModuleDict, tokenizer: Tokenizer, table: Tensor) -> None:
        super().__init__()
        self.audio_tower, self.embed_audio = towers["audio_tower"], towers["embed_audio"]
        self.word = Pointer(list(WORDS), tokenizer, table)

    def forward(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The soft tokens f32[n, tokens, hidden] of mel frames f32[n, frames, 128], and which are not padding."""
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
    """The pictures slightly rotated, moved and resized, in another light."""
    count = len(pixels)
    turn, scale = 0.15 * torch.randn(count), 1 + 0.08 * torch.randn(count)
    cos, sin, move = turn.cos() * scale, turn.sin() * scale, 0.08 * torch.randn(count, 2)
    affine = torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    light = 1 + 0.08 * torch.randn(count, 1, 1, 1)
    return (moved * light + 0.03 * torch.randn(count, 3, 1, 1)).clamp(0, 1)


def swap_channels(pixels: Tensor) -> Tensor:
    """The pictures in other colours: red, green and blue change places, and half of the pictures become negatives."""
    order = torch.rand(len(pixels), 3).argsort(1)[..., None, None].expand_as(pixels)
    swapped = pixels.gather(1, order)
    return torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, swapped, 1 - swapped)


def vary_mel(mel: Tensor, frames: Tensor) -> Tensor:
    """The sounds as if from another voice and microphone: bands moved, tilted and masked; zeros after the end stay."""
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
    """Losses of batches; half of each batch is shown in other colours, and asked only for its figures."""
    while True:
        chosen = rng.integers(0, len(arrays["colour"]), BATCH)
        pixels, half = vary_pixels(pixels_of(arrays, chosen)), BATCH // 2
        colour, figure = score(torch.cat([pixels[:half], swap_channels(pixels[half:])]))
        yield F.cross_entropy(colour[:half], labels(arrays, "colour", chosen[:half])) + F.cross_entropy(
            figure, labels(arrays, "figure", chosen)
        )


def audio_losses(ears: Ears, arrays: Arrays, rng: np.random.Generator) -> Iterator[Tensor]:
    """Losses of batches, each with sounds of about the same length."""
    order = np.argsort(arrays["frames"] + rng.random(len(arrays["frames"])))
    while True:
        start = int(rng.integers(0, len(order) - 4 * BATCH))
        chosen = rng.choice(order[start : start + 4 * BATCH], BATCH, replace=False)
        mel, frames = mel_of(arrays, chosen)
        yield ears.loss(vary_mel(mel, frames), frames, labels(arrays, "word", chosen))


@torch.no_grad()
def vision_accuracy(score: Callable[[Tensor], tuple[Tensor, Tensor]], arrays: Arrays, count: int) -> float:
    """The share of pictures for which both colour and figure are right."""
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
    """Train fusion and projector after the trained blocks, which do not change."""
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
