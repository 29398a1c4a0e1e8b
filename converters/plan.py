"""What a bundle will hold, before anything is written: files with their layouts and tensors, groups and sizes.

A family makes a plan of an open checkpoint; `converters.convert` writes it and knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from converters.slices import Slice
from toolkit.bundle.manifest import AudioRecord, SizeRecord, VisionRecord
from toolkit.bundle.ple_shards import PleLayout, shard_name
from toolkit.bundle.ple_writer import write_ple_shards
from toolkit.bundle.write import GroupDraft
from toolkit.quant.recipe import Recipe
from toolkit.quant.scheme import Search
from toolkit.quant.source import TensorSource
from toolkit.tflite.target import CPU
from toolkit.tflite.writer import TfliteLayout, write_tflites

Record = TypeVar("Record", VisionRecord, AudioRecord)

Finished = Callable[[Path], None]
"""Told of each file once it is written."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What of a checkpoint a bundle shall hold, and how; nothing is left open."""

    slices: tuple[Slice, ...]
    """The sizes of the bundle, the default one first."""
    recipes: Mapping[str, Recipe]
    """By role: `text`, `ple` and the towers."""
    towers: tuple[str, ...]
    """Those of `vision` and `audio` that are wanted."""
    context: int
    """Positions in the KV cache."""
    prefill_sizes: tuple[int, ...]
    """Tokens that each prefill takes, ascending."""
    shard_bytes: int
    """At most so much in a PLE shard."""
    audio_seconds: tuple[float, ...]
    """The longest sound of each audio encoder; empty leaves it to the family."""

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """The shorter contexts in which decode has signatures of its own."""
        return CPU.context_buckets(self.context)

    @property
    def prefill_buckets(self) -> tuple[int, ...]:
        """Those of them in which prefills have signatures too."""
        return CPU.prefill_buckets(self.context, self.prefill_sizes[-1])

    def steps(self) -> Iterator[tuple[int, int | None]]:
        """Every signature of one size of the decoder: its tokens (1: decode), and its bucket, None for all positions.

        Prefills come first.
        """
        yield from ((tokens, bucket) for bucket in (None, *self.prefill_buckets) for tokens in self.prefill_sizes)
        yield from ((1, bucket) for bucket in (None, *self.context_buckets))


class PlannedFiles(Protocol):
    """Some files of a bundle that are written together."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files, in order."""
        ...

    @property
    def size_bytes(self) -> int:
        """Of all of them, headers included."""
        ...

    @property
    def weight_bytes(self) -> int:
        """What `write` reports as its progress in the end: codes without scales."""
        ...

    def write(
        self,
        directory: Path,
        *,
        workers: int = 2,
        progress: Callable[[int], None] | None = None,
        finished: Finished | None = None,
    ) -> None:
        """Write them into a directory; the caller owns its atomicity. `progress` gets bytes since its last call."""
        ...


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """`.tflite` files with the tensors of one source: what several have of one tensor is read once."""

    layouts: Mapping[str, TfliteLayout]
    source: TensorSource

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.layouts)

    @property
    def size_bytes(self) -> int:
        return sum(layout.size_bytes for layout in self.layouts.values())

    @property
    def weight_bytes(self) -> int:
        return sum(layout.weight_bytes for layout in self.layouts.values())

    def write(
        self,
        directory: Path,
        *,
        workers: int = 2,
        progress: Callable[[int], None] | None = None,
        finished: Finished | None = None,
    ) -> None:
        files = {directory / name: layout for name, layout in self.layouts.items()}
        write_tflites(files, self.source, workers=workers, progress=progress)
        for path in files:
            if finished is not None:
                finished(path)


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """One table of per-layer embeddings as PLE shards of at most `shard_bytes`."""

    tensor: str
    source: TensorSource
    layout: PleLayout
    search: Search
    shard_bytes: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(shard_name, range(self.layout.shard_count(self.shard_bytes))))

    @property
    def size_bytes(self) -> int:
        return self.layout.total_bytes(self.shard_bytes)

    @property
    def weight_bytes(self) -> int:
        return self.layout.vocab_size * self.layout.code_bytes

    def write(
        self,
        directory: Path,
        *,
        workers: int = 2,
        progress: Callable[[int], None] | None = None,
        finished: Finished | None = None,
    ) -> None:
        write_ple_shards(
            directory,
            self.source,
            self.tensor,
            self.layout,
            shard_bytes=self.shard_bytes,
            search=self.search,
            workers=workers,
            progress=progress,
            finished=finished,
        )


@dataclass(frozen=True, slots=True)
class PlannedTower(Generic[Record]):
    """One tower of a checkpoint: its files, and what the manifest says of it."""

    record: Record
    recipe: Recipe
    parameters: int
    files: GraphFiles


@dataclass(frozen=True, slots=True)
class Plan:
    """A bundle but for the tokenizer, the chat template and the manifest."""

    files: tuple[PlannedFiles, ...]
    """In the order in which they are written: small ones first, so that a fault shows early."""
    groups: Mapping[str, GroupDraft]
    sizes: Mapping[str, SizeRecord]
    """By name, the default one first."""
    recipes: Mapping[str, Recipe]
    """By role, as the manifest records them."""

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(files.size_bytes for files in self.files)

    @property
    def weight_bytes(self) -> int:
        """What writing all files reports as its progress in the end."""
        return sum(files.weight_bytes for files in self.files)
