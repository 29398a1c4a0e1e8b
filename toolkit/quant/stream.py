"""Streams weights into files: rows are read in chunks, quantised by several threads and written at their offsets."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import CheckpointError, EnvironmentFault, system_reason
from toolkit.base.files import write_at
from toolkit.base.weights import Weight, WeightPart
from toolkit.quant.packing import pack_codes, require_finite, to_float16
from toolkit.quant.pipeline import pipeline
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.scheme import Scheme, check_scheme, payload_bytes, scales_bytes
from toolkit.quant.source import PackedRows, PackedSource, TensorSource
from toolkit.quant.uniform import QuantizedRows, quantize_rows

_Encoded = tuple[NDArray[np.generic], NDArray[np.generic] | None]

CHUNK_WEIGHTS = 1 << 19  # 2 MiB of float32: large beside the overhead of a task, small beside any memory budget


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a weight's bytes go in the file; `scales_offset` is for float16 block scales, if the weight has them."""

    weight: Weight
    scheme: Scheme
    payload_offset: int
    scales_offset: int | None


@dataclass(frozen=True, slots=True)
class FileWeights:
    """The weights of one file, open for writing as `fd`."""

    fd: int
    placements: Sequence[Placement]


def stream_files(
    files: Sequence[FileWeights],
    source: TensorSource,
    *,
    packed: PackedSource | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
    rounded: RoundedWeights | None = None,
) -> list[dict[str, NDArray[np.float32]]]:
    """Write the payload and the block scales of every weight, and return the per-channel scales, which belong in the
    headers: for each file, float32[rows] by the weight's name.

    Weights of the same parts are read once, and quantised once if they have the same scheme. What `packed` has in a
    weight's scheme is copied.
    At most `workers + AHEAD` chunks of about 2 MiB of float32, or one row, are in memory. The bytes written do not
    depend on `workers`. Weights that are in `rounded` are copied from there.
    `progress` gets, in the calling thread, the payload bytes written since the last call. The first
    error in file order ends the stream and is raised as it is; the files are then incomplete.
    """
    scales = [
        {p.weight.name: np.empty(p.weight.shape[0], np.float32) for p in file.placements if p.scheme.per_channel}
        for file in files
    ]
    chunks = _chunks(_shared(files, source))
    results = pipeline(chunks, partial(_read_chunk, source, packed, rounded), partial(_write_chunk, rounded), workers)
    with closing(results):
        for written in results:
            for file, name, first_row, rows in written.scales:
                scales[file][name][first_row : first_row + len(rows)] = rows
            if progress is not None:
                progress(written.payload_bytes)
    return scales


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a weight: rows [start, stop) of a tensor; columns and axes as in `WeightPart`."""

    tensor: str
    start: int
    stop: int
    columns: tuple[int, int] | None
    axes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class _Target:
    """A weight's place in one of the files: the file's index, its descriptor, and the placement in it."""

    file: int
    fd: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of one part, and all the weights that are made from them; in these, the rows begin at `first_row`."""

    targets: Sequence[_Target]
    part: _Part
    rows: tuple[int, int]
    first_row: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What was read for a chunk: codes by scheme, and float32[rows, ...] for the other schemes, if there are any."""

    packed: Mapping[Scheme, PackedRows]
    values: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class _Written:
    """Bytes written for a chunk, and its per-channel scales: file index, weight name, first row, float32[rows]."""

    payload_bytes: int
    scales: Sequence[tuple[int, str, int, NDArray[np.float32]]]


def _shared(files: Sequence[FileWeights], source: TensorSource) -> list[tuple[list[_Target], list[_Part]]]:
    """Weights that have the same parts, joined, in the order of the first of them; all weights are checked here."""
    targets: dict[object, tuple[list[_Target], list[_Part]]] = {}
    for index, file in enumerate(files):
        for placement in file.placements:
            parts = _checked_parts(placement, source)
            shared = targets.setdefault((placement.weight.parts, placement.weight.shape), ([], parts))
            shared[0].append(_Target(index, file.fd, placement))
    return list(targets.values())


def _chunks(shared: Sequence[tuple[Sequence[_Target], Sequence[_Part]]]) -> Iterator[_Chunk]:
    """The chunks of all weights in file order; each lies in one part."""
    for targets, parts in shared:
        step = max(1, CHUNK_WEIGHTS // math.prod(targets[0].placement.weight.shape[1:]))
        first_row = 0
        for part in parts:
            for row in range(part.start, part.stop, step):
                end = min(row + step, part.stop)
                yield _Chunk(targets, part, (row, end), first_row)
                first_row += end - row


def _write_chunk(rounded: RoundedWeights | None, chunk: _Chunk, found: _Found) -> _Written:
    encoded = {scheme: _copied(packed, scheme) for scheme, packed in found.packed.items()}
    scales = []
    payload_size = 0
    for target in chunk.targets:
        placement = target.placement
        weight, scheme = placement.weight, placement.scheme
        if rounded is not None and weight.name in rounded:
            rows = rounded.rows(weight.name, chunk.first_row, chunk.first_row + chunk.rows[1] - chunk.rows[0])
            payload, row_scales = _packed(rows, scheme)
        else:
            if scheme not in encoded:
                values, shape = found.values, (chunk.rows[1] - chunk.rows[0], *weight.shape[1:])
                assert values is not None and values.shape == shape, "the source broke its promise"
                encoded[scheme] = _encode(values, scheme, weight.name, chunk.first_row)
            payload, row_scales = encoded[scheme]
        before = (chunk.first_row, *weight.shape[1:])
        _write(target.fd, payload, placement.payload_offset + payload_bytes(before, scheme), weight.name)
        payload_size += payload.nbytes
        if placement.scales_offset is not None:
            assert row_scales is not None
            _write(target.fd, row_scales, placement.scales_offset + scales_bytes(before, scheme), weight.name)
        elif row_scales is not None:
            scales.append((target.file, weight.name, chunk.first_row, row_scales.astype(np.float32, copy=False)))
    return _Written(payload_size, scales)


def _copied(packed: PackedRows, scheme: Scheme) -> _Encoded:
    """Rows that are codes already, in the form in which the file stores them."""
    return packed.payload, packed.scales if scheme.block_size is None else packed.scales.astype("<f2", copy=False)


def _encode(values: NDArray[np.float32], scheme: Scheme, name: str, first_row: int) -> _Encoded:
    """Rows in the form in which the file stores them: their payload, and their scales if the scheme has any."""
    assert values.dtype == np.float32, "the source broke its promise"
    if scheme.dtype == "f32":
        require_finite(values, name, first_row)
        return values.astype("<f4", copy=False), None
    if scheme.dtype == "f16":
        return to_float16(values, name).astype("<f2", copy=False), None
    return _packed(quantize_rows(values.reshape(len(values), -1), scheme, name=name, first_row=first_row), scheme)


def _packed(quantized: QuantizedRows, scheme: Scheme) -> _Encoded:
    payload = pack_codes(quantized.codes, scheme.element.bits)
    if scheme.block_size is None:
        return payload, quantized.scales
    return payload, quantized.scales.astype("<f2", copy=False)


def _read_chunk(
    source: TensorSource, packed: PackedSource | None, rounded: RoundedWeights | None, chunk: _Chunk
) -> _Found:
    """The chunk's rows for the weights that are not in `rounded`: codes for the schemes that have them, else floats."""
    part, found = chunk.part, {}
    placements = (target.placement for target in chunk.targets)
    schemes = {item.scheme for item in placements if rounded is None or item.weight.name not in rounded}
    if packed is not None and part.axes is None:
        for scheme in schemes:
            rows = _stored_rows(packed, part.tensor, scheme, chunk.rows, part.columns)
            if rows is not None:
                found[scheme] = rows
    return _Found(found, _read_rows(source, chunk) if schemes - found.keys() else None)


def is_copied(placement: Placement, packed: PackedSource | None) -> bool:
    """Whether a weight's codes and scales are those that `packed` has, in all parts, so that nothing is quantised."""
    return packed is not None and all(
        part.axes is None and _stored_rows(packed, part.tensor, placement.scheme, (0, 0), part.columns) is not None
        for part in placement.weight.parts
    )


def _stored_rows(
    packed: PackedSource, tensor: str, scheme: Scheme, rows: tuple[int, int], columns: tuple[int, int] | None
) -> PackedRows | None:
    """Rows of a tensor that is stored as a file can hold it in this scheme; None if it has to be quantised."""
    found = packed.packed(tensor, scheme, rows, columns) if scheme.quantised else None
    # LiteRT's block scales are float16; a checkpoint may have float32 ones, which only PLE shards can hold.
    return found if found is not None and (scheme.per_channel or found.scales.dtype == np.float16) else None


def _read_rows(source: TensorSource, chunk: _Chunk) -> NDArray[np.float32]:
    """The chunk's rows in the weight's shape: float32[rows, ...]."""
    part = chunk.part
    if part.axes is None:
        return source.read(part.tensor, chunk.rows, part.columns)
    stored = source.read(part.tensor, chunk.rows if part.axes[0] == 0 else None)
    shape = chunk.targets[0].placement.weight.shape
    return stored.transpose(part.axes).reshape(chunk.rows[1] - chunk.rows[0], *shape[1:])


def _write(fd: int, array: NDArray[np.generic], offset: int, name: str) -> None:
    data = np.ascontiguousarray(array).data.cast("B")
    try:
        write_at(fd, data, offset)
    except OSError as error:
        raise EnvironmentFault(
            f"weight {name}",
            file=_file_name(fd),
            found=f"{system_reason(error)} at byte {offset}",
            remedy="free space on that disk or choose another output",
        ) from error


def _file_name(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"file descriptor {fd}"  # no /proc on this system


def _checked_parts(placement: Placement, source: TensorSource) -> list[_Part]:
    """The parts of a weight, checked against their tensors before any byte is read."""
    weight, scheme = placement.weight, placement.scheme
    check_scheme(weight.name, weight.shape, scheme)
    has_block_scales = scales_bytes(weight.shape, scheme) > 0
    assert has_block_scales == (placement.scales_offset is not None), "scales_offset is for block scales only"
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
    """A permuted part: its rows are also rows of the tensor, or the weight is a single row, which is read whole."""
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
