"""Rounds each matrix of a forward pass at its first product, for the inputs of that product.

Each text runs twice, once as in the float model and once as in the rounded one. So later layers see both what earlier
ones give now and what they should give, and compensate for part of that error. A piece of a matrix that an earlier run,
or a narrower size, has rounded is taken as it is: an interrupted calibration resumes by running the forward pass again,
which takes a tenth of the time of rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from converters.calibration.rounding import Piece, Rounding, pieces_within
from converters.family import F32, CalibrationPass
from toolkit.quant.dynamic_int8 import dynamic_int8
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.uniform import dequantize_rows


@dataclass(slots=True)
class Rounder:
    """Rounds the pieces of one file; `advance` gets the cost of each that is done.

    tokens: how many are measured. A pass has them twice: first those of the float model, then those of the rounded one.
    Any further tokens only show how good the rounded model is: their inputs are rounded to int8 too, as LiteRT does.
    """

    pieces: Mapping[str, Sequence[Piece]]
    rounded: RoundedWeights
    rounding: Rounding
    tokens: int
    advance: Callable[[int], None]
    _done: set[Piece] = field(default_factory=set)

    def product(self, run: CalibrationPass, x: F32, tensor: str) -> F32:
        """A `MatrixProduct`: x @ matrix.T with the rounded matrix; the parts that the plan keeps as floats stay so."""
        matrix = run.model.tensor(tensor)
        pieces = pieces_within(self.pieces, run, tensor)
        if not pieces:
            return self.rounding.multiply(x, matrix)
        changed = np.array(matrix)
        for piece in pieces:
            self._round(piece, x, changed[slice(*piece.rows), slice(*piece.columns)])
        plain, measured, rest = np.split(x, [self.tokens, 2 * self.tokens])
        if len(rest):
            measured = np.concatenate([measured, dynamic_int8(rest)])
        return np.concatenate([self.rounding.multiply(plain, matrix), self.rounding.multiply(measured, changed)])

    def round_head(self, run: CalibrationPass, hidden: F32) -> None:
        """Round the output matrix, of which a piece at a time is in memory."""
        for piece in pieces_within(self.pieces, run, run.model.head):
            self._round(piece, hidden, np.array(run.model.tensor(run.model.head, piece.rows)))

    def _round(self, piece: Piece, x: F32, values: F32) -> None:
        """Replace `values`, the weights of the piece, by what they are rounded to."""
        if self.rounded.has(piece.weight, piece.first_row, len(values)):
            found = self.rounded.rows(piece.weight, piece.first_row, piece.first_row + len(values))
        else:
            plain, own = (0, self.tokens), (self.tokens, 2 * self.tokens)
            inputs = self.rounding.measure(x, piece.columns, own, plain)
            found = self.rounding.round(values, piece.scheme, inputs, name=piece.weight, first_row=piece.first_row)
            self.rounded.save(piece.weight, piece.first_row, found)
        values[:] = dequantize_rows(found)
        if piece not in self._done:
            self._done.add(piece)
            self.advance(piece.cost(self.tokens))
