"""The tools of each pass that rounds: the pieces in which matrices are rounded, and products on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from converters.family import F32, CalibrationPass
from converters.plan import GraphFiles, Plan
from toolkit.base.errors import UsageError
from toolkit.bundle.manifest import TEXT_DECODER
from toolkit.quant.gptq import Inputs, measure_inputs, round_rows
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.scheme import Scheme
from toolkit.quant.stream import is_copied
from toolkit.quant.uniform import QuantizedRows, dequantize_rows
from toolkit.tflite.writer import TfliteLayout

Range = tuple[int, int]

_BAND_WEIGHTS = 1 << 23  # of a band that one thread rounds: 32 MiB, and a few arrays of this size
_BAND_ROWS = 2048
_DEQUANTIZED_ROWS = 128
_SHARED_INPUTS = 2048  # the widest that are kept for a later matrix while those of another are measured
_PRODUCT_ROWS = 1024  # of a matrix, in a product that one thread computes
_PIECE_ROWS = 16384  # 128 MiB at a hidden size of 2048
_PASS_BYTES = 2 << 30
_INPUT_BYTES = 24  # of a token, for each input of the widest matrix: those of a gated network three times, and the rest
_MOST_TOKENS = 1 << 15


class Piece(NamedTuple):
    """A rectangle of a planned tensor; it becomes the rows of a weight from `first_row` on."""

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
        """About how many operations it takes to measure its inputs and to round it."""
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


def weight_pieces(layouts: Iterable[TfliteLayout]) -> Mapping[str, Sequence[Piece]]:
    """The pieces of all quantised matrices of some files, by weight; their rows and columns are the weight's."""
    pieces: dict[str, list[Piece]] = {}
    for placement in (placement for layout in layouts for placement in layout.placements):
        weight = placement.weight
        if placement.scheme.quantised and len(weight.shape) == 2:
            height, width = weight.shape
            pieces[weight.name] = [
                Piece(weight.name, placement.scheme, start, (start, min(start + _PIECE_ROWS, height)), (0, width))
                for start in range(0, height, _PIECE_ROWS)
            ]
    return pieces


def decoder_files(plan: Plan) -> GraphFiles:
    """The files of a plan that have the text decoder."""
    return next(item for item in plan.files if isinstance(item, GraphFiles) and TEXT_DECODER in item.layouts)


def decoder_pieces(plan: Plan) -> Mapping[str, Sequence[Piece]]:
    """The pieces of a plan's text decoder that are quantised, not copied or computed, by tensor; UsageError if none."""
    files = decoder_files(plan)
    layout = files.layouts[TEXT_DECODER]
    pieces = pieces_of(layout, files.source.shape)
    pieces = {tensor: some for tensor, some in pieces.items() if tensor not in files.computed}
    if not pieces:
        raise UsageError("calibration", found="a recipe without quantised matrices", wanted="int8 or coarser")
    copied = {item.weight.name for item in layout.placements if is_copied(item, files.packed)}
    left = {name: [piece for piece in some if piece.weight not in copied] for name, some in pieces.items()}
    if not any(left.values()):
        found = "a recipe that copies every matrix as the checkpoint stores it"
        raise UsageError("calibration", found=found, remedy="leave it out, or choose another --quant")
    return {name: some for name, some in left.items() if some}


def copied_tensors(plan: Plan) -> frozenset[str]:
    """The tensors of a plan's text decoder that are copied as the checkpoint stores them, in codes."""
    files = decoder_files(plan)
    copied = (item.weight for item in files.layouts[TEXT_DECODER].placements if is_copied(item, files.packed))
    return frozenset(part.tensor for weight in copied for part in weight.parts)


def pass_tokens(pieces: Mapping[str, Sequence[Piece]]) -> int:
    """How many tokens a forward pass may have, for its activations to take some 2 GB."""
    widest = max(piece.columns[1] for some in pieces.values() for piece in some)
    return min(_PASS_BYTES // (_INPUT_BYTES * widest), _MOST_TOKENS)


def pieces_within(pieces: Mapping[str, Sequence[Piece]], run: CalibrationPass, tensor: str) -> Sequence[Piece]:
    """The pieces that lie in a size's tensor, which may be the first rows and columns of the planned one."""
    planned = run.planned(tensor)
    if planned is None or planned not in pieces:
        return ()
    height, width = run.model.shape(tensor)
    return [piece for piece in pieces[planned] if piece.rows[1] <= height and piece.columns[1] <= width]


@dataclass(slots=True)
class Rounding:
    """Measures inputs, rounds and multiplies on the threads of a pool; the result does not depend on their number."""

    pool: ThreadPoolExecutor
    _inputs: list[tuple[F32, Range, Inputs]] = field(default_factory=list)
    """Those measured last, at most two: LAuReL's are those of attention, after those of attention's output matrix."""

    def measure(self, x: F32, columns: Range, tokens: Range, wanted: Range | None = None) -> Inputs:
        """What rounding needs to know about some columns of the inputs f32[N, in], measured on some of the tokens.

        `wanted`: the same tokens in the float model.
        """
        for measured, of, inputs in self._inputs:
            if measured is x and of == columns:
                return inputs
        width = columns[1] - columns[0]
        # Frees the memory of what is not shared first.
        self._inputs = [known for known in self._inputs[-1:] if max(width, len(known[2].masses)) <= _SHARED_INPUTS]
        own = x[slice(*tokens), slice(*columns)]
        plain = None if wanted is None else x[slice(*wanted), slice(*columns)]
        inputs = measure_inputs(own, self._run, wanted=plain)
        self._inputs.append((x, columns, inputs))
        return inputs

    def round(self, values: F32, scheme: Scheme, inputs: Inputs, *, name: str, first_row: int) -> QuantizedRows:
        """Rows of a matrix, rounded against its inputs, in bands; `name` and `first_row` are for errors."""
        height, width = values.shape
        result = QuantizedRows.empty(height, width, scheme)
        step = min(_BAND_ROWS, max(1, _BAND_WEIGHTS // width))

        def round_band(start: int) -> None:
            some = slice(start, start + step)
            found = round_rows(values[some], scheme, inputs, name=name, first_row=first_row + start)
            result.codes[some], result.scales[some] = found.codes, found.scales

        self._run(round_band, range(0, height, step))
        return result

    def dequantize(self, rows: QuantizedRows, into: F32) -> None:
        """Write what the codes stand for into an array of their shape."""

        def dequantize_band(start: int) -> None:
            some = slice(start, start + _DEQUANTIZED_ROWS)
            into[some] = dequantize_rows(QuantizedRows(rows.codes[some], rows.scales[some]))

        self._run(dequantize_band, range(0, len(into), _DEQUANTIZED_ROWS))

    def multiply(self, x: F32, matrix: F32, into: F32 | None = None) -> F32:
        """x @ matrix.T, in the array `into` if there is one."""
        result = np.empty((len(x), len(matrix)), np.float32) if into is None else into

        def multiply(start: int) -> None:
            stop = start + _PRODUCT_ROWS
            np.matmul(x, matrix[start:stop].T, out=result[:, start:stop])

        self._run(multiply, range(0, len(matrix), _PRODUCT_ROWS))
        return result

    def _run(self, do: Callable[[int], None], numbers: Sequence[int]) -> None:
        for _ in self.pool.map(do, numbers):
            pass


@dataclass(slots=True)
class PieceRounder:
    """Rounds pieces and keeps what they are rounded to; `done` gets each piece once, found or rounded."""

    rounded: RoundedWeights
    rounding: Rounding
    done: Callable[[Piece], None]
    _told: set[Piece] = field(default_factory=set)

    def has(self, piece: Piece) -> bool:
        """Whether an earlier run, or a narrower size, has rounded it."""
        return self.rounded.has(piece.weight, piece.first_row, piece.height)

    def round(self, piece: Piece, x: F32, tokens: int, values: F32) -> None:
        """Round a piece with the weights `values`; its inputs are columns of x, f32[tokens..., in].

        The first `tokens` rows of x are those of the float model, the next so many the same ones of the rounded model.
        """
        inputs = self.rounding.measure(x, piece.columns, (tokens, 2 * tokens), (0, tokens))
        found = self.rounding.round(values, piece.scheme, inputs, name=piece.weight, first_row=piece.first_row)
        self.rounded.save(piece.weight, piece.first_row, found)

    def restore(self, piece: Piece, values: F32) -> None:
        """Replace `values`, the weights of a piece, by what they are rounded to."""
        rows = self.rounded.rows(piece.weight, piece.first_row, piece.first_row + piece.height)
        self.rounding.dequantize(rows, values)

    def tell(self, piece: Piece) -> None:
        """Report a piece, unless it was reported before."""
        if piece not in self._told:
            self._told.add(piece)
            self.done(piece)
