"""Measures how much each type of each matrix adds to the divergence of a model's predictions.

Copies of a short text, the probes, run through the model beside the text that inputs are measured on. In each copy one
matrix alone is rounded, to one type; how far its predictions diverge from those of the untouched copy is what that type
costs. Many copies share a pass: a forward pass takes the tokens of all its sequences at once, and asks for each product
once. So a model family needs nothing for this that calibration does not need too.

What int8 costs is lost in the noise of a short text. It is computed from what int4 costs, by the ratio of the squared
errors of the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from converters.calibration.divergence import F64, divergences
from converters.calibration.rounding import Piece, Rounding, pieces_within
from converters.family import F32, CalibrationPass, HeadRows
from toolkit.base.elements import ElementName
from toolkit.quant.int8_activations import dynamic_int8
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import QuantizedRows, dequantize_rows

FINEST = Scheme("int8")
PROBED = (Scheme("int4"), Scheme("int2"))
"""The types that are measured; the error of the first tells that of `FINEST`."""

Probe = tuple[str, ElementName]
"""A weight, and the type that it is rounded to."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What each type of each weight adds to the mean divergence, in nats, and what rounded inputs alone leave."""

    added: Mapping[str, Mapping[ElementName, float]]
    floor: float


@dataclass(frozen=True, slots=True)
class ProbeText:
    """Sequences to measure inputs on, and sequences whose predictions are compared."""

    measured: Sequence[NDArray[np.int32]]
    probes: Sequence[NDArray[np.int32]]

    @property
    def tokens(self) -> int:
        """Those that are measured."""
        return sum(map(len, self.measured))

    @property
    def probe_tokens(self) -> int:
        """Those of one copy of the probes."""
        return sum(map(len, self.probes))


def measure_sensitivity(
    run: CalibrationPass,
    pieces: Mapping[str, Sequence[Piece]],
    text: ProbeText,
    rounding: Rounding,
    *,
    probe_tokens: int,
    advance: Callable[[int], None],
) -> Sensitivity:
    """Measure every weight that `pieces` has.

    probe_tokens: how many tokens of probes a pass takes, which bounds memory. `advance` gets the pieces' weights that a
    pass is done with; `passes_of` says how many passes there are.
    """
    groups = _groups(pieces, text, probe_tokens)
    added: dict[Probe, float] = {}
    ratios: dict[str, float] = {}
    floor = 0.0
    for number, weights in enumerate(groups):
        probing = _Pass(run, pieces, text, weights, rounding, advance, with_floor=number == 0)
        found = probing.divergences()
        floor = found.pop(_FLOOR, floor)
        added |= found
        ratios |= probing.ratios()
    coarse = PROBED[0].dtype
    return Sensitivity(
        {
            weight: {
                FINEST.dtype: ratios[weight] * added[weight, coarse],
                **{scheme.dtype: added[weight, scheme.dtype] for scheme in PROBED},
            }
            for weight in _weights(pieces)
        },
        floor,
    )


def passes_of(pieces: Mapping[str, Sequence[Piece]], text: ProbeText, probe_tokens: int) -> int:
    """The number of forward passes that `measure_sensitivity` takes."""
    return len(_groups(pieces, text, probe_tokens))


_FLOOR: Probe = ("", "int8")
"""The copy in which no matrix is rounded, but the inputs of all."""


def _weights(pieces: Mapping[str, Sequence[Piece]]) -> list[str]:
    return sorted({piece.weight for some in pieces.values() for piece in some})


def _groups(pieces: Mapping[str, Sequence[Piece]], text: ProbeText, probe_tokens: int) -> list[list[str]]:
    weights = _weights(pieces)
    step = max(1, probe_tokens // (text.probe_tokens * len(PROBED)))
    return [weights[start : start + step] for start in range(0, len(weights), step)]


@dataclass(slots=True)
class _Pass:
    """One forward pass; its tokens are those measured, then the probes as they are, then the copies."""

    run: CalibrationPass
    pieces: Mapping[str, Sequence[Piece]]
    text: ProbeText
    weights: Sequence[str]
    rounding: Rounding
    advance: Callable[[int], None]
    with_floor: bool
    _errors: dict[Probe, float] = field(default_factory=dict)
    """Sums of the squared errors of products; those of `FINEST` too."""

    def divergences(self) -> dict[Probe, float]:
        """What each copy's predictions diverge."""
        model, text = self.run.unrounded or self.run.model, self.text
        copies = [copy for copy in self._copies() if not self._is_of_head(copy)]
        sequences = [*text.measured, *text.probes, *(ids for _ in copies for ids in text.probes)]
        hidden = np.concatenate(model.hidden_states(sequences, product=partial(self._product, copies)))
        plain = hidden[self._rows(0)]
        expected = model.logits(plain)

        def means(states: F32, head: HeadRows | None = None) -> F64:
            found: F64 = divergences(model, expected, states, head).reshape(-1, len(plain)).mean(1)
            return found

        changed = hidden[self._rows(1).start :]
        found = dict(zip(copies, means(changed).tolist(), strict=True))
        for piece in pieces_within(self.pieces, self.run, model.head):
            self.advance(piece.codes)
        for copy in self._copies():
            if self._is_of_head(copy):
                found[copy] = float(means(plain, self._rounded_head(copy, hidden))[0])
        return found

    def ratios(self) -> dict[str, float]:
        """By weight: the squared error of `FINEST` as a part of that of the first type measured."""
        coarse = PROBED[0].dtype
        return {
            weight: self._errors[weight, FINEST.dtype] / max(self._errors[weight, coarse], np.finfo(np.float64).tiny)
            for weight in self.weights
        }

    def _copies(self) -> Iterator[Probe]:
        if self.with_floor:
            yield _FLOOR
        yield from ((weight, scheme.dtype) for weight in self.weights for scheme in PROBED)

    def _is_of_head(self, copy: Probe) -> bool:
        return any(piece.weight == copy[0] for piece in pieces_within(self.pieces, self.run, self.run.model.head))

    def _rows(self, copy: int) -> slice:
        """The tokens of a copy; 0 is the one that nothing is done to."""
        start = self.text.tokens + copy * self.text.probe_tokens
        return slice(start, start + self.text.probe_tokens)

    def _product(self, copies: Sequence[Probe], x: F32, tensor: str) -> F32:
        """`MatrixProduct` of the matrix as it is, but for the copies in which it is rounded."""
        matrix = self.run.model.tensor(tensor)
        result = self.rounding.multiply(x, matrix)
        pieces = pieces_within(self.pieces, self.run, tensor)
        if pieces and _FLOOR in copies:
            rows = self._rows(1 + copies.index(_FLOOR))
            result[rows] = self.rounding.multiply(dynamic_int8(x[rows]), matrix)
        for piece in pieces:
            if piece.weight in self.weights:
                self._change(copies, x, piece, matrix[slice(*piece.rows), slice(*piece.columns)], result)
            self.advance(piece.codes)
        return result

    def _change(self, copies: Sequence[Probe], x: F32, piece: Piece, values: F32, result: F32) -> None:
        """Add the error of the piece's products to those of the copies in which its weight is rounded."""
        for scheme in (FINEST, *PROBED):
            error = dequantize_rows(self._round(x, piece, values, scheme)) - values
            copy = (piece.weight, PROBED[0].dtype if scheme == FINEST else scheme.dtype)
            rows = self._rows(1 + copies.index(copy))
            products = self.rounding.multiply(x[rows, slice(*piece.columns)], error)
            self._count((piece.weight, scheme.dtype), products)
            if scheme != FINEST:
                result[rows, slice(*piece.rows)] += products

    def _rounded_head(self, copy: Probe, hidden: F32) -> HeadRows:
        """The rows of the output matrix, as one type has them."""
        pieces = pieces_within(self.pieces, self.run, self.run.model.head)
        scheme = next(scheme for scheme in PROBED if scheme.dtype == copy[1])
        found: list[QuantizedRows] = []
        for piece in pieces:
            values = self.run.model.tensor(self.run.model.head, piece.rows)
            for kind in (scheme, FINEST) if scheme == PROBED[0] else (scheme,):
                rounded = self._round(hidden, piece, values, kind)
                products = self.rounding.multiply(hidden[self._rows(0)], dequantize_rows(rounded) - values)
                self._count((piece.weight, kind.dtype), products)
                if kind == scheme:
                    found.append(rounded)
        codes = np.concatenate([rows.codes for rows in found])
        scales = np.concatenate([rows.scales for rows in found])
        return lambda start, stop: dequantize_rows(QuantizedRows(codes[start:stop], scales[start:stop]))

    def _round(self, x: F32, piece: Piece, values: F32, scheme: Scheme) -> QuantizedRows:
        inputs = self.rounding.measure(x, piece.columns, (0, self.text.tokens))
        return self.rounding.round(values, scheme, inputs, name=piece.weight, first_row=piece.first_row)

    def _count(self, probe: Probe, errors: F32) -> None:
        self._errors[probe] = self._errors.get(probe, 0.0) + float(np.square(errors, dtype=np.float64).sum())
