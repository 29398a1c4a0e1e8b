"""Measures a product with several rows, relative to one row: such products make up a step that checks drafts.

Figures are medians of the CPU time of one thread; the numbers of rows take turns. Prints a row of the table for each
kind of weights.

  python -m benchmarks.bench_rows
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
from numpy.typing import NDArray

from benchmarks.measure import this_device
from toolkit.quant.scheme import Scheme
from toolkit.report.tables import markdown
from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Signature, Weight
from toolkit.tflite.writer import layout_tflite, write_tflite

ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
SHAPE = (8192, 2048)
SCHEMES = {
    "int8": Scheme("int8", None, "absmax"),
    "int4": Scheme("int4", None, "absmax"),
    "int4, blocks of 32": Scheme("int4", 32, "absmax"),
}


class RandomMatrix:
    """A source that has normal random numbers under any name."""

    def shape(self, name: str) -> tuple[int, ...]:
        return SHAPE

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        (first, end), (left, right) = rows or (0, SHAPE[0]), columns or (0, SHAPE[1])
        return np.random.default_rng(first).standard_normal((end - first, right - left)).astype(np.float32)


def product(rows: int) -> Signature:
    """The signature that multiplies x, f32[1, rows, 2048], by the matrix."""
    graph = Graph()
    x = graph.input("x", (1, rows, SHAPE[1]))
    graph.output("y", ops.fully_connected(x, graph.weight(Weight.whole("w", SHAPE))))
    return Signature(f"rows_{rows}", graph)


def measure(path: Path, repeats: int) -> dict[int, float]:
    """Seconds for each number of rows."""
    interpreter = Interpreter(str(path), num_threads=1)
    runners = {rows: interpreter.get_signature_runner(f"rows_{rows}") for rows in ROWS}
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for turn in range(repeats + 1):  # the first prepares
        for rows, run in runners.items():
            x = np.ones((1, rows, SHAPE[1]), np.float32)
            started = time.process_time()
            run(x=x)
            if turn:
                seconds[rows].append(time.process_time() - started)
    return {rows: statistics.median(found) for rows, found in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_rows", description=__doc__)
    parser.add_argument("--repeats", type=int, default=25, help="default: %(default)s")
    repeats = parser.parse_args(arguments).repeats
    table = []
    with TemporaryDirectory() as scratch:
        for name, scheme in SCHEMES.items():
            path = Path(scratch) / "product.tflite"
            write_tflite(path, layout_tflite([product(rows) for rows in ROWS], {"w": scheme}), RandomMatrix())
            found = measure(path, repeats)
            table.append([name, f"{found[1] * 1e3:.2f}", *(f"{found[rows] / found[1]:.2f}" for rows in ROWS)])
    header = [f"{SHAPE[0]:,} x {SHAPE[1]:,}", "one row, ms", *(f"x {rows}" for rows in ROWS)]
    print(f"{this_device()}\n\n{markdown(header, table)}")


if __name__ == "__main__":
    main()
