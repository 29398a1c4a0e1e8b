"""Reads the tensors of any model's checkpoint by the names in its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.safetensors import SafetensorsFile, TensorInfo, open_safetensors
from converters.huggingface.tensor_reader import FLOAT_DTYPES, read_tensor
from toolkit.base.activations import ActivationScales
from toolkit.quant.scheme import Scheme
from toolkit.quant.source import PackedRows

_COMPARED_BYTES = 4 << 20

_SAMPLES, _SAMPLE_BYTES = 16, 4096
"""The number of samples in a large tensor's fingerprint; part of the manifest's format (docs/formats/manifest.md)."""


class StoredTensors:
    """The open files of a checkpoint; safe to read from several threads."""

    def __init__(self, path: Path, files: Sequence[SafetensorsFile] | None = None) -> None:
        """Read the headers and the index, but no weights; CheckpointError if one of them is invalid.

        `files`: the files of weights, if they are not in `path`.
        """
        self.are_remote = files is not None
        self._files = {file.path.name: file for file in (open_safetensors(path) if files is None else files)}
        self.infos: Mapping[str, TensorInfo] = {
            name: info for file in self._files.values() for name, info in file.tensors.items()
        }

    def read(
        self, info: TensorInfo, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Read a tensor, or half-open ranges of its first and last axis, as float32; reads only the bytes needed."""
        return read_tensor(self._files[info.file], info, rows, columns)

    def is_readable(self, info: TensorInfo) -> bool:
        """Whether `read` supports the tensor's type."""
        return info.dtype in FLOAT_DTYPES

    def packed(
        self, info: TensorInfo, scheme: Scheme, rows: tuple[int, int], columns: tuple[int, int] | None = None
    ) -> PackedRows | None:
        """Rows of a tensor that is stored as codes in this scheme; None for any other tensor, including floats."""
        return None

    def scheme(self, info: TensorInfo) -> Scheme | None:
        """The scheme in which a tensor is stored; None for floats."""
        return None

    def activation_scales(self, info: TensorInfo) -> ActivationScales:
        """The scales to which the product with a tensor rounds its inputs and outputs."""
        return ActivationScales()

    def equal(self, one: TensorInfo, other: TensorInfo) -> bool:
        """Whether two tensors have the same type, shape and bytes."""
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        starts = range(0, one.stored_bytes, _COMPARED_BYTES)
        parts = ((start, min(_COMPARED_BYTES, one.stored_bytes - start)) for start in starts)
        return all(np.array_equal(self._bytes(one, *part), self._bytes(other, *part)) for part in parts)

    def fingerprint(self, config: object, stop_tokens: Iterable[int], names: Mapping[str, TensorInfo]) -> str:
        """The sha256, in hex, of a config's values, each tensor's name, type and shape, and samples of its bytes.

        It distinguishes models, including fine-tuned ones, without reading them completely: the samples are spread
        evenly over each tensor, and small tensors are read whole. `names`: the tensors by the family's names. The
        distribution of tensors over shards does not matter.
        """
        digest = hashlib.sha256(json.dumps([config, list(stop_tokens)], sort_keys=True).encode())
        for name in sorted(names):
            info = names[name]
            digest.update(json.dumps([name, info.dtype, info.shape]).encode())
            for start, count in _samples(info.stored_bytes):
                digest.update(self._bytes(info, start, count).data)
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """Raise CheckpointError if a file of weights has changed since it was opened."""
        for file in self._files.values():
            file.require_unchanged()

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()

    def _bytes(self, info: TensorInfo, start: int, count: int) -> NDArray[np.uint8]:
        data = np.empty(count, np.uint8)
        self._files[info.file].read_into(data, info.begin + start)
        return data


def _samples(size: int) -> list[tuple[int, int]]:
    """The offset and length of each sample that the fingerprint reads of a tensor of `size` bytes.

    >>> _samples(65536), _samples(10**6)[:2], len(_samples(10**6)), sum(_samples(10**6)[-1])
    ([(0, 65536)], [(0, 4096), (66393, 4096)], 16, 1000000)
    """
    if size <= _SAMPLES * _SAMPLE_BYTES:
        return [(0, size)]
    return [(place * (size - _SAMPLE_BYTES) // (_SAMPLES - 1), _SAMPLE_BYTES) for place in range(_SAMPLES)]
