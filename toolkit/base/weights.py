"""References to checkpoint tensors, with which a graph names its weights; the bytes are read elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightPart:
    """A checkpoint tensor, or a rectangle of it: rows and columns are half-open ranges, None for all.

    `axes`: take the whole tensor with its axes permuted as by numpy.transpose, then drop or add axes of size 1 to match
    the weight's shape. LiteRT has channels last, checkpoints have them first.
    """

    tensor: str
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of a graph: its parts joined along axis 0. Matrices are [out, in], tables [vocabulary, width]."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[WeightPart, ...]

    @classmethod
    def whole(cls, tensor: str, shape: tuple[int, ...]) -> Weight:
        """The whole checkpoint tensor."""
        return cls(tensor, shape, (WeightPart(tensor),))

    @classmethod
    def permuted(cls, tensor: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> Weight:
        """The checkpoint tensor with its axes permuted; see `WeightPart`."""
        return cls(tensor, shape, (WeightPart(tensor, axes=axes),))
