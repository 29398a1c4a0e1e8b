"""What converting, judging and inspecting need to know of a model family; `families.py` has those that there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.configs import CheckpointConfigs
from converters.plan import Plan, PlannedTower, PlanRequest
from converters.slices import Budget, Slice, SliceFacts
from toolkit.base.errors import ToolkitError
from toolkit.bundle.manifest import AudioRecord, VisionRecord
from toolkit.quant.recipe import Recipe

F32 = NDArray[np.float32]
LayersDone = Callable[[int, int], None]
"""Called with the layers done and the layers in all."""
StageProgress = Callable[[str, int, int], None]
"""Called with the name of what is going on, how much of it is done, and how much there is."""

RecipeChoice = str | Path | Recipe
"""A recipe, its name, or its file."""

Opened = TypeVar("Opened", bound="Checkpoint", covariant=True)


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """The tensors of one group as stored, and their totals; names are sorted."""

    name: str
    tensors: tuple[str, ...]
    parameters: int
    stored_bytes: int


class ReferenceModel(Protocol):
    """A slice of a checkpoint, computed in float32 without LiteRT: what a bundle is judged by."""

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        ...

    @property
    def text_vocab_size(self) -> int:
        """Ids below stand for text; the logits of others mean nothing."""
        ...

    def hidden_states(self, sequences: Sequence[NDArray[np.int32]], *, progress: LayersDone | None = None) -> list[F32]:
        """All but the output matrix: f32[tokens, hidden] for each sequence."""
        ...

    def logits(self, hidden: F32) -> F32:
        """f32[n, vocab_size] of rows f32[n, hidden] of `hidden_states`."""
        ...


class Checkpoint(Protocol):
    """An open checkpoint of some family, whose tensors are checked; safe to read from several threads."""

    @property
    def path(self) -> Path:
        """Its directory."""
        ...

    @property
    def architecture(self) -> str:
        """One of the family's `architectures`."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids, and length of the logits."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest context that it was made for."""
        ...

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        """In the order of a bundle; a group whose tensors are absent may be there, and is empty."""
        ...

    @property
    def slices(self) -> Mapping[str, Slice]:
        """Those that have a name; without any, the whole checkpoint is "full"."""
        ...

    @property
    def default_slice(self) -> Slice:
        """The whole checkpoint."""
        ...

    def find_slice(self, name: str) -> Slice:
        """One of `slices`, however people spell its name; SliceError lists those that there are."""
        ...

    def read_slice(self, path: Path) -> Slice:
        """The slice that a file describes; SliceError where the checkpoint cannot give it."""
        ...

    def choose_slice(self, budget: Budget, text: Recipe) -> Slice:
        """The best of `slices` within a budget, stored by this recipe; SliceError names the smallest if none fits."""
        ...

    def facts(self, slice_: Slice, *, bits_per_weight: float) -> SliceFacts:
        """What a slice takes."""
        ...

    def recipes(self, wanted: Mapping[str, RecipeChoice], towers: Collection[str]) -> Mapping[str, Recipe]:
        """The recipe of every role that a bundle with these towers has; of a role not named, the family's choice.

        RecipeError for a name or a file that is no recipe, and for one that cannot be used for that role.
        """
        ...

    def plan(self, request: PlanRequest) -> Plan:
        """Everything of a bundle that depends on the family. CheckpointError for a tower that is not there."""
        ...

    def reference(self, slice_: Slice) -> ReferenceModel:
        """The slice as NumPy computes it."""
        ...

    def float_tower(
        self, record: VisionRecord | AudioRecord, frame_lengths: Sequence[int]
    ) -> PlannedTower[VisionRecord] | PlannedTower[AudioRecord]:
        """The tower that a bundle's record is of, in float32: what a bundle's own is judged by.

        `frame_lengths`: for a tower of sounds, the mel frames of the encoders that are needed.
        """
        ...

    def tower_faults(self) -> Mapping[str, ToolkitError]:
        """By tower that is there and could not be converted: why not."""
        ...

    def fingerprint(self) -> str:
        """A hash that tells models apart, fine-tunes too, without reading all their bytes, in hex."""
        ...

    def require_unchanged(self) -> None:
        """CheckpointError where a file of weights was written to since it was opened."""
        ...

    def close(self) -> None:
        """Close every file; nothing can be read any more."""
        ...

    def __enter__(self: Opened) -> Opened: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one make. All that differs between families is behind `open`: what it gives answers for itself."""

    name: str
    architectures: tuple[str, ...]
    """What `architectures` of config.json may say."""
    open: Callable[[CheckpointConfigs], Checkpoint]
    """CheckpointError where a file, a key or a tensor is not what the family needs."""
    recipe_names: Mapping[str, tuple[str, ...]]
    """By role: the recipes that have a name."""
    model_types: tuple[str, ...] = ()
    """What `model_type` may say where config.json states no architecture."""
    files: tuple[str, ...] = ()
    """Names of files that its checkpoints may have besides those of every checkpoint."""
