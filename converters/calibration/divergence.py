"""How far predictions are from a model's own, by the hidden states that they are made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.calibration.rounding import Piece, PieceRounder, pieces_within
from converters.family import F32, CalibrationPass, HeadRows, ReferenceModel
from converters.verify import compare
from toolkit.base.activations import ActivationScales
from toolkit.quant.int8_activations import dynamic_int8, static_int8
from toolkit.quant.uniform import dequantize_rows

F64 = NDArray[np.float64]

_ROWS = 256  # predictions at a time: 256 MiB of logits at 262,144 tokens
_FLOAT64_ROWS = 16


def divergences(model: ReferenceModel, expected: F32, found: F32, head: HeadRows | None = None) -> F64:
    """The divergence of each prediction, in nats: f64[copies * n].

    expected: logits f32[n, vocab]. found: hidden states f32[copies * n, D] of copies of the same tokens, one after the
    other. head: another output matrix for them.
    """
    each = np.empty(len(found))
    for start in range(0, len(found), _ROWS):
        logits = model.logits(found[start : start + _ROWS], head=head)
        for row in range(0, len(logits), _FLOAT64_ROWS):
            got = logits[row : row + _FLOAT64_ROWS]
            places = np.arange(start + row, start + row + len(got))
            wanted = expected[places % len(expected)]
            each[places] = compare(wanted, got, np.zeros(len(got), np.int64), model.text_vocab_size).divergence
    return each


@dataclass(frozen=True, slots=True)
class BundleModel:
    """The model that a bundle will have once all matrices are rounded, for the sequences that it is judged on."""

    run: CalibrationPass
    pieces: Mapping[str, Sequence[Piece]]
    copied: Collection[str]
    """The tensors that are stored as codes although nothing is rounded: `copied_tensors` of the plan."""
    rounder: PieceRounder
    static_activations: bool
    """Whether the plan rounds with the scales of `CalibrationPass.activation_scales`."""

    def product(self, x: F32, tensor: str) -> F32:
        """A `MatrixProduct` as LiteRT computes it."""
        matrix, pieces = self.run.model.tensor(tensor), pieces_within(self.pieces, self.run, tensor)
        if pieces:
            matrix = np.array(matrix)
            for piece in pieces:
                self.rounder.restore(piece, matrix[slice(*piece.rows), slice(*piece.columns)])
        result = self.rounder.rounding.multiply(self.inputs(x, tensor), matrix)
        return static_int8(result, self._scales(tensor).output)

    def inputs(self, x: F32, tensor: str) -> F32:
        """The inputs of a product, rounded as LiteRT does where the matrix has codes."""
        scales = self._scales(tensor)
        x = static_int8(x, scales.input)
        if scales.input is not None and scales.output is not None:
            return x
        has_codes = self.run.planned(tensor) in self.copied or pieces_within(self.pieces, self.run, tensor)
        return dynamic_int8(x) if has_codes else x

    def head(self) -> HeadRows | None:
        """The rows of the output matrix if it is rounded."""
        pieces = pieces_within(self.pieces, self.run, self.run.model.head)
        if not pieces:
            return None
        return lambda start, stop: dequantize_rows(self.rounder.rounded.rows(pieces[0].weight, start, stop))

    def _scales(self, tensor: str) -> ActivationScales:
        return self.run.activation_scales(tensor) if self.static_activations else ActivationScales()

    def divergence(self, sequences: Sequence[NDArray[np.int32]]) -> float:
        """The mean divergence of the second half of each sequence, as the quality gate takes it, in nats."""
        model, bundle = self.run.model, self.run.model if self.static_activations else self.run.unrounded
        plain = np.concatenate(model.hidden_states(sequences))
        hidden = np.concatenate(model.hidden_states(sequences, product=self.product))
        ends = np.cumsum([len(ids) for ids in sequences])
        judged = np.concatenate(
            [np.arange(end - len(ids) + len(ids) // 2, end - 1) for ids, end in zip(sequences, ends, strict=True)]
        )
        found = self.inputs(hidden[judged], model.head)
        return float(divergences(bundle or model, model.logits(plain[judged]), found, self.head()).mean())
