"""The quality gate of the towers: compares a bundle's embeddings of images or sounds with those of float32 graphs.

The float graphs are our own. So this measures the cost of quantisation and shows that the files are from this
checkpoint, but not that the graphs are right; for that, tests compare them with transformers and timm. The float graphs
are written to a temporary directory, run there by LiteRT, and removed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.family import Checkpoint, StageProgress
from converters.intervals import finite_or_none
from converters.plan import GraphFiles
from toolkit.base.activations import Activations
from toolkit.base.elements import ElementName, coarsest
from toolkit.base.errors import UsageError
from toolkit.base.files import Advance, hash_file, require_free_space
from toolkit.base.layout import ceil_div
from toolkit.bundle.footprint import read_types
from toolkit.bundle.manifest import TOWER_FILES, AudioRecord, VisionRecord
from toolkit.media.mel import SAMPLE_RATE_HZ, max_samples
from toolkit.runtime.backends import BACKENDS, find_backend
from toolkit.runtime.backends.interface import Backend, BackendOptions, ModelFile
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import Medium, TowerName, image_medium, sound_medium
from toolkit.runtime.towers import open_tower
from toolkit.tflite.reader import read_tflite

F32 = NDArray[np.float32]

LIMITS: Mapping[ElementName, float] = {"f32": 1e-3, "f16": 0.02, "int8": 0.2, "int4": 0.5, "int2": 1.0}
"""Maximum relative errors, by the least precise element type. They are wide, because one sample says little, and
because only answers show how much an error of the embeddings matters."""


@dataclass(frozen=True, slots=True)
class TowerReport:
    """The result for one tower, on images or on pieces of sound."""

    relative_error: float
    """The root mean square of the difference, divided by the root mean square of the float embeddings."""
    cosine_min: float
    """The lowest cosine similarity of a soft token's embedding with its float embedding."""
    samples: int
    soft_tokens: int
    """The number of soft tokens of all samples."""
    limit: float

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.limit

    @property
    def failures(self) -> tuple[str, ...]:
        return () if self.passed else (f"relative error {self.relative_error:.4g}, wanted at most {self.limit:g}",)

    def to_json(self) -> dict[str, object]:
        """The object of one tower in `verify --json`; values that are not finite are null."""
        return {
            "relative_error": finite_or_none(self.relative_error),
            "cosine_min": finite_or_none(self.cosine_min),
            "samples": self.samples,
            "soft_tokens": self.soft_tokens,
            "limit": self.limit,
            "failures": list(self.failures),
        }


def verify_tower(
    bundle: Bundle,
    group: TowerName,
    checkpoint: Checkpoint,
    scratch: Path,
    *,
    media: Sequence[Medium] = (),
    threads: int,
    backend: str = BACKENDS[0].name,
    activations: Activations = "fp32",
    progress: StageProgress | None = None,
) -> TowerReport:
    """Compare a bundle's tower with a float tower, on `media` or a generated sample; `scratch`: an empty directory.

    `progress` is called with a stage and its progress: "write" in bytes of float weights, then "embed" in samples.
    """
    record = bundle.manifest.vision if group == "vision" else bundle.manifest.audio
    assert record is not None, "the bundle has no such group"
    if not media:
        media = [sample_image(record) if isinstance(record, VisionRecord) else sample_sound(record)]
    floats = checkpoint.float_tower(record, _frame_lengths(record, media))
    _write(floats.files, scratch, progress)
    # Keep the rearranged weights in a file, so that the kernel may drop their pages.
    options = BackendOptions(threads, scratch / "packed", activations)
    embed = _Embed(media, options, progress)
    found = embed.rows(find_backend(backend), [bundle.model_file(name) for name in TOWER_FILES[group]], record)
    # The reference always runs on the CPU.
    wanted = embed.rows(BACKENDS[0], [_model_file(scratch / name) for name in TOWER_FILES[group]], floats.record)
    return compare(found, wanted, limit=LIMITS[tower_type(bundle, group)])


def tower_type(bundle: Bundle, group: TowerName) -> ElementName:
    """The least precise element type of a tower's weights."""
    models = [read_tflite(bundle.path / name).model for name in TOWER_FILES[group]]
    return coarsest(name for model in models for name in read_types(model, *model.signatures))


def compare(found: Sequence[F32], wanted: Sequence[F32], *, limit: float) -> TowerReport:
    """Compare the embeddings that two towers give for each sample, f32[soft tokens, hidden].

    >>> report = compare([np.float32([[0, 3]])], [np.float32([[0, 2]])], limit=0.4)
    >>> report.relative_error, report.cosine_min, report.passed
    (0.5, 1.0, False)
    """
    shapes = [[rows.shape for rows in tower] for tower in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise UsageError("embeddings", found=shapes[0], wanted=f"{shapes[1]}, as the checkpoint's tower gives")
    a, b = (np.concatenate(tower).astype(np.float64) for tower in (found, wanted))
    error = math.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return TowerReport(error, float(cosines.min()), len(wanted), len(b), limit)


def sample_image(vision: VisionRecord) -> Medium:
    """The sample image: colour gradients, a disc, a bar and noise."""
    size = vision.image_size
    y, x = np.mgrid[0:size, 0:size] / size
    levels = 255 * np.stack([x, y, 1 - (x + y) / 2], -1)
    levels[(x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04] = (220, 40, 30)
    levels[(x > 0.6) & (x < 0.7) & (y > 0.2)] = (20, 30, 160)
    grain = np.random.default_rng(0).integers(-12, 13, levels.shape)
    return image_medium(np.clip(levels + grain, 0, 255).astype(np.uint8)[np.newaxis])


def sample_sound(audio: AudioRecord) -> Medium:
    """The sample sound, for the shortest encoder: a rising tone with overtones, in noise."""
    count = max_samples(audio.frame_lengths[0])
    seconds = np.arange(count) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (120 * seconds + 40 * seconds**2)
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(0).standard_normal(count)
    return sound_medium((0.1 * tone + 0.01 * noise).astype(np.float32), audio)


def _frame_lengths(record: VisionRecord | AudioRecord, media: Sequence[Medium]) -> list[int]:
    """The lengths of those encoders that the sounds need, in ascending order."""
    if isinstance(record, VisionRecord):
        return []
    return sorted({record.length_for(len(medium.values)) for medium in media})


def _write(files: GraphFiles, scratch: Path, progress: StageProgress | None) -> None:
    # Twice the size: the files, and the weights that LiteRT packs.
    require_free_space(scratch, 2 * files.size_bytes)
    told = None if progress is None else partial(progress, "write")
    files.write(scratch, progress=Advance(files.weight_bytes, told))


def _model_file(path: Path) -> ModelFile:
    found = hash_file(path)
    return ModelFile(path, found.sha256, found.size)


class _Embed:
    """Runs both towers on the same media."""

    def __init__(self, media: Sequence[Medium], options: BackendOptions, progress: StageProgress | None) -> None:
        self._media, self._options, self._progress = media, options, progress
        self._done = 0

    def rows(self, backend: Backend, files: Sequence[ModelFile], record: VisionRecord | AudioRecord) -> list[F32]:
        """For each medium, the embeddings that depend on it, without the padding after a sound."""
        runtime, found = backend.start(self._options), []
        try:
            tower = open_tower(runtime, files, record)
            for medium in self._media:
                rows = tower.embed(medium)
                if isinstance(record, AudioRecord):
                    rows = rows[: ceil_div(len(medium.values), record.frames_per_token)]
                found.append(rows)
                self._tell()
        finally:
            runtime.close()
        return found

    def _tell(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress("embed", self._done, 2 * len(self._media))
