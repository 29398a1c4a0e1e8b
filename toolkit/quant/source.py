"""The interface for reading weights, between checkpoints and everything that needs their values."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TensorSource(Protocol):
    """Named tensors, read lazily as float32. Safe to read from several threads at once."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape; CheckpointError when there is no such tensor."""
        ...

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """The tensor or a part of it; the caller must not write to it.

        `rows` and `columns` are half-open ranges on the first and the last axis; None is all of it.
        A 1-D tensor has rows only.
        """
        ...
