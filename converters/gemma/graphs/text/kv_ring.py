"""Writes rows of several tokens to a KV cache that is a ring, where they may wrap around the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Value


def slice_start(graph: Graph, axis: int, first: Value) -> Value:
    """The start, int32[4], of a slice of a cache whose first row along an axis is `first` (int32[1])."""
    before, after = ([graph.ints([0] * n)] if n else [] for n in (axis, 3 - axis))
    return ops.concatenation([*before, first, *after], 0)


@dataclass(frozen=True, slots=True)
class RingWrite:
    """Where one step's rows are written, for all rings with their positions in the same axis.

    Two slices of a ring are written, each as long as the new rows: one at its end and one at its beginning. A GATHER of
    all rows of a ring would also work, but would need memory for a second copy of each layer's ring.
    """

    axis: int
    start: Value
    """Where the slice at the end begins: int32[4]."""
    origin: Value
    """Where the slice at the beginning begins: int32[4] zeros, computed because a GPU accepts no constant."""
    end_rows: Value
    """The ring's rows that this slice covers: int32[tokens]."""
    first_rows: Value
    """The ring's rows that the slice at the beginning covers: int32[tokens]."""
    sources: Value
    """The index of the new row for each row of either slice, if it gets one: int32[tokens]."""
    wrapped: Value
    """Where the slice at the beginning gets a new row and the one at the end does not: bool, the new rows' shape."""

    @classmethod
    def at(cls, graph: Graph, first: Value, rows: int, new_shape: tuple[int, ...], axis: int) -> RingWrite:
        """`first`: int32[1], the position of the first new row; `rows`: the rows of a ring, more than the new ones."""
        count = new_shape[axis]
        row = ops.floor_mod(first, graph.ints([rows]))
        start = ops.minimum(row, graph.ints([rows - count]))
        beyond = ops.sub(row, start)
        slots = graph.ints(range(count))
        index = graph.constant(np.arange(count, dtype=np.int32).reshape([count if i == axis else 1 for i in range(4)]))
        # In the full shape, because SELECT_V2 is slow if it must broadcast.
        others = graph.constant(np.zeros([1 if i == axis else n for i, n in enumerate(new_shape)], np.int32))
        return cls(
            axis,
            start=slice_start(graph, axis, start),
            origin=slice_start(graph, axis, ops.mul(row, graph.ints([0]))),
            end_rows=ops.add(start, slots),
            first_rows=slots,
            sources=ops.floor_mod(ops.sub(slots, beyond), graph.ints([count])),
            wrapped=ops.less(index, ops.add(beyond, others)),
        )

    def __call__(self, ring: Value, new: Value) -> Value:
        """The ring with the new rows in it."""
        turned = ops.gather(new, self.sources, self.axis)
        end = ops.select(self.wrapped, ops.gather(ring, self.end_rows, self.axis), turned)
        ring = ops.dynamic_update_slice(ring, end, self.start)
        beginning = ops.select(self.wrapped, turned, ops.gather(ring, self.first_rows, self.axis))
        return ops.dynamic_update_slice(ring, beginning, self.origin)
