"""The keys and values of a conversation, in buffers that every signature updates in place."""

from __future__ import annotations

import numpy as np

from toolkit.bundle.manifest import TextRecord
from toolkit.runtime.backends.interface import Buffer, Model


class KvBuffers:
    """One buffer per cache, f32[1, kv_heads, rows, head_dim], bound both as input and as output.

    Bound so, a decode step moves one row; with separate buffers it would copy every cache.
    """

    def __init__(self, model: Model, signature: str, text: TextRecord) -> None:
        """Made for one signature, they fit all: a bundle's sizes share their caches."""
        self._rings = [(cache.rows, cache.window) for cache in text.kv_caches if cache.window is not None]
        self._written = 0
        names = [name for cache in text.kv_caches for name in (cache.key, cache.value)]
        self.buffers: dict[str, Buffer] = {name: model.input_buffer(signature, name) for name in names}
        # Blocked rows weigh exactly 0, but 0 times an undefined NaN would still be NaN. What is 0 as it came is not
        # written: new pages of the system's become memory only when a conversation gets there.
        for buffer in self.buffers.values():
            if buffer.read().view(np.uint32).any():
                buffer.write(np.zeros(buffer.info.shape, np.float32))

    def note(self, end: int) -> None:
        """A step wrote the positions up to `end`, padding included."""
        self._written = max(self._written, end)

    def can_return_to(self, position: int) -> bool:
        """Whether every ring still holds what a token at `position` sees; position 0 sees nothing."""
        return position == 0 or all(
            self._written <= rows or position - window + 1 >= self._written - rows for rows, window in self._rings
        )

    def forget(self) -> None:
        """All positions are free again."""
        self._written = 0

    @property
    def bytes(self) -> int:
        """Memory of all caches."""
        return sum(buffer.info.size * 4 for buffer in self.buffers.values())
