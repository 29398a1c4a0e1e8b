"""The weight stream: chunks of rows are read, quantised on every core and written to their exact offsets."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import CheckpointError, EnvironmentFault
from toolkit.files import write_at
from toolkit.quant.packing import pack_int4, to_float16
from toolkit.quant.pipeline import pipeline
from toolkit.quant.scheme import Scheme, check_scheme, payload_bytes, scales_bytes
from toolkit.quant.source import TensorSource
from toolkit.quant.uniform import quantize_rows
from toolkit.weights import Weight, WeightPart

CHUNK_WEIGHTS = 1 << 19  # 2 MiB of float32: large against the cost of a task, small against any memory budget


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a weight's bytes go in the file; `scales_offset` is where float16 block scales go, if it has them."""

    weight: Weight
    scheme: Scheme
    payload_offset: int
    scales_offset: int | None


def stream_weights(
    fd: int,
    placements: Sequence[Placement],
    source: TensorSource,
    *,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Write every weight's payload and block scales; returns float32[rows] by name for those with a scale per row.

    Some chunks of about 2 MiB of float32 (at least one row) are held. The bytes do not depend on ``workers``.
    ``progress`` gets, in the calling thread, the payload bytes written since the last call. The first
    error in file order ends the stream and is raised as it is; the file is then incomplete.
    """
    checked = [(placement, _checked_parts(placement, source)) for placement in placements]
    scales: dict[str, NDArray[np.float32]] = {
        p.weight.name: np.empty(p.weight.shape[0], np.float32) for p in placements if p.scheme.per_channel
    }
    results = pipeline(_chunks(checked), partial(_read_rows, source), partial(_write_chunk, fd), workers)
    with closing(results):
        for written in results:
            if written.scales is not None:
                rows = slice(written.first_row, written.first_row + len(written.scales))
                scales[written.name][rows] = written.scales
            if progress is not None:
                progress(written.payload_bytes)
    return scales


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a weight, with its rows of the tensor known."""

    tensor: str
    start: int
    stop: int
    columns: tuple[int, int] | None
    axes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of one part; `first_row` is their place in the weight."""

    placement: Placement
    part: _Part
    rows: tuple[int, int]
    first_row: int


@dataclass(frozen=True, slots=True)
class _Written:
    name: str
    first_row: int
    payload_bytes: int
    scales: NDArray[np.float32] | None


def _chunks(checked: Sequence[tuple[Placement, Sequence[_Part]]]) -> Iterator[_Chunk]:
    """Chunks in file order; none crosses a part's border."""
    for placement, parts in checked:
        step = max(1, CHUNK_WEIGHTS // math.prod(placement.weight.shape[1:]))
        first_row = 0
        for part in parts:
            for row in range(part.start, part.stop, step):
                end = min(row + step, part.stop)
                yield _Chunk(placement, part, (row, end), first_row)
                first_row += end - row


def _write_chunk(fd: int, chunk: _Chunk, values: NDArray[np.float32]) -> _Written:
    placement, weight, scheme = chunk.placement, chunk.placement.weight, chunk.placement.scheme
    count = chunk.rows[1] - chunk.rows[0]
    assert values.shape == (count, *weight.shape[1:]) and values.dtype == np.float32, "the source broke its promise"
    offset = placement.payload_offset + payload_bytes((chunk.first_row, *weight.shape[1:]), scheme)
    if scheme.dtype == "f32":
        _write(fd, values.astype("<f4", copy=False), offset, weight.name)
        return _Written(weight.name, chunk.first_row, values.nbytes, None)
    if scheme.dtype == "f16":
        halves = to_float16(values, weight.name)
        _write(fd, halves.astype("<f2", copy=False), offset, weight.name)
        return _Written(weight.name, chunk.first_row, halves.nbytes, None)
    matrix = values.reshape(count, -1)
    quantized = quantize_rows(matrix, scheme, name=weight.name, first_row=chunk.first_row)
    payload = pack_int4(quantized.codes) if scheme.dtype == "int4" else quantized.codes
    _write(fd, payload, offset, weight.name)
    if placement.scales_offset is None:
        return _Written(weight.name, chunk.first_row, payload.nbytes, quantized.scales.astype(np.float32, copy=False))
    offset = placement.scales_offset + scales_bytes((chunk.first_row, *weight.shape[1:]), scheme)
    _write(fd, quantized.scales.astype("<f2", copy=False), offset, weight.name)
    return _Written(weight.name, chunk.first_row, payload.nbytes, None)


def _read_rows(source: TensorSource, chunk: _Chunk) -> NDArray[np.float32]:
    """The chunk's rows as the weight has them."""
    part = chunk.part
    if part.axes is None:
        return source.read(part.tensor, chunk.rows, part.columns)
    stored = source.read(part.tensor, chunk.rows if part.axes[0] == 0 else None)
    return stored.transpose(part.axes).reshape(chunk.rows[1] - chunk.rows[0], *chunk.placement.weight.shape[1:])


def _write(fd: int, array: NDArray[np.generic], offset: int, name: str) -> None:
    data = np.ascontiguousarray(array).data.cast("B")
    try:
        write_at(fd, data, offset)
    except OSError as error:
        raise EnvironmentFault(
            f"writing weight {name} to {_file_name(fd)}",
            found=error.strerror or error,
            wanted=f"{len(data)} bytes written at {offset}",
            remedy="free space on that disk or choose another output",
        ) from error


def _file_name(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"file descriptor {fd}"  # no /proc on this system


def _checked_parts(placement: Placement, source: TensorSource) -> list[_Part]:
    """The parts of a weight, after everything that can be wrong with it was looked for and before a byte is read."""
    weight, scheme = placement.weight, placement.scheme
    check_scheme(weight.name, weight.shape, scheme)
    has_block_scales = scales_bytes(weight.shape, scheme) > 0
    assert has_block_scales == (placement.scales_offset is not None), "block scales need a place, nothing else does"
    parts = [_checked_part(weight, part, source.shape(part.tensor)) for part in weight.parts]
    rows = sum(part.stop - part.start for part in parts)
    if rows != weight.shape[0]:
        what = f"weight {weight.name} of {', '.join(part.tensor for part in parts)}"
        raise CheckpointError(what, found=f"{rows} rows", wanted=f"{weight.shape[0]}")
    return parts


def _checked_part(weight: Weight, part: WeightPart, shape: tuple[int, ...]) -> _Part:
    if part.axes is not None:
        return _checked_permutation(weight, part.tensor, part.axes, shape)
    start, stop = part.rows or (0, shape[0])
    low, high = part.columns or (0, shape[-1])
    inner = shape[1:] if part.columns is None else (*shape[1:-1], high - low)
    if not (0 <= start < stop <= shape[0] and 0 <= low < high <= shape[-1] and inner == weight.shape[1:]):
        wanted = f"rows {start} to {stop} of shape {weight.shape[1:]}, columns {low} to {high}"
        raise CheckpointError(f"tensor {part.tensor} of weight {weight.name}", found=f"shape {shape}", wanted=wanted)
    return _Part(part.tensor, start, stop, part.columns, None)


def _checked_permutation(weight: Weight, tensor: str, axes: tuple[int, ...], shape: tuple[int, ...]) -> _Part:
    """Rows are still rows, or the weight is one row, read whole."""
    assert axes[0] == 0 or weight.shape[0] == 1, "a permutation that scatters rows cannot be streamed"
    if sorted(axes) != list(range(len(shape))):
        what = f"tensor {tensor} of weight {weight.name}"
        raise CheckpointError(what, found=f"shape {shape}", wanted=f"{len(axes)} axes")
    permuted = tuple(shape[axis] for axis in axes)
    rows, inner = (permuted[0], permuted[1:]) if axes[0] == 0 else (1, permuted)
    if [d for d in inner if d != 1] != [d for d in weight.shape[1:] if d != 1]:
        what = f"tensor {tensor} of weight {weight.name}"
        raise CheckpointError(what, found=f"shape {shape}", wanted=f"{weight.shape} after the permutation {axes}")
    return _Part(tensor, 0, rows, None, axes)
