"""Caches begin at 0, and memory that is 0 already is left untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from bundles import TEXT
from numpy.typing import NDArray

from toolkit.bundle.manifest import KvCache
from toolkit.runtime.backends.interface import Model, TensorInfo
from toolkit.runtime.kv_buffers import KvBuffers


class StandInBuffer:
    def __init__(self, content: float) -> None:
        self.info = TensorInfo((1, 1, 4, 2), np.dtype(np.float32))
        self.content = np.full(self.info.shape, content, np.float32)
        self.writes = 0

    def read(self) -> NDArray[np.float32]:
        return self.content.copy()

    def write(self, array: NDArray[np.float32]) -> None:
        self.content[:] = array
        self.writes += 1


class StandInModel:
    """Buffers whose memory held something before, or not."""

    def __init__(self) -> None:
        self.buffers: list[StandInBuffer] = []

    def input_buffer(self, signature: str, name: str) -> StandInBuffer:
        self.buffers.append(StandInBuffer((np.nan, 0.0, 1e-30)[len(self.buffers) % 3]))
        return self.buffers[-1]


def test_caches_begin_at_zero_and_untouched_memory_stays_so() -> None:
    model = StandInModel()
    text = replace(TEXT, kv_caches=tuple(KvCache(f"k{i}", f"v{i}", (1, 1, 4, 2)) for i in range(3)))
    KvBuffers(cast(Model, model), "decode", text)
    assert len(model.buffers) == 6
    for buffer in model.buffers:
        np.testing.assert_array_equal(buffer.content, 0)
    assert [buffer.writes for buffer in model.buffers] == [1, 0, 1, 1, 0, 1]
