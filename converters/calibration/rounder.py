"""Rounds each matrix of a forward pass at its first product, for the inputs of that product.

Each text runs twice, once as in the float model and once as in the rounded one. So later layers see both what earlier
ones give now and what they should give, and compensate for part of that error. A piece of a matrix that an earlier run,
or a narrower size, has rounded is taken as it is: an interrupted calibration resumes by running the forward pass again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from converters.calibration.rounding import Piece, PieceRounder, pieces_within
from converters.family import F32, CalibrationPass


@dataclass(slots=True)
class Rounder:
    """Rounds the pieces of one file.

    tokens: how many are measured. A pass has them twice: first those of the float model, then those of the rounded one.
    """

    pieces: Mapping[str, Sequence[Piece]]
    rounder: PieceRounder
    tokens: int

    def product(self, run: CalibrationPass, x: F32, tensor: str) -> F32:
        """A `MatrixProduct`: x @ matrix.T with the rounded matrix; the parts that the plan keeps as floats stay so."""
        matrix = run.model.tensor(tensor)
        pieces = pieces_within(self.pieces, run, tensor)
        if not pieces:
            return self.rounder.rounding.multiply(x, matrix)
        changed = np.array(matrix)
        for piece in pieces:
            self._round(piece, x, changed[slice(*piece.rows), slice(*piece.columns)])
        result = np.empty((len(x), len(matrix)), np.float32)
        for some, used in ((slice(None, self.tokens), matrix), (slice(self.tokens, None), changed)):
            self.rounder.rounding.multiply(x[some], used, result[some])
        return result

    def round_head(self, run: CalibrationPass, hidden: F32) -> None:
        """Round the output matrix, of which a piece at a time is in memory."""
        for piece in pieces_within(self.pieces, run, run.model.head):
            self._round(piece, hidden, np.array(run.model.tensor(run.model.head, piece.rows)))

    def _round(self, piece: Piece, x: F32, values: F32) -> None:
        """Replace `values`, the weights of the piece, by what they are rounded to."""
        if not self.rounder.has(piece):
            self.rounder.round(piece, x, self.tokens, values)
        self.rounder.restore(piece, values)
        self.rounder.tell(piece)
