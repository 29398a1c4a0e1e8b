"""Caches begin at 0, and memory that is 0 already is left untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
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


@pytest.mark.parametrize(("also_read", "back_to"), [(0, 19), (1, 20)])
def test_a_ring_can_return_to_where_it_holds_all_that_is_read(also_read: int, back_to: int) -> None:
    ring = KvCache("k", "v", (1, 1, 12, 2), window=8)
    text = replace(TEXT, kv_caches=(ring,))
    caches = KvBuffers(cast(Model, StandInModel()), "decode", text, also_read=also_read)
    caches.note(24)  # rows of the positions 12 to 23
    assert [position for position in range(24) if caches.can_return_to(position)] == [0, *range(back_to, 24)]


def test_caches_begin_at_zero_and_untouched_memory_stays_so() -> None:
    model = StandInModel()
    text = replace(TEXT, kv_caches=tuple(KvCache(f"k{i}", f"v{i}", (1, 1, 4, 2)) for i in range(3)))
    KvBuffers(cast(Model, model), "decode", text)
    assert len(model.buffers) == 6
    for buffer in model.buffers:
        np.testing.assert_array_equal(buffer.content, 0)
    assert [buffer.writes for buffer in model.buffers] == [1, 0, 1, 1, 0, 1]
