"""The changes that an adapter makes to a tensor, computed for the part that is read: no merged tensor is in memory.

Products are computed in float64 and the sum is rounded to float32 once, so the result does not depend on the parts in
which a tensor is read.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.safetensors import SafetensorsFile, TensorInfo
from converters.huggingface.tensor_reader import Range, read_tensor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

ReadPart = Callable[[Range | None, Range | None], F32]
"""Reads half-open ranges of the first and the last axis of a tensor, before the update."""

_BLOCK_WEIGHTS = 1 << 20


class Update(Protocol):
    """A change to one tensor that keeps its shape."""

    def shape_fault(self, shape: tuple[int, ...]) -> str | None:
        """What does not fit a tensor of this shape; None if everything does."""
        ...

    def read(self, before: ReadPart, shape: tuple[int, ...], rows: Range | None, columns: Range | None) -> F32:
        """A part of the changed tensor; `shape`: that of the whole tensor."""
        ...


@dataclass(frozen=True, slots=True)
class Factor:
    """A matrix in an adapter's file, or its transpose; a convolution's kernel axes count as columns."""

    file: SafetensorsFile
    info: TensorInfo
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, *others = self.info.shape or (1,)
        columns = math.prod(others)
        return (columns, rows) if self.transposed else (rows, columns)

    def read(self, rows: Range | None = None, columns: Range | None = None) -> F64:
        if self.transposed:
            rows, columns = columns, rows
        if len(self.info.shape) > 2:
            whole = read_tensor(self.file, self.info, rows, None).astype(np.float64)
            part = whole.reshape(len(whole), -1)
        else:
            part = read_tensor(self.file, self.info, rows, columns).astype(np.float64)
        return part.T if self.transposed else part


@dataclass(frozen=True, slots=True)
class LowRank:
    """W + factor * left @ right; left: [rows, rank], right: [rank, columns] (LoRA)."""

    left: Factor
    right: Factor
    factor: float

    def shape_fault(self, shape: tuple[int, ...]) -> str | None:
        left, right, parts = self.left.shape, self.right.shape, (self.left.info.shape, self.right.info.shape)
        are_matrices = min(map(len, (shape, *parts))) >= 2
        if not are_matrices or (left[0], right[1], left[1]) != (shape[0], math.prod(shape[1:]), right[0]):
            stated = " and ".join(str(list(part)) for part in parts)
            return f"factors {stated} for a tensor {list(shape)}"
        return None

    def read(self, before: ReadPart, shape: tuple[int, ...], rows: Range | None, columns: Range | None) -> F32:
        first, last = rows or (0, shape[0]), columns or (0, shape[-1])
        middle = shape[1:-1]
        out = np.empty((first[1] - first[0], *middle, last[1] - last[0]), np.float32)
        matrix = not middle
        right = self.right.read(None, last if matrix else None) * self.factor
        step = max(1, _BLOCK_WEIGHTS // max(1, right.shape[1]))
        for start in range(first[0], first[1], step):
            block = start, min(start + step, first[1])
            change = self.left.read(block) @ right
            if not matrix:
                change = change.reshape(-1, *shape[1:])[..., last[0] : last[1]]
            out[block[0] - first[0] : block[1] - first[0]] = before(block, columns) + change
        return out


@dataclass(frozen=True, slots=True)
class ByMagnitude:
    """LoRA's result with each row (or each column) scaled to a trained length (DoRA).

    `by_column`: for PEFT's embeddings, where the length of a column is over the whole vocabulary.
    """

    lora: LowRank
    magnitude: Factor
    scale: float
    by_column: bool = False
    _lengths: list[F64] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def shape_fault(self, shape: tuple[int, ...]) -> str | None:
        fault, count = self.lora.shape_fault(shape), self.magnitude.info.parameters
        if fault is None and count != shape[-1 if self.by_column else 0]:
            return f"a magnitude of {count} numbers for a tensor {list(shape)}"
        return fault

    def read(self, before: ReadPart, shape: tuple[int, ...], rows: Range | None, columns: Range | None) -> F32:
        first, last = rows or (0, shape[0]), columns or (0, shape[-1])
        magnitude = self.magnitude.read().reshape(-1)
        if self.by_column:
            merged = self.lora.read(before, shape, first, last).astype(np.float64)
            ratio = (magnitude / self._column_lengths(before, shape))[last[0] : last[1]]
            changed = (merged * ratio).astype(np.float32)
        else:
            changed = self._by_row(before, shape, magnitude, first, last)
        return changed if self.scale == 1 else _toward(before(first, columns), changed, self.scale)

    def _by_row(self, before: ReadPart, shape: tuple[int, ...], magnitude: F64, first: Range, last: Range) -> F32:
        out = np.empty((first[1] - first[0], *shape[1:-1], last[1] - last[0]), np.float32)
        for start, end in _row_blocks(shape, first):
            merged = self.lora.read(before, shape, (start, end), None).astype(np.float64)
            lengths = np.sqrt(np.square(merged).reshape(len(merged), -1).sum(axis=1))
            ratio = (magnitude[start:end] / lengths).reshape(-1, *[1] * (len(shape) - 1))
            out[start - first[0] : end - first[0]] = (merged * ratio)[..., last[0] : last[1]]
        return out

    def _column_lengths(self, before: ReadPart, shape: tuple[int, ...]) -> F64:
        """The length of each column, from one pass over the whole tensor at the first read."""
        with self._lock:
            if not self._lengths:
                total = np.zeros(shape[-1])
                for block in _row_blocks(shape, (0, shape[0])):
                    total += np.square(self.lora.read(before, shape, block, None).astype(np.float64)).sum(axis=0)
                self._lengths.append(np.sqrt(total))
            return self._lengths[0]


@dataclass(frozen=True, slots=True)
class Replacement:
    """A tensor that was trained and saved whole.

    `is_base`: it was saved because LoRA factors were trained on top of it; if tied, it is the output matrix too.
    """

    value: Factor
    scale: float
    is_base: bool = False

    def shape_fault(self, shape: tuple[int, ...]) -> str | None:
        found = self.value.info.shape
        return None if found == shape else f"{list(found)} for a tensor {list(shape)}"

    def read(self, before: ReadPart, shape: tuple[int, ...], rows: Range | None, columns: Range | None) -> F32:
        changed = read_tensor(self.value.file, self.value.info, rows, columns)
        return changed if self.scale == 1 else _toward(before(rows, columns), changed, self.scale)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Single rows of an embedding that were trained, by index."""

    value: Factor
    rows: tuple[int, ...]
    scale: float

    def shape_fault(self, shape: tuple[int, ...]) -> str | None:
        wanted = (len(self.rows), *shape[1:])
        if not shape or self.value.info.shape != wanted:
            return f"{list(self.value.info.shape)} for {len(self.rows)} tokens of a tensor {list(shape)}"
        beyond = [row for row in self.rows if row >= shape[0]]
        return f"token {beyond[0]} for a tensor {list(shape)}" if beyond else None

    def read(self, before: ReadPart, shape: tuple[int, ...], rows: Range | None, columns: Range | None) -> F32:
        first = rows or (0, shape[0])
        out = before(rows, columns).copy()
        for index, row in enumerate(self.rows):
            if first[0] <= row < first[1]:
                changed = read_tensor(self.value.file, self.value.info, (index, index + 1), columns)[0]
                out[row - first[0]] = _toward(out[row - first[0]], changed, self.scale)
        return out


@dataclass(frozen=True, slots=True)
class Addition:
    """W + factor * value: the bias of a LoRA factor."""

    value: Factor
    factor: float

    def shape_fault(self, shape: tuple[int, ...]) -> str | None:
        found = self.value.info.shape
        return None if found == shape else f"{list(found)} for a tensor {list(shape)}"

    def read(self, before: ReadPart, shape: tuple[int, ...], rows: Range | None, columns: Range | None) -> F32:
        change = read_tensor(self.value.file, self.value.info, rows, columns).astype(np.float64)
        return np.asarray(before(rows, columns) + change * self.factor, np.float32)


def _toward(before: F32, after: F32, scale: float) -> F32:
    """The values that lie `scale` of the way from one tensor to the other."""
    if scale == 1:
        return after
    start = before.astype(np.float64)
    return np.asarray(start + scale * (after - start), np.float32)


def _row_blocks(shape: tuple[int, ...], rows: Range) -> list[Range]:
    step = max(1, _BLOCK_WEIGHTS // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    return [(start, min(start + step, rows[1])) for start in range(*rows, step)]
