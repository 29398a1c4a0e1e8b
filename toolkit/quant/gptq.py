"""Rounds a matrix for the inputs that it is multiplied by, so that its products change as little as possible.

GPTQ (Frantar et al., https://arxiv.org/abs/2210.17323): columns are rounded one after the other, and the columns that
are not rounded yet compensate for what the rounding of a column changes in the products. Let H be the second moments of
the inputs and H = R Rᵀ with R upper triangular: an error E costs |E R|², whose column j involves only the first j
columns of E. So each column's best code follows from the errors before it, and no inverse is needed.

Two more steps lower that cost. Before: the weights are first moved to those whose products with the inputs that there
are come near the products of the float model, whose inputs no earlier layer has changed (after GPTAQ, Li et al.,
https://arxiv.org/abs/2504.02692); half of the way is best on text that nothing was measured on. After: scales are
refitted to their codes, and each code of less than 8 bits is chosen again with all others known (coordinate descent as
in QuantEase, Behdin et al., https://arxiv.org/abs/2309.01885).

Products go through BLAS: the result is the same for the same shapes on the same kind of processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
from numpy.typing import NDArray

from toolkit.quant.packing import require_finite
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import BLOCK_SCALE_RANGE, ROW_SCALE_MIN, QuantizedRows, block_scale

F32 = NDArray[np.float32]
Map = Callable[[Callable[[int], None], Sequence[int]], object]
"""Calls a function for each number, in any order, perhaps at the same time."""

DAMPING = 0.03
"""Added to the diagonal of the second moments, as a fraction of its mean. GPTQ's default is 0.01; with 0.03 the tiny
model's int4 diverges less (docs/calibration.md)."""
LARGEST_PART = 1024
"""Inputs that are considered together; a wider matrix is rounded in parts, which bounds time and memory. With less than
some four tokens for each input, smaller parts are more exact, too (docs/calibration.md)."""
_TOWARDS = 0.5  # of the way to the weights that would give the float model's products
_SWEEPS = 2  # in which each code of less than 8 bits is chosen again; 8 bits hardly gain (docs/calibration.md)
_TILES = 4  # products that the second moments of a part are computed in
_SOLVED = 128  # equations that are solved at a time
_FACTORISED = 64  # columns that are factorised at a time
_SCALED_WEIGHTS = 1 << 16  # whose scales are chosen at a time
_COLUMNS = 64  # columns between two products with all columns before them
_CLIPPED = tuple(1 - 0.07 * step for step in range(10))  # scales to try, from none clipped to a third
_BETWEEN = 0.035  # then those on both sides of the best
_LEAST_MASS = 1e-4  # of the mean: an input that the text never uses still has a weight that should be near


@dataclass(frozen=True, slots=True)
class InputPart:
    """Neighbouring inputs [start, stop): the order in which they are rounded; H and R of those.

    `moments`: H, f32[inputs, inputs]. `factors`: R, each column divided by its diagonal element.
    `correction`: in the inputs' own order; weights W are moved to W + W @ correction first. None for inputs that are
    the float model's own.
    """

    start: int
    stop: int
    order: NDArray[np.intp]
    moments: F32
    factors: F32
    correction: F32 | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What rounding needs to know about a matrix's inputs; `masses`: f32[inputs], the mean square of each."""

    masses: F32
    parts: tuple[InputPart, ...]


def in_turn(do: Callable[[int], None], numbers: Sequence[int]) -> None:
    """A `Map` that runs in the calling thread."""
    for number in numbers:
        do(number)


def measure_inputs(
    x: F32, run: Map = in_turn, *, wanted: F32 | None = None, largest_part: int = LARGEST_PART
) -> Inputs:
    """Measure inputs f32[tokens, inputs] of a matrix.

    `wanted`: what the inputs of the same tokens are in the float model; None: the same.
    `run` may spread the work over threads: what each call does depends on its number alone.
    """
    columns = x.shape[1]
    count = math.ceil(columns / largest_part)
    ends = [columns * (i + 1) // count for i in range(count)]
    some = [slice(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    parts = [_Measuring(x[:, own], own.start, None if wanted is None else wanted[:, own]) for own in some]
    tiles = [(part, tile) for part in parts for tile in range(_TILES)]

    def run_all(tasks: Sequence[Callable[[], None]]) -> None:
        run(lambda number: tasks[number](), range(len(tasks)))

    run_all([partial(part.multiply, tile) for part, tile in tiles])
    masses = np.concatenate([np.diag(part.moments) for part in parts])
    factorise = [part.factorise for part in parts]
    if wanted is None:
        run_all(factorise)
    else:
        # A factorisation takes one thread; the others go on with what needs no factors.
        run_all([*factorise, *(partial(part.compare, tile) for part, tile in tiles)])
        run_all([partial(part.correct, tile) for part, tile in tiles])
    least = np.float32(_LEAST_MASS * masses.mean(dtype=np.float64)) or np.float32(1)
    return Inputs(np.maximum(masses, least), tuple(part.done() for part in parts))


class _Measuring:
    """Neighbouring inputs f32[tokens, inputs] while they are measured, in tiles that threads may share."""

    def __init__(self, x: F32, start: int, wanted: F32 | None) -> None:
        self._x, self._start, self._wanted = x, start, wanted
        width = x.shape[1]
        self.moments: F32 = np.empty((width, width), np.float32)
        self._order = np.arange(width)
        self._factors: F32 = np.empty((0, 0), np.float32)
        self._squares: F32 = np.empty(0, np.float32)
        self._inverses: list[tuple[slice, F32]] = []
        self._missing, self._correction = (
            np.empty_like(self._factors if wanted is None else self.moments) for _ in range(2)
        )

    def multiply(self, tile: int) -> None:
        """Some columns of H, down to the diagonal; the first tile is the largest."""
        some = self._tile(_TILES - 1 - tile)
        found = self.moments[: some.stop, some]
        np.matmul(self._x[:, : some.stop].T, self._x[:, some], out=found)
        found /= np.float32(len(self._x))

    def compare(self, tile: int) -> None:
        """Some columns of the second moments of the inputs and what they lack."""
        assert self._wanted is not None
        some = self._tile(tile)
        np.matmul(self._x.T, self._wanted[:, some] - self._x[:, some], out=self._missing[:, some])

    def factorise(self) -> None:
        """Complete H, which is symmetric, sort it, add to its diagonal, and factorise it."""
        for tile in range(_TILES):
            some = self._tile(tile)
            self.moments[some.stop :, some] = self.moments[some, some.stop :].T
        masses = np.diag(self.moments)
        self._order = np.argsort(-masses, kind="stable")
        mean = float(masses.mean(dtype=np.float64)) or 1.0
        moments = self.moments[np.ix_(self._order, self._order)]
        moments[np.diag_indices(len(moments))] += np.float32(DAMPING * mean)
        factors = _upper_factor(moments)
        pivots = np.diag(factors)
        self.moments, self._factors, self._squares = moments, factors / pivots, pivots * pivots
        for start in range(0, len(pivots), _SOLVED):
            block = slice(start, start + _SOLVED)
            self._inverses.append((block, np.linalg.inv(self._factors[block, block])))

    def correct(self, tile: int) -> None:
        """Some rows of the correction: H C = towards * missing, by the factors of H = U D Uᵀ."""
        some, unit = self._tile(tile), self._factors
        found = self._missing[self._order, some] * np.float32(_TOWARDS / len(self._x))
        for block, inverse in reversed(self._inverses):
            found[block] = inverse @ (found[block] - unit[block, block.stop :] @ found[block.stop :])
        found /= self._squares[:, None]
        for block, inverse in self._inverses:
            found[block] = inverse.T @ (found[block] - unit[: block.start, block].T @ found[: block.start])
        self._correction[some, self._order] = found.T

    def done(self) -> InputPart:
        """What was measured."""
        stop = self._start + len(self._order)
        correction = None if self._wanted is None else self._correction
        return InputPart(self._start, stop, self._order, self.moments, self._factors, correction)

    def _tile(self, tile: int) -> slice:
        width = len(self._order)
        return slice(width * tile // _TILES, width * (tile + 1) // _TILES)


def _upper_factor(moments: F32) -> F32:
    """R, upper triangular, of H = R Rᵀ, f32[n, n]; LinAlgError if H is not positive definite.

    A few columns at a time, from the last on, so that nearly all of the work is in large products: LAPACK's
    factorisation, which NumPy calls, takes four times as long.
    """
    factor = np.zeros_like(moments)
    for stop in range(len(moments), 0, -_FACTORISED):
        own = slice(max(0, stop - _FACTORISED), stop)
        left = moments[:stop, own] - factor[:stop, stop:] @ factor[own, stop:].T
        # Of these rows, it is the lower factor of what is left, rotated by 180 degrees, rotated back.
        last = np.linalg.cholesky(left[own.start :][::-1, ::-1])[::-1, ::-1]
        factor[own, own] = last
        factor[: own.start, own] = left[: own.start] @ np.linalg.inv(last).T
    return factor


def round_rows(
    rows: F32, scheme: Scheme, inputs: Inputs, *, name: str = "weights", first_row: int = 0
) -> QuantizedRows:
    """Codes and scales of rows f32[rows, inputs]; the result for a row does not depend on the other rows.

    CheckpointError for a weight that is not finite; its message uses `name` and `first_row`.
    """
    require_finite(rows, name, first_row)
    rows = _corrected(rows, inputs.parts)
    scales = _scales(rows, scheme, inputs.masses)
    parts = [_Columns.of(part, rows, scheme) for part in inputs.parts]
    for part in parts:
        part.round(scales)
    for _ in range(_SWEEPS if scheme.element.bits < 8 else 0):
        if scheme.block_size is None:
            scales = _refitted(parts, scales, scheme)
        for part in parts:
            part.choose_again(scales)
    codes = np.empty(rows.shape, np.int8)
    for part in parts:
        codes[:, part.columns] = part.codes.T
    if scheme.block_size is None:
        return QuantizedRows(codes, scales[:, 0])
    return QuantizedRows(codes, scales.astype(np.float16))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of some rows, in the order in which they are rounded.

    Arrays are [columns, rows], so that a column is contiguous. `blocks`: the index of each column's block.
    """

    part: InputPart
    columns: NDArray[np.intp]
    blocks: NDArray[np.intp]
    limits: tuple[np.float32, np.float32]
    weights: F32
    codes: NDArray[np.int8]

    @classmethod
    def of(cls, part: InputPart, rows: F32, scheme: Scheme) -> _Columns:
        """The columns of a part, with all codes 0."""
        columns = part.start + part.order
        weights = np.ascontiguousarray(rows.T[columns])
        blocks = columns // (scheme.block_size or rows.shape[1])
        return cls(part, columns, blocks, _codes(scheme), weights, np.zeros(weights.shape, np.int8))

    def round(self, scales: F32) -> None:
        """Round column after column, each for the errors before it; scales f32[rows, blocks]."""
        errors = np.empty_like(self.weights)
        wanted = np.empty(errors.shape[1], np.float32)
        for some, scale in self._tiles(scales):
            base = self.part.factors[: some.start, some].T @ errors[: some.start]
            base += self.weights[some]
            own = np.ascontiguousarray(self.part.factors[some, some].T)
            found, codes, inverse = errors[some], np.empty_like(base), 1 / scale
            for n in range(len(found)):
                np.matmul(own[n, :n], found[:n], out=wanted)
                wanted += base[n]
                self._nearest(wanted, inverse[n], codes[n])
                np.multiply(codes[n], scale[n], out=wanted)
                np.subtract(self.weights[some.start + n], wanted, out=found[n])
            self.codes[some] = codes

    def choose_again(self, scales: F32) -> None:
        """Choose the code of each column once more, with all others as they are; scales f32[rows, blocks]."""
        errors = np.empty_like(self.weights)
        for some, scale in self._tiles(scales):
            np.subtract(self.weights[some], self.codes[some] * scale, out=errors[some])
        wanted = np.empty(errors.shape[1], np.float32)
        for some, scale in self._tiles(scales):
            # The best value of a column is its value now plus the pull of all errors on it, per unit of its own moment.
            before, moments = self.codes[some] * scale, self.part.moments[some]
            masses = np.diag(moments[:, some])[:, None]
            own, base = moments[:, some] / masses, moments @ errors
            base /= masses
            base += before
            changes, codes, inverse = np.empty_like(base), np.empty_like(base), 1 / scale
            for n in range(len(base)):
                np.matmul(own[n, :n], changes[:n], out=wanted)
                np.subtract(base[n], wanted, out=wanted)
                self._nearest(wanted, inverse[n], codes[n])
                np.multiply(codes[n], scale[n], out=changes[n])
                changes[n] -= before[n]
            errors[some] -= changes
            self.codes[some] = codes

    def _tiles(self, scales: F32) -> Iterator[tuple[slice, F32]]:
        """A few columns at a time, and the scales of their weights, f32[columns, rows]."""
        by_block = np.ascontiguousarray(scales.T)
        for start in range(0, len(self.blocks), _COLUMNS):
            some = slice(start, min(start + _COLUMNS, len(self.blocks)))
            yield some, by_block[self.blocks[some]]

    def _nearest(self, wanted: F32, inverse_scale: F32, codes: F32) -> None:
        """Write the codes that are nearest to some weights, which are changed."""
        wanted *= inverse_scale
        np.rint(wanted, out=codes)
        np.clip(codes, *self.limits, out=codes)


def _corrected(rows: F32, parts: Sequence[InputPart]) -> F32:
    """The weights that the codes should come near."""
    if all(part.correction is None for part in parts):
        return rows
    corrected = np.array(rows)
    for part in parts:
        if part.correction is not None:
            some = slice(part.start, part.stop)
            corrected[:, some] += rows[:, some] @ part.correction
    return corrected


def _refitted(parts: Sequence[_Columns], scales: F32, scheme: Scheme) -> F32:
    """The best scale of each row for its codes q, f32[rows, 1]: <w, q H> / <q, q H>."""
    wq, qq = (np.zeros(len(scales), np.float32) for _ in range(2))
    for some in parts:
        q = some.codes.astype(np.float32)
        products = some.part.moments @ q
        wq += np.einsum("cr,cr->r", some.weights, products)
        qq += np.einsum("cr,cr->r", q, products)
    found = wq / np.maximum(qq, np.float32(np.finfo(np.float32).tiny))
    return _stored(np.where(found > 0, found, scales[:, 0])[:, None], scheme)


def _scales(rows: F32, scheme: Scheme, masses: F32) -> F32:
    """The scale of each block, f32[rows, blocks]: of several candidates that clip, the one with the least sum of
    squared errors, weighted by the masses m.

    Each candidate is refitted to its codes q, for which the best scale is <m w, q> / <m q, q>. A few rows at a time
    stay in the processor's cache.
    """
    width = scheme.block_size or rows.shape[1]
    step = max(1, _SCALED_WEIGHTS // rows.shape[1])
    found = np.empty((len(rows), rows.shape[1] // width), np.float32)
    for start in range(0, len(rows), step):
        blocks = rows[start : start + step].reshape(-1, found.shape[1], width)
        found[start : start + step] = _scales_of_few(blocks, scheme, masses.reshape(-1, width))
    return found


def _scales_of_few(blocks: F32, scheme: Scheme, mass: F32) -> F32:
    """`_scales` of f32[rows, blocks, width]."""
    low, high = _codes(scheme)
    plain = np.maximum(np.maximum(blocks.max(-1) / high, blocks.min(-1) / low), ROW_SCALE_MIN)
    weighted = blocks * mass

    def clipped(ratios: F32) -> tuple[F32, F32, F32]:
        """Costs, scales refitted to codes that clip at ratios of the plain scales, and the ratios."""
        q = blocks / (plain * ratios)[..., None]
        np.rint(q, out=q)
        np.clip(q, low, high, out=q)
        wq = np.einsum("rbw,rbw->rb", weighted, q)
        np.multiply(q, q, out=q)
        qq = np.einsum("rbw,bw->rb", q, mass)
        scales = wq / np.maximum(qq, np.float32(np.finfo(np.float32).tiny))
        scales = _stored(np.where(scales > 0, scales, plain), scheme)
        return scales * (scales * qq - 2 * wq), scales, ratios

    some = _CLIPPED if scheme.element.bits < 8 else _CLIPPED[:2]
    best = reduce(_cheaper, (clipped(np.full_like(plain, ratio)) for ratio in some))
    beside = (best[2] - np.float32(_BETWEEN), best[2] + np.float32(_BETWEEN))
    return reduce(_cheaper, map(clipped, beside), best)[1]


def _cheaper(one: tuple[F32, F32, F32], other: tuple[F32, F32, F32]) -> tuple[F32, F32, F32]:
    """Of two choices for each block, of which the first array has the costs, the cheaper ones."""
    better = other[0] < one[0]
    costs, scales, ratios = (np.where(better, new, old) for old, new in zip(one, other, strict=True))
    return costs, scales, ratios


def _stored(scales: F32, scheme: Scheme) -> F32:
    if scheme.block_size is None:
        return np.maximum(scales, ROW_SCALE_MIN)
    return block_scale(np.minimum(scales, BLOCK_SCALE_RANGE[1]))


def _codes(scheme: Scheme) -> tuple[np.float32, np.float32]:
    codes = scheme.element.codes
    assert codes is not None, scheme
    return np.float32(codes[0]), np.float32(codes[1])
