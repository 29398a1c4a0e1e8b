"""The interfaces through which the values of a checkpoint's weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.quant.scheme import Scheme


class TensorSource(Protocol):
    """Named tensors, read lazily as float32. Safe to read from several threads at once."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the whole tensor; CheckpointError if there is no such tensor."""
        ...

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """The tensor or a part of it; the caller must not write to the array.

        `rows` and `columns` are half-open ranges on the first and the last axis; None means the whole axis.
        A 1-D tensor has rows only.
        """
        ...


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows of a weight that a checkpoint already holds as codes, with their scales.

    `payload`: uint8[rows, bytes of a row], packed as by `pack_codes`. `scales`: float32[rows] if the scheme has one
    scale for each row, else [rows, blocks] in float16 or float32.
    """

    payload: NDArray[np.uint8]
    scales: NDArray[np.float32] | NDArray[np.float16]


class PackedSource(Protocol):
    """Tensors of which some are stored as codes already. Safe to read from several threads at once."""

    def packed(
        self, name: str, scheme: Scheme, rows: tuple[int, int], columns: tuple[int, int] | None = None
    ) -> PackedRows | None:
        """These rows of a tensor (only `columns`, if given) as codes; None if it is not stored in this scheme.

        A tensor has codes for all its rows or for none. `columns` must fill whole bytes.
        """
        ...
