"""One tower of a checkpoint on its way into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from converters.checkpoint import Checkpoint
from converters.gemma3n.groups import group_of
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import read_json_file
from toolkit.bundle.manifest import AudioRecord, VisionRecord
from toolkit.quant.recipe import Recipe
from toolkit.quant.source import TensorSource
from toolkit.tflite.writer import TfliteLayout, write_tflites

Record = TypeVar("Record", VisionRecord, AudioRecord)


def tower_config(checkpoint: Checkpoint, group: Literal["vision", "audio"]) -> tuple[object, str]:
    """The values of config.json, and its path for errors; CheckpointError for a checkpoint without such a tower."""
    if not any(group_of(name) == group for name in checkpoint.tensors):
        found = f"{checkpoint.architecture} without {group} tensors"
        wanted = f"Gemma3nForConditionalGeneration with its {group} tower"
        raise CheckpointError(str(checkpoint.path), found=found, wanted=wanted)
    path = checkpoint.path / "config.json"
    return read_json_file(path, CheckpointError), str(path)


@dataclass(frozen=True, slots=True)
class Tower(Generic[Record]):
    """Its files, laid out, where their weights come from, and what the manifest says of it."""

    record: Record
    recipe: Recipe
    parameters: int
    layouts: Mapping[str, TfliteLayout]
    source: TensorSource

    def write(self, directory: Path, *, workers: int = 2, progress: Callable[[int], None] | None = None) -> None:
        """Write its files into a directory; the caller owns its atomicity. `progress` gets weight bytes written."""
        files = {directory / name: layout for name, layout in self.layouts.items()}
        write_tflites(files, self.source, workers=workers, progress=progress)
