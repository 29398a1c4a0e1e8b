"""Rounds a matrix for the inputs that it is multiplied by, so that its products change as little as possible.

GPTQ (Frantar et al., https://arxiv.org/abs/2210.17323): columns are rounded one after the other, and the columns that
are not rounded yet compensate for what the rounding of a column changes in the products. Let H be the second moments of
the inputs and H = R Rᵀ with R upper triangular: an error E costs |E R|², whose column j involves only the first j
columns of E. So each column's best code follows from the errors before it, and no inverse is needed.

Two more steps lower that cost. Before: the weights are first moved to those whose products with the inputs that there
are come near the products of the float model, whose inputs no earlier layer has changed (after GPTAQ, Li et al.,
https://arxiv.org/abs/2504.02692); half of the way is best on text that nothing was measured on. After: scales are
refitted to their codes, and each code is chosen again with all others known (coordinate descent as in QuantEase,
Behdin et al., https://arxiv.org/abs/2309.01885).

Products go through BLAS: the result is the same for the same shapes on the same kind of processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
LARGEST_PART = 4096
"""Inputs that are considered together; a wider matrix is rounded in parts, which bounds memory (192 MiB each)."""
_TOWARDS = 0.5  # of the way to the weights that would give the float model's products
_SWEEPS = 2  # in which each code is chosen again
_TILES = 4  # products that the second moments of a part are computed in
_COLUMNS = 64  # columns between two products with all columns before them
_CLIPPED = tuple(1 - 0.035 * step for step in range(20))  # scales to try, from none clipped to a third
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
    bounds = list(zip([0, *ends[:-1]], ends, strict=True))
    moments = [np.empty((stop - start,) * 2, np.float32) for start, stop in bounds]
    missing = None if wanted is None else [np.empty_like(part) for part in moments]
    masses = np.empty(columns, np.float32)
    parts: list[InputPart | None] = [None] * count

    def multiply(number: int) -> None:
        part, tile = divmod(number, _TILES)
        own = x[:, slice(*bounds[part])]
        some = slice(own.shape[1] * tile // _TILES, own.shape[1] * (tile + 1) // _TILES)
        np.matmul(own.T, own[:, some], out=moments[part][:, some])
        if wanted is not None and missing is not None:
            lost = wanted[:, slice(*bounds[part])] - own
            np.matmul(lost.T, own[:, some], out=missing[part][:, some])

    def factorise(part: int) -> None:
        start, stop = bounds[part]
        moments[part] /= np.float32(len(x))
        masses[start:stop] = np.diag(moments[part])
        if missing is not None:
            missing[part] /= np.float32(len(x))
        parts[part] = _factorise(moments[part], start, None if missing is None else missing[part])

    run(multiply, range(count * _TILES))
    run(factorise, range(count))
    least = np.float32(_LEAST_MASS * masses.mean(dtype=np.float64)) or np.float32(1)
    return Inputs(np.maximum(masses, least), tuple(part for part in parts if part is not None))


def _factorise(moments: F32, start: int, missing: F32 | None) -> InputPart:
    """`missing`: the second moments of what the inputs lack, and the inputs."""
    masses = np.diag(moments)
    order = np.argsort(-masses, kind="stable")
    mean = float(masses.mean(dtype=np.float64)) or 1.0
    moments = moments[np.ix_(order, order)]
    moments[np.diag_indices(len(moments))] += np.float32(DAMPING * mean)
    # R, upper triangular, is the Cholesky factor of the matrix rotated by 180 degrees, rotated back.
    factors = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    correction = None
    if missing is not None:
        found = np.linalg.solve(moments, np.float32(_TOWARDS) * missing[:, order].T)
        correction = np.empty_like(found)
        correction[:, order] = found.T
    divided: F32 = np.ascontiguousarray(factors / np.diag(factors))
    return InputPart(start, start + len(factors), order, moments, divided, correction)


def round_rows(
    rows: F32, scheme: Scheme, inputs: Inputs, *, name: str = "weights", first_row: int = 0
) -> QuantizedRows:
    """Codes and scales of rows f32[rows, inputs]; the result for a row does not depend on the other rows.

    CheckpointError for a weight that is not finite; its message uses `name` and `first_row`.
    """
    require_finite(rows, name, first_row)
    rows = _corrected(rows, inputs.parts)
    scales = _scales(rows, scheme, inputs.masses)
    codes = np.empty(rows.shape, np.int8)
    for part in inputs.parts:
        _round_part(rows, scales, scheme, part, codes)
    for _ in range(_SWEEPS):
        if scheme.block_size is None:
            scales = _refitted(rows, codes, scales, scheme, inputs.parts)
        for part in inputs.parts:
            _choose_again(rows, scales, scheme, part, codes)
    if scheme.block_size is None:
        return QuantizedRows(codes, scales[:, 0])
    return QuantizedRows(codes, scales.astype(np.float16))


def _round_part(rows: F32, scales: F32, scheme: Scheme, part: InputPart, codes: NDArray[np.int8]) -> None:
    """Round the columns of one part. Arrays here are [columns, rows], so that a column is contiguous."""
    low, high = _codes(scheme)
    columns = part.start + part.order
    weights = np.ascontiguousarray(rows.T[columns])
    width = scheme.block_size or rows.shape[1]
    by_block = np.ascontiguousarray(scales.T)
    errors = np.empty_like(weights)
    rounded = np.empty(weights.shape, np.int8)
    for start in range(0, len(weights), _COLUMNS):
        stop = min(start + _COLUMNS, len(weights))
        carried = part.factors[:start, start:stop].T @ errors[:start]
        own = np.ascontiguousarray(part.factors[start:stop, start:stop].T)
        for i in range(start, stop):
            wanted = carried[i - start]
            wanted += own[i - start, : i - start] @ errors[start:i]
            wanted += weights[i]
            scale = by_block[columns[i] // width]
            wanted /= scale
            np.rint(wanted, out=wanted)
            np.clip(wanted, low, high, out=wanted)
            rounded[i] = wanted
            wanted *= scale
            np.subtract(weights[i], wanted, out=errors[i])
    codes[:, columns] = rounded.T


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


def _refitted(rows: F32, codes: NDArray[np.int8], scales: F32, scheme: Scheme, parts: Sequence[InputPart]) -> F32:
    """The best scale of each row for its codes q, f32[rows, 1]: <w, q H> / <q, q H>."""
    wq, qq = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
    for part in parts:
        columns = part.start + part.order
        q = codes[:, columns].astype(np.float32)
        products = q @ part.moments
        wq += np.einsum("ij,ij->i", rows[:, columns], products)
        qq += np.einsum("ij,ij->i", q, products)
    found = wq / np.maximum(qq, np.float32(np.finfo(np.float32).tiny))
    return _stored(np.where(found > 0, found, scales[:, 0])[:, None], scheme)


def _choose_again(rows: F32, scales: F32, scheme: Scheme, part: InputPart, codes: NDArray[np.int8]) -> None:
    """Choose the code of each column of a part once more, with all others as they are; arrays as in `_round_part`."""
    low, high = _codes(scheme)
    columns = part.start + part.order
    width = scheme.block_size or rows.shape[1]
    by_block = np.ascontiguousarray(scales.T)
    chosen = np.ascontiguousarray(codes.T[columns])
    errors = np.ascontiguousarray(rows.T[columns])
    for i in range(len(errors)):
        errors[i] -= chosen[i] * by_block[columns[i] // width]
    changes = np.empty((_COLUMNS, len(rows)), np.float32)
    for start in range(0, len(errors), _COLUMNS):
        stop = min(start + _COLUMNS, len(errors))
        pull = part.moments[start:stop] @ errors
        own = np.ascontiguousarray(part.moments[start:stop, start:stop])
        for i in range(start, stop):
            n, scale = i - start, by_block[columns[i] // width]
            wanted = pull[n] - own[n, :n] @ changes[:n]
            wanted /= own[n, n] * scale
            wanted += chosen[i]
            np.rint(wanted, out=wanted)
            np.clip(wanted, low, high, out=wanted)
            np.multiply(wanted - chosen[i], scale, out=changes[n])
            errors[i] -= changes[n]
            chosen[i] = wanted
    codes[:, columns] = chosen.T


def _scales(rows: F32, scheme: Scheme, masses: F32) -> F32:
    """The scale of each block, f32[rows, blocks]: of several candidates that clip, the one with the least sum of
    squared errors, weighted by the masses m.

    Each candidate is refitted to its codes q, for which the best scale is <m w, q> / <m q, q>.
    """
    low, high = _codes(scheme)
    width = scheme.block_size or rows.shape[1]
    blocks = rows.reshape(len(rows), -1, width)
    mass = masses.reshape(-1, width)
    plain = np.maximum(np.maximum(blocks.max(-1) / high, blocks.min(-1) / low), ROW_SCALE_MIN)
    best, least = plain, np.full(plain.shape, np.inf, np.float32)
    weighted = blocks * mass
    for ratio in _CLIPPED if scheme.element.bits < 8 else _CLIPPED[:3]:
        q = np.rint(blocks / (plain * np.float32(ratio))[..., None])
        np.clip(q, low, high, out=q)
        wq = np.einsum("rbw,rbw->rb", weighted, q)
        qq = np.einsum("rbw,rbw,bw->rb", q, q, mass)
        scale = wq / np.maximum(qq, np.float32(np.finfo(np.float32).tiny))
        scale = _stored(np.where(scale > 0, scale, plain), scheme)
        cost = scale * (scale * qq - 2 * wq)
        better = cost < least
        best, least = np.where(better, scale, best), np.where(better, cost, least)
    return _stored(best, scheme)


def _stored(scales: F32, scheme: Scheme) -> F32:
    if scheme.block_size is None:
        return np.maximum(scales, ROW_SCALE_MIN)
    return block_scale(np.minimum(scales, BLOCK_SCALE_RANGE[1]))


def _codes(scheme: Scheme) -> tuple[np.float32, np.float32]:
    codes = scheme.element.codes
    assert codes is not None, scheme
    return np.float32(codes[0]), np.float32(codes[1])
