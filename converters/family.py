"""The interface of a model family, for converting, verifying and inspecting; `families.py` lists the families."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.adapters.adapter import Adapter
from converters.huggingface.configs import CheckpointConfigs
from converters.plan import Plan, PlannedDrafter, PlannedTower, PlanRequest
from converters.slices import Budget, Slice, SliceFacts
from toolkit.base.activations import ActivationScales
from toolkit.base.errors import ToolkitError
from toolkit.bundle.manifest import AudioRecord, TextRecord, VisionRecord
from toolkit.quant.recipe import Recipe

F32 = NDArray[np.float32]
LayersDone = Callable[[int, int], None]
"""Called with the layers done and the total."""
StageProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the total."""

RecipeChoice = str | Path | Recipe
"""A recipe, the name of one, or the path of a recipe file."""

MatrixProduct = Callable[[F32, str], F32]
"""x @ W.T for x f32[N, in] and a matrix W [out, in] of the model, by its tensor's name: a new array f32[N, out]."""

HeadRows = Callable[[int, int], F32]
"""Rows [start, stop) of an output matrix: f32[stop - start, hidden]."""

Opened = TypeVar("Opened", bound="Checkpoint", covariant=True)


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """The tensors of one group by their stored names, sorted, and their totals."""

    name: str
    tensors: tuple[str, ...]
    parameters: int
    stored_bytes: int


class ReferenceModel(Protocol):
    """A slice of a checkpoint, computed in float32 without LiteRT: the reference for a bundle."""

    @property
    def vocab_size(self) -> int:
        """The length of the logits."""
        ...

    @property
    def text_vocab_size(self) -> int:
        """The number of ids that stand for text; the logits of higher ids have no meaning."""
        ...

    @property
    def head(self) -> str:
        """The name of the output matrix's tensor, which `logits` multiplies by."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the model."""
        ...

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> F32:
        """A tensor of the model, or a half-open range of its rows."""
        ...

    def hidden_states(
        self,
        sequences: Sequence[NDArray[np.int32]],
        *,
        progress: LayersDone | None = None,
        product: MatrixProduct | None = None,
    ) -> list[F32]:
        """Compute everything before the output matrix: f32[tokens, hidden] for each sequence.

        `product` is called for every product with a matrix of the model except the output matrix, with the tokens of
        all sequences at once; None multiplies by the matrix as it is.
        """
        ...

    def logits(self, hidden: F32, *, head: HeadRows | None = None) -> F32:
        """Compute the logits f32[n, vocab_size] for rows f32[n, hidden] of `hidden_states`.

        `head`: another output matrix than the model's.
        """
        ...


@dataclass(frozen=True, slots=True)
class CalibrationPass:
    """A size of a bundle, in the form in which the calibration runs it.

    `planned`: for a tensor of this size, gives the name in the bundle's plan of the tensor whose first rows and columns
    are this tensor; None if there is no such tensor.
    `activation_scales`: the scales with which a bundle with static activations rounds around the product with a tensor.
    `unrounded`: the model without this rounding, as other bundles compute; None if there are no such scales.
    """

    model: ReferenceModel
    planned: Callable[[str], str | None]
    activation_scales: Callable[[str], ActivationScales] = lambda _: ActivationScales()
    unrounded: ReferenceModel | None = None


class Checkpoint(Protocol):
    """An open checkpoint of a family, with checked tensors; safe to read from several threads."""

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        ...

    @property
    def name(self) -> str:
        """The checkpoint's name in manifests: its directory's name, or its Hugging Face id and commit."""
        ...

    @property
    def adapters(self) -> Sequence[Adapter]:
        """The adapters that are merged into its tensors, in this order: those of its `CheckpointConfigs`."""
        ...

    @property
    def architecture(self) -> str:
        """The architecture in its config, one of the family's `architectures`."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of token ids, which is the length of the logits."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest context that the model supports."""
        ...

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        """The parameter groups, in the order of a bundle; a group without tensors may be listed as empty."""
        ...

    @property
    def slices(self) -> Mapping[str, Slice]:
        """The named slices; if the family names none, the whole checkpoint as "full"."""
        ...

    @property
    def default_slice(self) -> Slice:
        """The slice that is the whole checkpoint."""
        ...

    def find_slice(self, name: str) -> Slice:
        """Find one of `slices` by name, with lenient spelling; SliceError, listing all names, if there is none."""
        ...

    def read_slice(self, path: Path) -> Slice:
        """Read a slice from a file; SliceError if the checkpoint does not contain it."""
        ...

    def choose_slice(self, budget: Budget, text: Recipe) -> Slice:
        """The best of `slices` that is within a budget when stored with this recipe.

        SliceError, which names the smallest slice, if there is none.
        """
        ...

    def facts(self, slice_: Slice, *, bits_per_weight: float) -> SliceFacts:
        """The parameters and memory of a slice."""
        ...

    def recipes(self, wanted: Mapping[str, RecipeChoice], towers: Collection[str]) -> Mapping[str, Recipe]:
        """The recipe for each role of a bundle with these towers; the family chooses those that are not in `wanted`.

        RecipeError for an unknown name, an invalid file, or a recipe that cannot be used for its role.
        """
        ...

    def layer_kinds(self, slices: Sequence[Slice]) -> Mapping[str, Sequence[int]]:
        """The layers by the kinds that rules of a text recipe can name, as the plan of these slices numbers them.

        SliceError if the slices cannot share their weights and KV caches.
        """
        ...

    def plan(self, request: PlanRequest) -> Plan:
        """Plan the bundle's files and records. CheckpointError if the checkpoint lacks a requested tower."""
        ...

    def reference(self, slice_: Slice) -> ReferenceModel:
        """The slice's forward pass in NumPy."""
        ...

    def calibration_passes(self, slices: Sequence[Slice]) -> Sequence[CalibrationPass]:
        """The sizes of a bundle with these slices, the narrowest first: each piece of a matrix is rounded for the first
        size that has it."""
        ...

    def float_tower(
        self, record: VisionRecord | AudioRecord, frame_lengths: Sequence[int]
    ) -> PlannedTower[VisionRecord] | PlannedTower[AudioRecord]:
        """The tower for a bundle's record, in float32: the reference for the bundle's own tower.

        `frame_lengths`: for the audio tower, the lengths in mel frames of the encoders that are needed.
        """
        ...

    def text_vocab_size(self, tokens: Mapping[int, str]) -> int | None:
        """Ids below this stand for text, given all tokens of the tokenizer; None: all ids with per-layer embeddings.

        CheckpointError if the model takes the ids of some tokens for images or sounds.
        """
        ...

    @property
    def supported_towers(self) -> Collection[str]:
        """The towers that the family can convert; other towers of a checkpoint are left out with a warning."""
        ...

    def tower_faults(self) -> Mapping[str, ToolkitError]:
        """By tower, the reason why a tower of the checkpoint cannot be converted."""
        ...

    def fingerprint(self) -> str:
        """A hexadecimal hash that distinguishes models, including fine-tuned ones, without reading all their bytes.

        It does not cover `adapters`.
        """
        ...

    def require_unchanged(self) -> None:
        """Raise CheckpointError if a file of weights has changed since it was opened."""
        ...

    def close(self) -> None:
        """Close all files; reading fails from then on."""
        ...

    def __enter__(self: Opened) -> Opened: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Assistant(Protocol):
    """An open checkpoint of a drafter, which guesses tokens for a model of the family (docs/speculative.md)."""

    @property
    def name(self) -> str:
        """Its directory's name, or its Hugging Face id and commit."""
        ...

    def fingerprint(self) -> str:
        """As that of a `Checkpoint`."""
        ...

    @property
    def architecture(self) -> str:
        """The value of `architectures` in its config.json, as in its `AssistantKind`."""
        ...

    @property
    def path(self) -> Path:
        """Its directory."""
        ...

    def plan(self, text: TextRecord, recipe: str, buckets: Sequence[int] = ()) -> PlannedDrafter:
        """Plan the drafter.tflite of a bundle with this record of the group `text`, and its text recipe of this name.

        `buckets`: the shorter contexts in which it gets signatures too. CheckpointError if it was made for another
        model; BundleError if the bundle's caches do not tell which of them it reads.
        """
        ...

    def require_unchanged(self) -> None:
        """As that of a `Checkpoint`."""
        ...

    def close(self) -> None:
        """Close all files; reading fails from then on."""
        ...


@dataclass(frozen=True, slots=True)
class AssistantKind:
    """A kind of drafters: the architecture in their config.json, and what opens one."""

    architecture: str
    open: Callable[[CheckpointConfigs], Assistant]
    """CheckpointError if a file, a key or a tensor is not what such a drafter has."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. Everything that differs between families is in the `Checkpoint` that `open` returns."""

    name: str
    architectures: tuple[str, ...]
    """The values of `architectures` in config.json that belong to the family."""
    open: Callable[[CheckpointConfigs], Checkpoint]
    """Opens a checkpoint; CheckpointError if a file, a key or a tensor is not what the family needs."""
    recipe_names: Mapping[str, tuple[str, ...]]
    """The names of the built-in recipes, by role."""
    model_types: tuple[str, ...] = ()
    """The values of `model_type` that belong to the family if config.json names no architecture."""
    files: tuple[str, ...] = ()
    """Names of files that its checkpoints may have in addition to those of every checkpoint."""
    assistants: tuple[AssistantKind, ...] = ()
    """The drafters that are published for models of the family."""
