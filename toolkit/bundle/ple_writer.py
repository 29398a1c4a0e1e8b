"""Writes PLE shards (docs/formats/ple_shard.md): a table, quantised row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import RecipeError
from toolkit.base.files import write_at
from toolkit.bundle.ple_shards import (
    CHECKSUM_BYTES,
    DEFAULT_SHARD_BYTES,
    HEADER_BYTES,
    PleLayout,
    ShardHeader,
    row_checksum,
    shard_name,
)
from toolkit.quant.packing import pack_codes, require_finite
from toolkit.quant.pipeline import pipeline
from toolkit.quant.scheme import Scheme, Search
from toolkit.quant.source import PackedRows, PackedSource, TensorSource
from toolkit.quant.stream import CHUNK_WEIGHTS
from toolkit.quant.uniform import quantize_rows


def write_ple_shards(
    directory: Path,
    source: TensorSource,
    tensor: str,
    layout: PleLayout,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    search: Search = "mse",
    packed: PackedSource | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
    finished: Callable[[Path], None] | None = None,
) -> tuple[str, ...]:
    """Quantise a table f32[vocab, layers * width] into shards in `directory`; return their names in order.

    The table is read once, in order; rows that `packed` has in this layout are copied. `progress` is called with the
    bytes of codes written since its last call, `finished` with the path of each complete shard.
    """
    if layout.layers * layout.width * layout.bits % 8:
        found = f"{layout.layers * layout.width} codes of {layout.bits} bits a row"
        raise RecipeError(tensor, found=found, wanted="whole bytes", remedy="use int8")
    per_shard = layout.rows_per_shard(shard_bytes)
    count = layout.shard_count(shard_bytes)

    def read(span: tuple[int, int]) -> NDArray[np.float32] | PackedRows:
        ready = None if packed is None else packed.packed(tensor, _scheme(layout, search), span)
        return source.read(tensor, span) if ready is None else ready

    def pack(span: tuple[int, int], found: NDArray[np.float32] | PackedRows) -> NDArray[np.uint8]:
        if isinstance(found, PackedRows):
            return _rows_of(found, layout)
        return pack_rows(found, layout, tensor, search, span[0])

    names = []
    for shard in range(count):
        first = shard * per_shard
        rows = min(per_shard, layout.vocab_size - first)
        header = ShardHeader(layout, first, rows, shard, count, bytes(32))
        with open(directory / shard_name(shard), "wb") as file:
            digest = hashlib.sha256()
            offset = HEADER_BYTES
            blocks = pipeline(_spans(layout, first, rows), read, pack, workers)
            with closing(blocks):
                for block in blocks:
                    digest.update(block.data)
                    write_at(file.fileno(), block.data, offset)
                    offset += block.nbytes
                    if progress is not None:
                        progress(len(block) * layout.code_bytes)
            write_at(file.fileno(), replace(header, rows_sha256=digest.digest()).pack(), 0)
        names.append(shard_name(shard))
        if finished is not None:
            finished(directory / names[-1])
    return tuple(names)


def _spans(layout: PleLayout, first: int, rows: int) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK_WEIGHTS // (layout.layers * layout.width))
    for start in range(first, first + rows, step):
        yield start, min(start + step, first + rows)


def pack_rows(
    values: NDArray[np.float32], layout: PleLayout, name: str, search: Search = "mse", first_row: int = 0
) -> NDArray[np.uint8]:
    """Quantise rows f32[n, layers * width] to the rows of a shard, uint8[n, row_bytes].

    Errors name the tensor `name` and the row, counted from `first_row`.
    """
    if not layout.element.quantised:
        require_finite(values, name, first_row)
        none = np.empty((len(values), 0), np.float32)
        return _rows_of(PackedRows(np.ascontiguousarray(values, "<f4").view(np.uint8), none), layout)
    quantized = quantize_rows(values, _scheme(layout, search), name=name, first_row=first_row)
    codes = pack_codes(quantized.codes, layout.bits)
    return _rows_of(PackedRows(codes.reshape(len(values), -1), quantized.scales), layout)


def _scheme(layout: PleLayout, search: Search) -> Scheme:
    return Scheme(layout.element.name, layout.width if layout.element.quantised else None, search)


def _rows_of(packed: PackedRows, layout: PleLayout) -> NDArray[np.uint8]:
    """The rows of a shard: codes, scales, zeros and a checksum each."""
    count = len(packed.payload)
    rows = np.zeros((count, layout.row_bytes), np.uint8)
    rows[:, : layout.code_bytes] = packed.payload.reshape(count, -1)
    scales = np.ascontiguousarray(packed.scales, layout.scale_type).view(np.uint8)
    rows[:, layout.code_bytes : layout.code_bytes + layout.scale_bytes] = scales.reshape(count, -1)
    checksums = np.array([row_checksum(row) for row in rows], "<u4")
    rows[:, -CHECKSUM_BYTES:] = checksums.view(np.uint8).reshape(-1, CHECKSUM_BYTES)
    return rows
