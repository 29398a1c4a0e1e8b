"""A checkpoint's tensors with adapters merged in when they are read; no merged tensor is kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.adapters.adapter import Adapter
from converters.huggingface.adapters.updates import LowRank, ReadPart, Replacement, TokenRows, Update
from converters.huggingface.safetensors import TensorInfo
from converters.huggingface.stored_tensors import StoredTensors
from converters.huggingface.tensor_reader import Range, read_tensor
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import shorten
from toolkit.quant.scheme import Scheme
from toolkit.quant.source import PackedRows

_log = logging.getLogger(__name__)

F32 = NDArray[np.float32]

_COMPARED_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ModelNames:
    """A family's names for its tensors."""

    tensors: Mapping[str, TensorInfo]
    """The tensors of the checkpoint, by the family's own names."""
    own_name: Callable[[str], str | None]
    """The family's own name for a parameter, given its name in any class of the model; None if the model has no such
    parameter. The tied output matrix has the name of the token embedding."""
    group_of: Callable[[str], str]
    """The group of a tensor, by its own name."""
    unused: Iterable[str]
    """The own names of parameters that have no effect and may be absent; updates of them are left out."""
    embedding: str
    """The own name of the token embedding."""
    is_head: Callable[[str], bool]
    """Whether a parameter, given its name in a class of the model, is the tied output matrix."""


class MergedTensors:
    """Reads tensors like `StoredTensors`, with every adapter's updates; safe to read from several threads."""

    def __init__(self, stored: StoredTensors, adapters: Sequence[Adapter], names: ModelNames) -> None:
        """Raise CheckpointError for an update whose tensor is not in the checkpoint or has another shape."""
        self._stored = stored
        self._updates: dict[str, list[_OfAdapter]] = {}
        for adapter in adapters:
            found = _Target(adapter, names, self.read).updates()
            for name, updates in found.items():
                info = names.tensors[name]
                for update in updates:
                    fault = update.shape_fault(info.shape)
                    if fault is not None:
                        raise CheckpointError(info.name, file=adapter.file.path, found=fault, remedy=_OTHER_BASE)
                of_adapter = [_OfAdapter(update, adapter.file.path) for update in updates]
                self._updates.setdefault(info.name, []).extend(of_adapter)

    def read(self, info: TensorInfo, rows: Range | None = None, columns: Range | None = None) -> F32:
        """Read a tensor, or half-open ranges of its first and last axis, as float32 with all updates."""
        updates = self._updates.get(info.name)
        if updates is None:
            return self._stored.read(info, rows, columns)
        return self._after(updates, info)(rows, columns)

    def packed(self, info: TensorInfo, scheme: Scheme, rows: Range, columns: Range | None = None) -> PackedRows | None:
        """Like `StoredTensors.packed`; None for a tensor with updates, whose codes are no longer its values."""
        return None if info.name in self._updates else self._stored.packed(info, scheme, rows, columns)

    def scheme(self, info: TensorInfo) -> Scheme | None:
        """Like `StoredTensors.scheme`; None for a tensor with updates."""
        return None if info.name in self._updates else self._stored.scheme(info)

    def _after(self, updates: Sequence[_OfAdapter], info: TensorInfo) -> ReadPart:
        """The function that reads the tensor after these updates; it raises CheckpointError for non-finite results."""

        def plain(rows: Range | None, columns: Range | None) -> F32:
            return self._stored.read(info, rows, columns)

        if not updates:
            return plain
        before, last = self._after(updates[:-1], info), updates[-1]

        def merged(rows: Range | None, columns: Range | None) -> F32:
            with np.errstate(all="ignore"):  # overflows and divisions by 0 are reported below
                found = last.update.read(before, info.shape, rows, columns)
            if not np.isfinite(found).all():
                raise _not_finite(info, found, rows, last.file)
            return found

        return merged


@dataclass(frozen=True, slots=True)
class _OfAdapter:
    """An update, and the file of its adapter."""

    update: Update
    file: Path


def _not_finite(info: TensorInfo, found: F32, rows: Range | None, adapter: Path) -> CheckpointError:
    place = np.unravel_index(int(np.argmin(np.isfinite(found))), found.shape)
    row = f", row {(rows[0] if rows else 0) + int(place[0])}" if place else ""
    return CheckpointError(
        f"tensor {info.name}{row}",
        file=adapter,
        found=f"{found[place]} after merging, not a finite number",
        remedy="merge it with a smaller scale, or train it again",
    )


_OTHER_BASE = "was it trained on this model? Merge it into the model that its adapter_config.json names"


class _Target:
    """One adapter's updates by the family's own names, checked for missing tensors and for the tied output matrix."""

    def __init__(
        self, adapter: Adapter, names: ModelNames, read: Callable[[TensorInfo, Range | None, Range | None], F32]
    ) -> None:
        self._adapter = adapter
        self._names = names
        self._read = read
        self._unused = frozenset(names.unused)

    def updates(self) -> Mapping[str, tuple[Update, ...]]:
        names, by_parameter = self._names, self._adapter.updates.by_parameter
        heads = {name: updates for name, updates in by_parameter.items() if names.is_head(name)}
        found: dict[str, tuple[Update, ...]] = {}
        for parameter, updates in by_parameter.items():
            own = names.own_name(parameter)
            if own is None or (own not in names.tensors and own not in self._unused):
                raise self._refuse(f"{shorten(parameter)}, which the checkpoint does not have", _OTHER_BASE)
            if own in names.tensors and parameter not in heads:
                if own in found:
                    raise self._refuse(f"{shorten(parameter)} under two names", None)
                found[own] = updates
        head = tuple(update for updates in heads.values() for update in updates)
        tied = self._tied(found.get(names.embedding, ()), head)
        if tied:
            found[names.embedding] = tied
        self._require_targets()
        return found

    def _refuse(self, found: str, remedy: str | None) -> CheckpointError:
        return CheckpointError(file=self._adapter.file.path, found=found, remedy=remedy)

    # --- the tied output matrix ---

    def _tied(self, embedding: tuple[Update, ...], head: tuple[Update, ...]) -> tuple[Update, ...]:
        """The updates of the matrix that is both embedding and output; CheckpointError if they would make it two."""
        if self._adapter.updates.embedding_is_head and not head:
            return embedding
        wholes = [[update for update in updates if isinstance(update, Replacement)] for updates in (embedding, head)]
        self._require_equal_values(*([update for update in whole if not update.is_base] for whole in wholes))
        tokens = [update for update in embedding if isinstance(update, TokenRows)]
        mine, other = (
            [update for update in updates if not isinstance(update, (Replacement, TokenRows))]
            for updates in (embedding, head)
        )
        if mine and other and not all(map(self._same_change, mine, other)):
            raise self._refuse("different updates of the token embedding and of the output matrix", _TRAIN_TIED)
        if bool(mine) != bool(other):
            self._warn_of_tie(*(("token embedding", "output matrix")[:: 1 if mine else -1]))
        return (*(wholes[0] or wholes[1]), *(mine or other), *tokens)

    def _warn_of_tie(self, trained: str, other: str) -> None:
        _log.warning(
            "adapter %s was trained on the %s alone; merged, it changes the %s too, which is the same matrix: "
            "the model will answer differently than in training, as after PEFT's merge_and_unload",
            self._adapter.name, trained, other,
        )  # fmt: skip

    def _same_change(self, one: Update, other: Update) -> bool:
        """Whether two updates are of the same LoRA matrices, one of them perhaps stored transposed."""
        if not isinstance(one, LowRank) or not isinstance(other, LowRank) or one.factor != other.factor:
            return False
        pairs = ((one.left, other.left), (one.right, other.right))
        return all(a.shape == b.shape and np.array_equal(a.read(), b.read()) for a, b in pairs)

    def _require_equal_values(self, embedding: Sequence[Replacement], head: Sequence[Replacement]) -> None:
        """Raise CheckpointError if the matrix was saved whole with other values as embedding than as output."""
        if not embedding and not head:
            return
        base = self._names.tensors[self._names.embedding]
        readers = [self._reader(updates[0] if updates else None, base) for updates in (embedding, head)]
        for updates in (*embedding, *head):
            fault = updates.shape_fault(base.shape)
            if fault is not None:
                raise self._refuse(f"a token embedding of {fault}", _RESIZED)
        for start in range(0, base.shape[0], _COMPARED_ROWS):
            part = start, min(start + _COMPARED_ROWS, base.shape[0])
            if not np.array_equal(readers[0](part), readers[1](part)):
                found = "an output matrix with other values than the token embedding, to which this model ties it"
                raise self._refuse(found, _TRAIN_TIED)

    def _reader(self, update: Replacement | None, base: TensorInfo) -> Callable[[Range], F32]:
        if update is None:
            return lambda part: self._read(base, part, None)
        value = update.value
        return lambda part: read_tensor(value.file, value.info, part, None)

    # --- what the config names ---

    def _require_targets(self) -> None:
        """Raise CheckpointError if the config names a module of this model for which the adapter has no factors."""
        read = self._adapter.updates
        modules = {module: self._names.own_name(f"{module}.weight") for module in read.low_rank_modules}
        present = {own for own in modules.values() if own is not None}
        prefixes: dict[str, set[str]] = {}
        for module, own in modules.items():
            if own is not None and f"{module}.weight".endswith(own):
                prefixes.setdefault(self._names.group_of(own), set()).add(f"{module}.weight".removesuffix(own))
        absent: dict[str, str] = {}
        for own, info in self._names.tensors.items():
            if own in present or own in self._unused or len(info.shape) < 2 or not own.endswith(".weight"):
                continue
            module = own.removesuffix(".weight")
            for prefix in prefixes.get(self._names.group_of(own), ()):
                absent[prefix + module] = module
        named = set(read.targets(absent))
        first = next((module for path, module in absent.items() if path in named), None)
        if first is not None:
            raise self._refuse(f"no factors for {first}, which its target_modules names", _OTHER_BASE)


_TRAIN_TIED = "train both as one (ensure_weight_tying in PEFT), or train trainable_token_indices instead"
_RESIZED = "this model's vocabulary was not resized: merge with PEFT into a resized model, and convert that"
