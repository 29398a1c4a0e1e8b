"""Writes safetensors files of random weights in little memory, for the makers of synthetic checkpoints."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Chunks = Iterator[NDArray[Any]]

BYTES_PER_ELEMENT: Mapping[str, int] = {"BF16": 2, "F32": 4, "U8": 1, "I8": 1}

_POOL = 1 << 22  # random numbers from which tensors are cut at random places, which is faster than drawing each
_CHUNK = 1 << 19


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file, with the function that makes its elements in order, some at a time."""

    dtype: str
    shape: Shape
    chunks: Callable[[], Chunks]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * BYTES_PER_ELEMENT[self.dtype]


Tensors = Mapping[str, Stored]


def write_weights(directory: Path, tensors: Tensors, shard_bytes: int | None, *, sparse: bool = False) -> int:
    """Write model.safetensors, or, with `shard_bytes`, shards and their index; return the bytes of the weights.

    `sparse`: all weights are zeros that take no space on disk.
    """
    shards = _shards(tensors, shard_bytes)
    for name, members in shards.items():
        with open(directory / name, "wb") as file:
            _write_safetensors(file, members, sparse=sparse)
    if len(shards) > 1:
        write_json(directory / "model.safetensors.index.json", _index(shards))
    return sum(tensor.size_bytes for tensor in tensors.values())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class Noise:
    """Numbers cut from one pool; the same for the same seed and the same order of calls."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._pool = self._random.standard_normal(_POOL, dtype=np.float32)

    def bfloat16(self, count: int, mean: float, deviation: float) -> Chunks:
        """Normal numbers as bfloat16 bits, uint16."""
        for done in range(0, count, _CHUNK):
            yield self._bfloat16(min(_CHUNK, count - done), np.float32(mean), np.float32(deviation))

    def of(self, name: str) -> Noise:
        """The same pool with its own random places for this name, whatever was drawn before."""
        other = copy.copy(self)
        other._random = np.random.default_rng([self._seed, *name.encode()])
        return other

    def bytes(self, count: int, table: NDArray[np.uint8] | None = None) -> Chunks:
        """Uniform bytes; with a `table` of 65,536 bytes, these, each equally likely. From the pool's lowest bits."""
        pool = self._pool.view(np.uint16)[::2]
        for done in range(0, count, _CHUNK):
            size = min(_CHUNK, count - done)
            start = int(self._random.integers(_POOL - size))
            bits = pool[start : start + size]
            yield bits.astype(np.uint8) if table is None else table[bits]

    def scales(self, count: int, mean: float) -> Chunks:
        """Positive float32 numbers within a tenth of their mean."""
        for done in range(0, count, _CHUNK):
            size = min(_CHUNK, count - done)
            yield np.float32(mean) * self._random.uniform(0.9, 1.1, size).astype(np.float32)

    def _bfloat16(self, count: int, mean: np.float32, deviation: np.float32) -> NDArray[np.uint16]:
        start = int(self._random.integers(_POOL - count))
        values = self._pool[start : start + count] * deviation
        values += mean
        bits = values.view(np.uint32)
        bits += np.uint32(0x8000)  # rounds to the nearest: bfloat16 is the upper half
        bits >>= np.uint32(16)
        return bits.astype("<u2")


def _shards(tensors: Tensors, limit: int | None) -> dict[str, dict[str, Stored]]:
    """The files with their tensors, in order; a file ends before the tensor that would make it larger than `limit`."""
    if limit is None:
        return {"model.safetensors": dict(tensors)}
    files: list[dict[str, Stored]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if files[-1] and filled + tensor.size_bytes > limit:
            files.append({})
            filled = 0
        files[-1][name] = tensor
        filled += tensor.size_bytes
    return {f"model-{n:05}-of-{len(files):05}.safetensors": file for n, file in enumerate(files, 1)}


def _index(shards: Mapping[str, Tensors]) -> dict[str, object]:
    total = sum(tensor.size_bytes for members in shards.values() for tensor in members.values())
    names = {tensor: file for file, members in shards.items() for tensor in members}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}


def _write_safetensors(file: BinaryIO, tensors: Tensors, *, sparse: bool) -> None:
    """Write the header, then each tensor as it is made; if `sparse`, a hole of their size.

    Format: github.com/huggingface/safetensors, README.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.size_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed = packed.ljust(-(-len(packed) // 8) * 8)
    file.write(struct.pack("<Q", len(packed)) + packed)
    if sparse:
        file.truncate(file.tell() + offset)
        return
    for tensor in tensors.values():
        for chunk in tensor.chunks():
            file.write(chunk.data)
