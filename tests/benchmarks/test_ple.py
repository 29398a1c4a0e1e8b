"""The table by layers that bench_ple compares with our rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_ple import _gather, write_layer_major
from toolkit.bundle.ple_shards import PleLayout, ShardHeader, unpack_rows


@pytest.mark.parametrize("scale_bits", [16, 32])
def test_a_table_by_layers_gives_the_same_embeddings(tmp_path: Path, scale_bits: int) -> None:
    layout = PleLayout(vocab_size=5, layers=3, width=8, bits=4, scale_bits=scale_bits)
    rows, draw = np.zeros((5, layout.row_bytes), np.uint8), np.random.default_rng(0)
    rows[:, : layout.code_bytes] = draw.integers(0, 256, (5, layout.code_bytes))
    scales = draw.uniform(1, 2, (5, layout.layers)).astype(layout.scale_type)
    rows[:, layout.code_bytes : layout.code_bytes + layout.scale_bytes] = scales.view(np.uint8)
    shards = [tmp_path / "ple_00000.bin", tmp_path / "ple_00001.bin"]
    for number, (first, end) in enumerate([(0, 3), (3, 5)]):
        header = ShardHeader(layout, first, end - first, number, 2, bytes(32))
        shards[number].write_bytes(header.pack() + rows[first:end].tobytes())
    write_layer_major(shards, layout, tmp_path / "table.bin")
    table = np.fromfile(tmp_path / "table.bin", np.uint8).reshape(layout.layers, layout.vocab_size, -1)
    found = [_gather(table, np.array([token], np.int32), layout)[0] for token in range(5)]
    np.testing.assert_array_equal(found, unpack_rows(rows, layout) * np.float32(np.sqrt(layout.width)))
