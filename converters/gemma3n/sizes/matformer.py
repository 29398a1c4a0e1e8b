"""MatFormer: cuts smaller models out of a checkpoint, without retraining.

A slice keeps some layers, and in each the first units of its feed-forward network. Source: Google's MatFormer Lab
notebook (google-gemini/gemma-cookbook), with layer_types renumbered as transformers 5 requires.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converters.gemma.config import layer_kv_sources
from converters.gemma.tensors import PER_LAYER_EMBEDDING, PER_LAYER_MODEL_PROJECTION, TOKEN_EMBEDDING, unused_kv_tensors
from converters.gemma3n.config.text import LayerConfig, TextConfig, TextModel
from converters.gemma3n.tensors import text_tensors
from converters.slices import Slice
from toolkit.base.errors import CheckpointError, SliceError, UsageError

Range = tuple[int, int]

_LAYER_NAME = re.compile(r"layers\.(0|[1-9][0-9]{0,5})\.(.+)", re.ASCII)
_FFN_ROWS = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_FFN_COLUMNS = "mlp.down_proj.weight"


def is_whole(slice_: Slice, config: TextConfig) -> bool:
    """Whether nothing is cut from the checkpoint."""
    return slice_ == whole_slice(config, slice_.name)


def whole_slice(config: TextConfig, name: str) -> Slice:
    """The checkpoint itself as a slice."""
    return Slice(name, tuple(range(config.num_layers)), tuple(layer.ffn_size for layer in config.layers))


def slice_config(config: TextConfig, slice_: Slice) -> TextConfig:
    """The config of the smaller model, with renumbered layers; SliceError if the checkpoint does not contain it.

    A kept layer must still share the keys and values of the same layer as in training, so that layer must be kept too.
    """
    _check_layers(config, slice_)
    new_index = {old: new for new, old in enumerate(slice_.layers)}
    layers: list[LayerConfig] = []
    for old, width in zip(slice_.layers, slice_.ffn_sizes, strict=True):
        layer = config.layers[old]
        if not 1 <= width <= layer.ffn_size:
            raise SliceError(
                f"slice {slice_.name}, FFN of layer {old}", found=width, wanted=f"an integer from 1 to {layer.ffn_size}"
            )
        if layer.kv_source is not None and layer.kv_source not in new_index:
            raise SliceError(
                f"slice {slice_.name}",
                found=f"layer {layer.kv_source} is skipped, whose keys and values layer {old} reads",
            )
        source = None if layer.kv_source is None else new_index[layer.kv_source]
        layers.append(replace(layer, ffn_size=width, kv_source=source))
    shared = sum(layer.kv_source is not None for layer in layers)
    # The shared layers are the last owners of their type and are kept, so transformers' rule finds the same ones.
    assert layer_kv_sources([layer.attention for layer in layers], shared) == tuple(item.kv_source for item in layers)
    return replace(config, layers=tuple(layers))


def effective_parameters(config: TextConfig) -> int:
    """Google's count ("E2B"): the text model without embedding tables, but with the unused keys and values of layers
    that share."""
    shapes = {**text_tensors(config), **unused_kv_tensors(config)}
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in (TOKEN_EMBEDDING, PER_LAYER_EMBEDDING))


def parameters_by_group(config: TextConfig) -> Mapping[str, int]:
    """Parameters by group: the effective parameters as `text`, and those of the two embedding tables."""
    shapes = text_tensors(config)
    return {
        "text": effective_parameters(config),
        "token_embedding": math.prod(shapes[TOKEN_EMBEDDING]),
        "per_layer_embedding": math.prod(shapes[PER_LAYER_EMBEDDING]),
    }


class SlicedCheckpoint:
    """A slice as a `TextModel`, with the same tensors as if the checkpoint had been sliced and saved."""

    def __init__(self, checkpoint: TextModel, slice_: Slice) -> None:
        """Raise SliceError if the checkpoint does not contain the slice."""
        self._config = slice_config(checkpoint.config, slice_)
        self._checkpoint = checkpoint
        self._slice = slice_

    @property
    def config(self) -> TextConfig:
        return self._config

    @property
    def slice(self) -> Slice:
        return self._slice

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a sliced tensor; CheckpointError if there is no such tensor."""
        source, rows, columns = self._locate(name)
        shape = list(self._checkpoint.shape(source))
        for axis, runs in ((0, rows), (-1, columns)):
            if runs is not None:
                shape[axis] = sum(end - begin for begin, end in runs)
        return tuple(shape)

    def read(self, name: str, rows: Range | None = None, columns: Range | None = None) -> NDArray[np.float32]:
        """A sliced tensor, or half-open ranges of its first and last axis."""
        source, row_runs, column_runs = self._locate(name)
        column_parts = _select(column_runs, columns, name)
        bands = [self._read_band(source, row_part, column_parts) for row_part in _select(row_runs, rows, name)]
        return bands[0] if len(bands) == 1 else np.concatenate(bands)

    def _read_band(self, source: str, rows: Range | None, columns: Sequence[Range | None]) -> NDArray[np.float32]:
        """Read some columns of some rows, and join the columns."""
        runs = [run for run in columns if run is not None]
        if len(runs) < 2:
            return self._checkpoint.read(source, rows, columns[0])
        low, high = runs[0][0], runs[-1][1]
        if 2 * sum(end - begin for begin, end in runs) < high - low:
            return np.concatenate([self._checkpoint.read(source, rows, run) for run in runs], axis=1)
        # E2B keeps 6/7 of each row of the PLE table, and reading whole rows is faster than two reads for each row.
        span = self._checkpoint.read(source, rows, (low, high))
        return np.concatenate([span[:, begin - low : end - low] for begin, end in runs], axis=1)

    def _locate(self, name: str) -> tuple[str, list[Range] | None, list[Range] | None]:
        """The source tensor, and the ranges of its rows and columns that the slice keeps (None: all)."""
        if name == PER_LAYER_EMBEDDING:
            return name, None, self._ple_runs()
        if name == PER_LAYER_MODEL_PROJECTION:
            return name, self._ple_runs(), None
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            return name, None, None
        index, rest = int(match[1]), match[2]
        if index >= self._config.num_layers:
            raise CheckpointError(
                f"slice {self._slice.name}",
                found=f"no tensor {name}",
                wanted=f"a layer below {self._config.num_layers}",
            )
        source = f"layers.{self._slice.layers[index]}.{rest}"
        kept = [(0, self._slice.ffn_sizes[index])]
        if rest in _FFN_ROWS:
            return source, kept, None
        return source, None, kept if rest == _FFN_COLUMNS else None

    def _ple_runs(self) -> list[Range]:
        """The columns of the PLE table (rows of its projection) for the kept layers; adjacent ranges are joined."""
        size = self._config.ple_size
        runs: list[Range] = []
        for layer in self._slice.layers:
            begin, end = layer * size, (layer + 1) * size
            if runs and runs[-1][1] == begin:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((begin, end))
        return runs


def _check_layers(config: TextConfig, slice_: Slice) -> None:
    what = f"slice {slice_.name}"
    if len(slice_.layers) != len(slice_.ffn_sizes):
        raise SliceError(
            what, found=f"{len(slice_.ffn_sizes)} FFN sizes", wanted=f"one for each of {len(slice_.layers)} layers"
        )
    if not slice_.layers:
        raise SliceError(what, found="no layers")
    last = -1
    for layer in slice_.layers:
        if not last < layer < config.num_layers:
            raise SliceError(
                what, found=f"layer {layer} after {last}", wanted=f"increasing indices below {config.num_layers}"
            )
        last = layer


def _select(runs: list[Range] | None, wanted: Range | None, name: str) -> list[Range | None]:
    """The ranges of the source for a range of the slice; None (all) if both are None.

    >>> _select([(0, 4), (6, 8)], (3, 5), "doctest")
    [(3, 4), (6, 7)]
    """
    if runs is None:
        return [wanted]
    total = sum(end - begin for begin, end in runs)
    low, high = wanted if wanted is not None else (0, total)
    if not 0 <= low <= high <= total:
        raise UsageError(name, found=f"the range {wanted}", wanted=f"one within 0..{total}")
    selected: list[Range | None] = []
    position = 0
    for begin, end in runs:
        first, last = max(low - position, 0), min(high - position, end - begin)
        if first < last:
            selected.append((begin + first, begin + last))
        position += end - begin
    return selected or [(runs[0][0], runs[0][0])]
