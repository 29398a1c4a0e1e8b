"""Chooses the scales that the search for types of at most 4 bits tries, for toolkit/quant/uniform.py.

For blocks of a width, the candidates are plain absmax and `unclipped / ratio` for a few ratios, each refitted to its
codes by least squares. Ratios are added one by one and then exchanged one by one, each time for the ratio that most
lowers the mean excess of the squared error over that of all ratios in a fine grid. Prints, for each number of ratios,
the mean and the largest excess over the kinds of weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.base.elements import ElementType, element_of
from toolkit.quant.uniform import block_scale

F64 = NDArray[np.float64]


def kinds(width: int, weights: int) -> Iterator[F64]:
    """Blocks from several distributions; long rows also with one outlier each."""
    rng = np.random.default_rng(7)
    shape = (max(weights // width, 100), width)
    yield rng.standard_normal(shape)
    yield rng.laplace(size=shape)
    yield rng.standard_t(4, size=shape)
    yield rng.standard_t(8, size=shape)
    if width > 256:
        outliers = rng.standard_normal(shape)
        outliers[np.arange(shape[0]), rng.integers(0, width, shape[0])] *= rng.uniform(3, 25, shape[0])
        yield outliers


def errors(w: F64, ratios: Sequence[float], element: ElementType, *, blocks: bool) -> F64:
    """The squared error of each block with plain absmax (row 0) and each ratio: f64[1 + ratios, blocks]."""
    assert element.codes is not None
    low, high = element.codes
    unclipped = np.maximum(w.max(1) / high, w.min(1) / low)
    reciprocals = [high / np.abs(w).max(1), *(ratio / unclipped for ratio in ratios)]
    found = []
    for reciprocal in reciprocals:
        codes = np.clip(np.rint(w * reciprocal[:, None]), low, high)
        scale = (w * codes).sum(1) / np.maximum((codes * codes).sum(1), 1)
        if blocks:
            scale = block_scale(scale.astype(np.float32)).astype(np.float64)
        found.append(np.square(w - codes * scale[:, None]).sum(1))
    return np.array(found)


def excesses(chosen: Sequence[int], tables: Sequence[F64]) -> F64:
    """How much larger the squared error is with the chosen rows (and row 0) than with all rows, by kind of weights."""
    rows = [0, *chosen]
    return np.array([table[rows].min(0).sum() / table.min(0).sum() - 1 for table in tables])


def choose(tables: Sequence[F64], most: int) -> Iterator[list[int]]:
    """The best row numbers for 1, 2, ... ratios."""
    chosen: list[int] = []
    for _ in range(most):
        chosen.append(best_addition(chosen, tables))
        for _ in range(3):
            for i in range(len(chosen)):
                chosen[i] = best_addition(chosen[:i] + chosen[i + 1 :], tables)
        yield sorted(chosen)


def best_addition(chosen: Sequence[int], tables: Sequence[F64]) -> int:
    """The row that most lowers the mean excess."""
    means = [float(excesses([*chosen, c], tables).mean()) for c in range(1, len(tables[0]))]
    return 1 + int(np.argmin(means))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choose_clip_ratios", description=__doc__)
    parser.add_argument("--type", choices=["int4", "int2"], default="int4", help="(default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256, 2048, 8192])
    parser.add_argument("--most", type=int, default=9, help="ratios (default: %(default)s)")
    parser.add_argument("--weights", type=int, default=300_000, help="of each kind (default: %(default)s)")
    options = parser.parse_args(arguments)
    for width in options.widths:
        blocks = width <= 256
        element = element_of(options.type)
        largest = 30.0 if element.bits == 2 else 2.0 if blocks else 9.0
        grid = np.geomspace(0.97, largest, 60 if blocks else 90)
        tables = [errors(w, list(grid), element, blocks=blocks) for w in kinds(width, options.weights)]
        for chosen in choose(tables, options.most):
            excess = excesses(chosen, tables)
            ratios = ", ".join(f"{grid[c - 1]:.3f}" for c in chosen)
            print(f"{width}: mean {excess.mean():.4f}, largest {excess.max():.4f}: {ratios}", flush=True)


if __name__ == "__main__":
    main()
