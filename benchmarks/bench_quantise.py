"""Compares our quantisation with plain absmax, written the usual way, in the same run: weights per second, and error.

Every contender quantises and packs the same float32 weights, in the same chunks, on the same number of threads. Besides
the rate by wall clock there is the rate per second of CPU time, which other work on the machine disturbs less.
Prints a table and appends a record for each contender and scheme.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import RESULTS, Measured, Recorder, text
from toolkit.quant.packing import pack_codes
from toolkit.quant.scheme import Scheme
from toolkit.quant.stream import CHUNK_WEIGHTS
from toolkit.quant.uniform import dequantize_rows, quantize_rows
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures, ModelRecord
from toolkit.results.statistics import summary

F32 = NDArray[np.float32]
Codes = NDArray[np.int8] | NDArray[np.uint8]
Quantiser = Callable[[F32], Codes]

SCHEMES = (Scheme("int8"), Scheme("int4"), *(Scheme("int4", block_size) for block_size in (32, 64, 128, 256)))

TESTS: dict[str, FigureName] = {"quantise": "weights_per_s", "quantise_cpu": "weights_per_cpu_s"}


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over all weights."""

    weights_per_s: float
    weights_per_cpu_s: float


def peer(scheme: Scheme, w: F32) -> Codes:
    """Round to nearest with absmax scales, as NumPy code usually does."""
    assert scheme.element.codes is not None
    high = scheme.element.codes[1]
    groups = w.reshape(-1, scheme.block_size or w.shape[1])
    scales = np.abs(groups).max(axis=1, keepdims=True) / high
    codes: NDArray[np.int8] = np.clip(np.round(groups / scales), -high, high).astype(np.int8)
    if scheme.element.per_byte == 1:
        return codes
    flat = codes.reshape(-1).view(np.uint8)
    packed: NDArray[np.uint8] = (flat[0::2] & np.uint8(15)) | (flat[1::2] << np.uint8(4))
    return packed


def ours(scheme: Scheme, w: F32) -> Codes:
    """Quantise a chunk as the weight stream does."""
    return pack_codes(quantize_rows(w, scheme).codes, scheme.element.bits)


def timed(quantiser: Quantiser, chunks: Sequence[F32], pool: ThreadPoolExecutor) -> Run:
    """Quantise all chunks once."""
    count = sum(chunk.size for chunk in chunks)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in pool.map(quantiser, chunks):
        pass
    return Run(count / (time.perf_counter() - wall), count / (time.process_time() - cpu))


def squared_error(scheme: Scheme, w: F32) -> float:
    """The mean squared error of our quantisation."""
    return float(np.square(dequantize_rows(quantize_rows(w, scheme)).astype(np.float64) - w).mean())


def error_ratios(scheme: Scheme, columns: int) -> Figures:
    """The squared error relative to plain absmax, on three kinds of weights."""
    rng = np.random.default_rng(0)
    shape = (256, columns)
    kinds: dict[FigureName, NDArray[np.float64]] = {
        "gaussian_error_fraction": rng.standard_normal(shape),
        "laplace_error_fraction": rng.laplace(size=shape),
        "student_t4_error_fraction": rng.standard_t(4, size=shape),
    }
    plain = Scheme(scheme.dtype, scheme.block_size, "absmax")
    return {
        kind: squared_error(scheme, w.astype(np.float32)) / squared_error(plain, w.astype(np.float32))
        for kind, w in kinds.items()
    }


def measure(scheme: Scheme, chunks: Sequence[F32], workers: int, repeats: int) -> dict[str, list[Figures]]:
    """Rounds in which the contenders take turns."""
    absmax = Scheme(scheme.dtype, scheme.block_size, "absmax")
    contenders: dict[str, Quantiser] = {
        "peer": lambda w: peer(absmax, w),
        "absmax": lambda w: ours(absmax, w),
        "mse": lambda w: ours(scheme, w),
    }
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    with ThreadPoolExecutor(workers) as pool:
        for turn in range(repeats + 1):
            for name, quantiser in contenders.items():
                run = timed(quantiser, chunks, pool)
                if turn:  # the first round warms caches and the allocator
                    runs[name].append(run)
    return {
        name: [{"weights_per_s": run.weights_per_s, "weights_per_cpu_s": run.weights_per_cpu_s} for run in done]
        for name, done in runs.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_quantise", description=__doc__)
    parser.add_argument("--columns", type=int, default=2048, help="of a matrix (default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=16, help="of 2 MiB a pass (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="passes (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantise.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    shape = (CHUNK_WEIGHTS // options.columns, options.columns)
    chunks = [rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02) for _ in range(options.chunks)]
    digest = hashlib.sha256(b"".join(chunk.tobytes() for chunk in chunks)).hexdigest()
    size = sum(chunk.nbytes for chunk in chunks)
    recorder, rows = Recorder("quantise"), []
    for scheme in SCHEMES:
        model = ModelRecord("gaussian weights", "weights", None, digest, size, str(scheme))
        errors = error_ratios(scheme, options.columns)
        for system, runs in measure(scheme, chunks, options.workers, options.repeats).items():
            found = [{**run, **errors} if system == "mse" else run for run in runs]
            conditions = {"system": system, "columns": str(options.columns)}
            recorder.append(options.output, Measured(model, TESTS, found, conditions, threads=options.workers))
            rate = text(summary([run["weights_per_s"] for run in runs]), ".0f", 1e-6)
            rows.append([str(scheme), system, rate])
            print(f"{scheme} {system}: {rate} million weights/s", flush=True)
    print(markdown(["scheme", "system", "million weights/s"], rows))


if __name__ == "__main__":
    main()
