"""The plan of a bundle: its files with their layouts and tensors, its groups and its sizes.

A family makes the plan from an open checkpoint; `converters.convert` writes it, whatever the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from converters.slices import Slice
from toolkit.bundle.manifest import AudioRecord, SizeRecord, VisionRecord, signature_name
from toolkit.bundle.ple_shards import PleLayout, shard_name
from toolkit.bundle.ple_writer import write_ple_shards
from toolkit.bundle.write import GroupDraft
from toolkit.quant.recipe import Recipe
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.scheme import Search
from toolkit.quant.source import PackedSource, TensorSource
from toolkit.tflite.target import CPU
from toolkit.tflite.writer import TfliteLayout, write_tflites

Record = TypeVar("Record", VisionRecord, AudioRecord)

Finished = Callable[[Path], None]
"""Called with the path of each file after it is written."""


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A signature of the decoder: `decode` of one token and `verify` of several give logits, a prefill gives none."""

    kind: Literal["prefill", "decode", "verify"]
    tokens: int
    bucket: int | None
    """The number of positions that it attends to; None for all."""

    def name(self, prefix: str) -> str:
        """The name of the signature, for a size's prefix."""
        return signature_name(prefix, self.tokens, self.bucket, verify=self.kind == "verify")


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to put into a bundle, with all settings resolved."""

    slices: tuple[Slice, ...]
    """The sizes of the bundle, the default one first."""
    recipes: Mapping[str, Recipe]
    """Recipes by role: `text`, `ple` and the towers."""
    towers: tuple[str, ...]
    """The towers to include: `vision`, `audio`, both or none."""
    context: int
    """Positions in the KV cache."""
    prefill_sizes: tuple[int, ...]
    """Tokens that each prefill processes, in ascending order."""
    shard_bytes: int
    """The maximum size of a PLE shard."""
    audio_seconds: tuple[float, ...]
    """Maximum lengths, one for each audio encoder; empty for the family's choice."""
    draft_tokens: int | None = None
    """How many drafted tokens a step of speculative decoding checks; None for a bundle without it."""

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """The shorter contexts for which decode has separate signatures."""
        return CPU.context_buckets(self.context)

    @property
    def prefill_buckets(self) -> tuple[int, ...]:
        """The context buckets for which prefills have signatures too."""
        return CPU.prefill_buckets(self.context, self.prefill_sizes[-1])

    def steps(self) -> Iterator[StepRequest]:
        """The signatures of one size of the decoder; prefills come first."""
        prefills = itertools.product((None, *self.prefill_buckets), self.prefill_sizes)
        yield from (StepRequest("prefill", tokens, bucket) for bucket, tokens in prefills)
        yield from (StepRequest("decode", 1, bucket) for bucket in (None, *self.context_buckets))
        if self.draft_tokens is not None:
            verify = self.draft_tokens + 1
            yield from (StepRequest("verify", verify, bucket) for bucket in (None, *self.context_buckets))


class PlannedFiles(Protocol):
    """Files of a bundle that are written together."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files, in order."""
        ...

    @property
    def size_bytes(self) -> int:
        """The size of all files, headers included."""
        ...

    @property
    def weight_bytes(self) -> int:
        """The total that `write` reports as progress: bytes of codes, without scales."""
        ...

    def write(
        self,
        directory: Path,
        *,
        workers: int = 2,
        progress: Callable[[int], None] | None = None,
        finished: Finished | None = None,
    ) -> None:
        """Write the files into a directory, not atomically; `progress` gets the bytes since its last call."""
        ...


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """`.tflite` files with the tensors of one source; a tensor that several files use is read only once."""

    layouts: Mapping[str, TfliteLayout]
    source: TensorSource
    packed: PackedSource | None = None
    """Tensors that are stored as codes; these are copied if the recipe wants exactly them."""
    rounded: RoundedWeights | None = None
    """Weights that calibration has rounded already."""
    computed: Collection[str] = ()
    """Tensors that the source computes from several others, so that the model has no product with one of them."""

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
        write_tflites(files, self.source, packed=self.packed, workers=workers, progress=progress, rounded=self.rounded)
        for path in files:
            if finished is not None:
                finished(path)


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """A table of per-layer embeddings, as PLE shards of at most `shard_bytes`."""

    tensor: str
    source: TensorSource
    layout: PleLayout
    search: Search
    shard_bytes: int
    packed: PackedSource | None = None
    """Tables that are stored as codes; these are copied if the layout wants exactly them."""

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
            packed=self.packed,
            workers=workers,
            progress=progress,
            finished=finished,
        )


@dataclass(frozen=True, slots=True)
class PlannedTower(Generic[Record]):
    """A tower of a checkpoint: its files, and its record for the manifest."""

    record: Record
    recipe: Recipe
    parameters: int
    files: GraphFiles


@dataclass(frozen=True, slots=True)
class PlannedDrafter:
    """A drafter that was published for a model: its file, and the tensors of the model's caches that it reads."""

    files: GraphFiles
    caches: tuple[str, ...]
    parameters: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A bundle without its tokenizer, chat template and manifest."""

    files: tuple[PlannedFiles, ...]
    """The files in writing order: small ones first, so that a fault is found early."""
    groups: Mapping[str, GroupDraft]
    sizes: Mapping[str, SizeRecord]
    """The sizes by name, the default one first."""
    recipes: Mapping[str, Recipe]
    """The recipes by role, as the manifest records them."""

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(files.size_bytes for files in self.files)

    @property
    def weight_bytes(self) -> int:
        """The total that writing all files reports as progress."""
        return sum(files.weight_bytes for files in self.files)
