"""The KV caches of a conversation, in buffers that every signature updates in place."""

from __future__ import annotations

import numpy as np

from toolkit.bundle.manifest import TextRecord
from toolkit.runtime.backends.interface import Buffer, Model

BLOCKED = np.float32(-0.7 * np.finfo(np.float32).max)
"""The mask's value for a position that must not be attended to (docs/formats/manifest.md)."""


class KvBuffers:
    """The buffers of all KV caches, f32[1, kv_heads, rows, head_dim], each bound both as input and as output.

    So a decode step writes one row in place; with separate buffers, it would copy every cache.
    """

    def __init__(self, model: Model, signature: str, text: TextRecord, *, also_read: int = 0) -> None:
        """Create the buffers for one signature; they fit all of them, because a bundle's sizes share their caches.

        `also_read`: how many positions before the window are read too.
        """
        self._rings = [(cache.rows, cache.window + also_read) for cache in text.kv_caches if cache.window is not None]
        self._written = 0
        names = [name for cache in text.kv_caches for name in (cache.key, cache.value)]
        self.buffers: dict[str, Buffer] = {name: model.input_buffer(signature, name) for name in names}
        # Masked rows have a weight of exactly 0, but 0 times an uninitialised NaN is NaN. Buffers that are all zero
        # are not written: fresh pages take memory only when a conversation reaches them.
        for buffer in self.buffers.values():
            if buffer.read().view(np.uint32).any():
                buffer.write(np.zeros(buffer.info.shape, np.float32))

    def note(self, end: int) -> None:
        """Record that a step wrote the positions up to `end`, padding included."""
        self._written = max(self._written, end)

    def can_return_to(self, position: int) -> bool:
        """Whether the sliding-window caches still hold all that is read for a token at `position`; true for 0."""
        return position == 0 or all(
            self._written <= rows or position - window + 1 >= self._written - rows for rows, window in self._rings
        )

    def forget(self) -> None:
        """Start again with no position written."""
        self._written = 0

    @property
    def bytes(self) -> int:
        """The memory of all caches."""
        return sum(buffer.info.size * 4 for buffer in self.buffers.values())
