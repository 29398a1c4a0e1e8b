"""Rounds each matrix of a forward pass at its first product, against the very inputs of that product.

Later layers thus see what earlier ones have become, and compensate for part of that error. A piece of a matrix that an
earlier run, or a narrower size, has rounded is taken as it is: an interrupted calibration resumes by running the
forward again, which costs a tenth of the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from converters.family import F32, CalibrationPass
from toolkit.quant.gptq import Inputs, measure_inputs, round_rows
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import QuantizedRows, dequantize_rows
from toolkit.tflite.writer import TfliteLayout

Range = tuple[int, int]

_BAND_WEIGHTS = 1 << 22  # of a band that one thread rounds: 16 MiB, and a few arrays of this size
_BAND_ROWS = 2048
_PRODUCT_ROWS = 1024  # of a matrix, in a product that one thread computes
_PIECE_ROWS = 16384  # 128 MiB at a hidden size of 2048


class Piece(NamedTuple):
    """A rectangle of a planned tensor, which is rows of a weight from `first_row` on."""

    weight: str
    scheme: Scheme
    first_row: int
    rows: Range
    columns: Range

    @property
    def height(self) -> int:
        """Its number of rows."""
        return self.rows[1] - self.rows[0]

    @property
    def codes(self) -> int:
        """Its number of weights."""
        return self.height * (self.columns[1] - self.columns[0])

    def cost(self, tokens: int) -> int:
        """Operations to measure its inputs and to round it, about."""
        columns = self.columns[1] - self.columns[0]
        return columns * (self.height * (columns + 2 * tokens) + columns * tokens)


def pieces_of(layout: TfliteLayout, shape: Callable[[str], tuple[int, ...]]) -> Mapping[str, Sequence[Piece]]:
    """The pieces of all quantised matrices of a file, by tensor; `shape` gives a planned tensor's shape.

    The output matrix, of a quarter million rows, is several pieces.
    """
    pieces: dict[str, list[Piece]] = {}
    for placement in layout.placements:
        weight, first_row = placement.weight, 0
        if not placement.scheme.quantised or len(weight.shape) != 2:
            continue
        for part in weight.parts:
            height, width = shape(part.tensor)
            rows, columns = part.rows or (0, height), part.columns or (0, width)
            for start in range(*rows, _PIECE_ROWS):
                band = (start, min(start + _PIECE_ROWS, rows[1]))
                pieces.setdefault(part.tensor, []).append(
                    Piece(weight.name, placement.scheme, first_row, band, columns)
                )
                first_row += band[1] - band[0]
    return pieces


@dataclass(slots=True)
class Rounder:
    """Rounds the pieces of one file; `advance` gets the cost of each that is done."""

    pieces: Mapping[str, Sequence[Piece]]
    rounded: RoundedWeights
    pool: ThreadPoolExecutor
    advance: Callable[[int], None]
    _inputs: tuple[F32, Range, Inputs] | None = None
    """Those of the last matrix: several in turn have the same."""
    _done: set[Piece] = field(default_factory=set)

    def product(self, run: CalibrationPass, x: F32, tensor: str) -> F32:
        """`MatrixProduct`: x @ matrix.T, by the matrix as it is rounded; parts that the plan leaves float stay so."""
        matrix = run.model.tensor(tensor)
        pieces = self._within(run, tensor)
        if pieces:
            matrix = np.array(matrix)
            for piece in pieces:
                self._round(piece, x, matrix[slice(*piece.rows), slice(*piece.columns)])
        return self._multiply(x, matrix)

    def round_head(self, run: CalibrationPass, hidden: F32) -> None:
        """Round the output matrix, of which a piece at a time is in memory."""
        for piece in self._within(run, run.model.head):
            self._round(piece, hidden, np.array(run.model.tensor(run.model.head, piece.rows)))

    def _within(self, run: CalibrationPass, tensor: str) -> Sequence[Piece]:
        """The pieces that lie in a size's tensor, which may be the first rows and columns of the planned one."""
        planned = run.planned(tensor)
        if planned is None or planned not in self.pieces:
            return ()
        height, width = run.model.shape(tensor)
        return [piece for piece in self.pieces[planned] if piece.rows[1] <= height and piece.columns[1] <= width]

    def _round(self, piece: Piece, x: F32, values: F32) -> None:
        """Replace `values`, those of the piece, by what they are rounded to."""
        if self.rounded.has(piece.weight, piece.first_row, len(values)):
            found = self.rounded.rows(piece.weight, piece.first_row, piece.first_row + len(values))
        else:
            inputs = self._measure(x, piece.columns)
            step = min(_BAND_ROWS, max(1, _BAND_WEIGHTS // values.shape[1]))
            bands = self.pool.map(
                lambda start: round_rows(
                    values[start : start + step],
                    piece.scheme,
                    inputs,
                    name=piece.weight,
                    first_row=piece.first_row + start,
                ),
                range(0, len(values), step),
            )
            found = _joined(bands)
            self.rounded.save(piece.weight, piece.first_row, found)
        values[:] = dequantize_rows(found)
        if piece not in self._done:
            self._done.add(piece)
            self.advance(piece.cost(len(x)))

    def _measure(self, x: F32, columns: Range) -> Inputs:
        if self._inputs is None or self._inputs[0] is not x or self._inputs[1] != columns:
            self._inputs = None  # frees the memory first
            self._inputs = x, columns, measure_inputs(x[:, slice(*columns)], self._run)
        return self._inputs[2]

    def _multiply(self, x: F32, matrix: F32) -> F32:
        result = np.empty((len(x), len(matrix)), np.float32)

        def multiply(start: int) -> None:
            stop = start + _PRODUCT_ROWS
            np.matmul(x, matrix[start:stop].T, out=result[:, start:stop])

        self._run(multiply, range(0, len(matrix), _PRODUCT_ROWS))
        return result

    def _run(self, do: Callable[[int], None], numbers: Sequence[int]) -> None:
        for _ in self.pool.map(do, numbers):
            pass


def _joined(bands: Iterator[QuantizedRows]) -> QuantizedRows:
    found = list(bands)
    codes, scales = (np.concatenate([getattr(band, name) for band in found]) for name in ("codes", "scales"))
    return QuantizedRows(codes, scales)
