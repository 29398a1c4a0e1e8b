"""Runs a tower on pictures or sounds from one matrix product to the next, in float and with rounded matrices.

The graphs are the float ones of the family, cut by `toolkit.tflite.segments`; LiteRT runs each segment in one thread,
so that results do not depend on the number of threads. Between two segments, what later operators need is in memory:
for each medium twice, as the float tower and as the rounded one compute it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.family import F32
from toolkit.base.files import write_at
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.source import TensorSource
from toolkit.quant.uniform import dequantize_rows
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import BackendOptions, ModelFile
from toolkit.tflite.segments import SEGMENT, Segment, SegmentedGraph, value_name
from toolkit.tflite.writer import TfliteLayout, write_tflite

Values = dict[int, NDArray[Any]]
"""Values of a graph by their index."""
Named = Mapping[str, NDArray[Any]]

LARGE_BYTES = 24 << 20
"""What a medium's values may take between two segments, unless that cannot be had."""
_ROW_BYTES = 16 << 20  # of a matrix, dequantised at once


@dataclass(frozen=True, slots=True)
class Stop:
    """A place in a graph: before the operator `at`, the inputs of `matrices` are there, all for the first time."""

    at: int
    matrices: tuple[str, ...]


def stops(graph: SegmentedGraph, matrices: Collection[str]) -> list[Stop]:
    """The places at which each of the matrices that the graph multiplies by is rounded."""
    products = {name: found for name, found in graph.products.items() if name in matrices}
    done: set[str] = set()
    result = []
    for name, (at, _) in products.items():
        if name not in done:
            ready = [n for n, (_, x) in products.items() if n not in done and graph.is_made_before(x, at)]
            done.update(ready)
            result.append(Stop(at, tuple(ready)))
    return result


def resting_place(graph: SegmentedGraph, start: int, stop: int, large: int = LARGE_BYTES) -> int:
    """Where to keep values on the way from one operator to another: at the end, unless they are large there.

    Then it is the last of the places where they take least, and what lies between it and the end is run twice.
    """
    if graph.bytes_at(stop) <= large:
        return stop
    return min(range(stop, start - 1, -1), key=graph.bytes_at)


def bytes_between(graph: SegmentedGraph, places: Sequence[Stop], large: int = LARGE_BYTES) -> int:
    """The most memory that the values of one medium take where they are kept."""
    at, most = 0, graph.bytes_at(0)
    for place in places:
        at = resting_place(graph, at, place.at, large)
        most = max(most, graph.bytes_at(at))
    return most


@dataclass(slots=True)
class GraphRun:
    """A graph on its way through some media; `advance` runs the next operators for all of them.

    plain: the values of each medium in the float tower; own: in the rounded one. `at`: the operator that is next.
    """

    graph: SegmentedGraph
    source: TensorSource
    rounded: RoundedWeights
    scratch: Path
    plain: list[Values]
    own: list[Values]
    at: int = 0

    @classmethod
    def on(
        cls,
        graph: SegmentedGraph,
        source: TensorSource,
        rounded: RoundedWeights,
        scratch: Path,
        media: Sequence[tuple[Named, Named]],
    ) -> GraphRun:
        """A run at the beginning of a graph; media: inputs by name, for the float and for the rounded tower."""
        plain, own = ([{graph.inputs[name]: pair[i][name] for name in graph.inputs} for pair in media] for i in (0, 1))
        return cls(graph, source, rounded, scratch, plain, own)

    def advance(self, stop: int) -> None:
        """Run the operators before `stop` that have not run yet, and keep what later ones need."""
        if stop > self.at:
            needed = set(self.graph.needed_from(stop))
            for values, made in self._run(stop):
                values.update(made)
                for tensor in values.keys() - needed:
                    del values[tensor]
            self.at = stop

    def rows(self, stop: int, matrices: Sequence[str], most: int) -> dict[str, list[tuple[F32, F32]]]:
        """For each medium, at most so many rows of the inputs that some matrices get just before `stop`: of the float
        tower, and the same of the rounded one. The operators up to there run, but nothing else is kept of them."""
        inputs = {matrix: self.graph.products[matrix][1] for matrix in matrices}
        pairs = self._run(stop) if stop > self.at else ((values, {}) for values in (*self.plain, *self.own))
        found = [{t: sampled((values | made)[t], most) for t in set(inputs.values())} for values, made in pairs]
        both = list(zip(found[: len(self.plain)], found[len(self.plain) :], strict=True))
        return {matrix: [(plain[t], own[t]) for plain, own in both] for matrix, t in inputs.items()}

    def _run(self, stop: int) -> Iterator[tuple[Values, Values]]:
        """The values of each medium, first of the float tower, with those that the operators before `stop` make."""
        segment = self.graph.segment(self.at, stop)
        path = self.scratch / "segment.tflite"
        write_tflite(path, segment.layout, self.source)
        yield from zip(self.plain, _outputs(path, segment, self.plain), strict=True)
        self._write_rounded(path, segment.layout)
        yield from zip(self.own, _outputs(path, segment, self.own), strict=True)
        path.unlink()

    def results(self) -> list[tuple[Named, Named]]:
        """Run to the end; the outputs by name of each medium, of both towers."""
        self.advance(self.graph.operators)
        named = self.graph.outputs.items()
        pairs = zip(self.plain, self.own, strict=True)
        return [({n: plain[t] for n, t in named}, {n: own[t] for n, t in named}) for plain, own in pairs]

    def _write_rounded(self, path: Path, layout: TfliteLayout) -> None:
        """Replace the matrices that are rounded."""
        fd = os.open(path, os.O_WRONLY)
        try:
            for placement in layout.placements:
                weight = placement.weight
                if weight.name in self.rounded:
                    height, row_bytes = weight.shape[0], 4 * weight.shape[1]
                    step = max(1, _ROW_BYTES // row_bytes)
                    for start in range(0, height, step):
                        rows = dequantize_rows(self.rounded.rows(weight.name, start, min(start + step, height)))
                        offset = placement.payload_offset + start * row_bytes
                        write_at(fd, np.ascontiguousarray(rows, "<f4").data.cast("B"), offset)
        finally:
            os.close(fd)


def _outputs(path: Path, segment: Segment, media: Sequence[Values]) -> Iterator[Values]:
    """What a segment makes of the values of each medium."""
    runtime = BACKENDS[0].start(BackendOptions(threads=1, weight_cache="memory"))
    try:
        model = runtime.open(ModelFile(path, "", path.stat().st_size), "small")
        inputs = {value_name(t): model.input_buffer(SEGMENT, value_name(t)) for t in segment.inputs}
        outputs = {value_name(t): model.output_buffer(SEGMENT, value_name(t)) for t in segment.outputs}
        call = model.bind(SEGMENT, inputs, outputs)
        for values in media:
            for tensor in segment.inputs:
                inputs[value_name(tensor)].write(values[tensor])
            call()
            yield {tensor: outputs[value_name(tensor)].read() for tensor in segment.outputs}
    finally:
        runtime.close()


def joined(pairs: Sequence[tuple[F32, F32]]) -> F32:
    """The rows of all media: first those of the float tower, then the same of the rounded one, f32[2 * n, in].

    Rows that are zero in both, as those after the end of a sound are, are left out.
    """
    plain, own = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    there = plain.any(1) | own.any(1)
    if there.any():
        plain, own = plain[there], own[there]
    return np.concatenate([plain, own])


def sampled(values: NDArray[Any], most: int) -> F32:
    """At most so many rows of values [..., columns], spread over all of them."""
    rows: F32 = values.reshape(-1, values.shape[-1])
    return rows[spread(len(rows), most)]


def spread(count: int, most: int) -> NDArray[np.intp]:
    """At most so many of the numbers below `count`, each once, spread evenly and unlike the rows of a picture.

    >>> spread(4, 9).tolist(), spread(10, 3).tolist()
    ([0, 1, 2, 3], [0, 4, 7])
    """
    if count <= most:
        return np.arange(count)
    step = round(count * (5**0.5 - 1) / 2)  # multiples of the golden ratio fill a circle evenly
    while np.gcd(step, count) != 1:
        step += 1
    return np.sort(np.arange(most) * step % count)
