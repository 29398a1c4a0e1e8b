"""Compares the rate at which decoding reads its weights with the bandwidth of the machine's memory.

The bytes of a token are those of the decode graph's weights, including scales, and of each KV cache up to the end of
the context bucket; what a graph reads twice counts once. The machine's bandwidth is what this process reads with NumPy
on as many threads, before and after the runs, the best of several kernels. Each run is a process; runs take turns:

  python -m benchmarks.bench_bandwidth --bundle e2b-int4=BUNDLE --contexts 512,4096,32768
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, text, this_device
from benchmarks.session_run import SessionRequest, SessionRun, run_child
from toolkit.bundle.footprint import footprints
from toolkit.report.tables import markdown
from toolkit.results.record import Figures
from toolkit.results.statistics import Summary, summary
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import default_threads

_READ_BYTES = 1 << 28  # the share of a thread: far larger than every cache
_STEPS_BEFORE_END = 48


@dataclass(frozen=True, slots=True)
class Contender:
    """A bundle, and the number of positions that are filled when the last token is decoded."""

    name: str
    request: SessionRequest
    context: int
    weight_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A contender's runs."""

    contender: Contender
    runs: tuple[SessionRun, ...]

    def step_ms(self) -> Summary:
        """The median step of each run."""
        return summary([run.decode_step_ms for run in self.runs])

    def bytes_per_s(self) -> Summary:
        """The rate at which weights and caches are read."""
        read = self.contender.weight_bytes + self.contender.cache_bytes
        return summary([read / (run.decode_step_ms * 1e-3) for run in self.runs])


def read_bandwidth(threads: int, repeats: int = 5) -> float:
    """The bytes per second that NumPy reads from memory, an array per thread; the best repeat of the best kernel."""
    arrays = [np.full(_READ_BYTES // 8, number, np.int64) for number in range(threads)]
    kernels: tuple[Callable[[NDArray[np.int64]], object], ...] = (
        np.bitwise_or.reduce,
        np.add.reduce,
        lambda a: np.maximum.reduce(a.view(np.int8)),
        lambda a: np.maximum.reduce(a.view(np.float32)),
    )
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for kernel in kernels:
            for _ in range(repeats):
                started = time.perf_counter()
                list(pool.map(kernel, arrays))
                best = max(best, threads * _READ_BYTES / (time.perf_counter() - started))
    return best


def cache_bytes(bundle: Bundle, end: int) -> int:
    """The bytes of all KV caches that a decode step at position `end` reads: those of its bucket, or a whole ring."""
    record = bundle.manifest.text
    bucket = next((b for b in record.context_buckets if end <= b), record.context)
    total = 0
    for cache in record.kv_caches:
        _, heads, rows, width = cache.shape
        total += 2 * 4 * heads * width * (min(rows, bucket) if cache.window is None else rows)
    return total


def contenders(named: Sequence[tuple[str, Path]], contexts: Sequence[int], cache: Path, steps: int) -> list[Contender]:
    """Each bundle at each of the contexts that it supports."""
    found = []
    for name, path in named:
        bundle = Bundle(path)
        weights = footprints(path, bundle.manifest)[bundle.manifest.default_size].weight_bytes
        for context in contexts:
            if context <= bundle.manifest.text.context:
                request = SessionRequest(path, 0, steps, cache, skip=context - steps)
                found.append(Contender(name, request, context, weights, cache_bytes(bundle, context)))
    return found


def measure(all_contenders: Sequence[Contender], repeats: int) -> list[Outcome]:
    """One run of each, which packs the weights and is not counted, then rounds of one run each."""
    for name in dict.fromkeys(contender.request.bundle for contender in all_contenders):
        run_child(SessionRequest(name, 0, 1, all_contenders[0].request.cache))
    runs: list[list[SessionRun]] = [[] for _ in all_contenders]
    for _ in range(repeats):
        for number, contender in enumerate(all_contenders):
            run = run_child(contender.request)
            runs[number].append(run)
            print(f"{contender.name} at {contender.context}: {run.decode_step_ms:.1f} ms", flush=True)
    return [Outcome(c, tuple(r)) for c, r in zip(all_contenders, runs, strict=True)]


def measured(outcome: Outcome, bandwidths: tuple[float, float]) -> Measured:
    """One contender's runs as a record; in every run, the bandwidth is the better of that before and that after."""
    contender, most = outcome.contender, max(bandwidths)
    read = contender.weight_bytes + contender.cache_bytes
    runs: list[Figures] = [
        {
            "decode_step_s": run.decode_step_ms * 1e-3,
            "decode_read_bytes_per_s": read / (run.decode_step_ms * 1e-3),
            "memory_read_bytes_per_s": most,
            "memory_bandwidth_fraction": read / (run.decode_step_ms * 1e-3) / most,
            "weight_bytes": contender.weight_bytes,
            "cache_bytes": contender.cache_bytes,
        }
        for run in outcome.runs
    ]
    return Measured(
        model_record(contender.request.bundle, contender.name),
        {"step": "decode_step_s", "read": "decode_read_bytes_per_s", "memory": "memory_read_bytes_per_s"},
        runs,
        {"filled": str(contender.context), "steps": str(contender.request.decode)},
        threads=contender.request.threads,
        context=Bundle(contender.request.bundle).manifest.text.context,
    )


def table(outcomes: Sequence[Outcome], bandwidth: float) -> str:
    """Median, and from least to most."""
    rows = []
    for outcome in outcomes:
        contender, rate = outcome.contender, outcome.bytes_per_s()
        read = f"{contender.weight_bytes / 1e6:.0f} + {contender.cache_bytes / 1e6:.0f}"
        steps, fraction = text(outcome.step_ms(), ".1f"), f"{rate.median / bandwidth:.0%}"
        rows.append([contender.name, f"{contender.context:,}", read, steps, text(rate, ".1f", 1e-9), fraction])
    header = ["bundle", "context", "weights + caches, MB a token", "step, ms", "read, GB/s", "of the bandwidth"]
    return markdown(header, rows)


def named_bundle(argument: str) -> tuple[str, Path]:
    """NAME=DIRECTORY."""
    name, separator, path = argument.partition("=")
    if not separator or not name or not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"found {argument!r}, wanted NAME=BUNDLE with a directory that exists")
    return name, Path(path).resolve()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_bandwidth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", action="append", required=True, type=named_bundle, metavar="NAME=BUNDLE")
    parser.add_argument("--contexts", default="512,4096,32768", help="filled positions (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=_STEPS_BEFORE_END, help="a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="for packed weights (default: a temporary one)")
    parser.add_argument("--output", type=Path, default=RESULTS / "bandwidth.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    contexts = [int(context) for context in options.contexts.split(",")]
    recorder = Recorder("bandwidth")
    threads = default_threads()
    with TemporaryDirectory(prefix="bench_bandwidth.") as scratch:
        cache = options.cache or Path(scratch)
        wanted = contenders(options.bundle, contexts, cache, options.steps)
        before = read_bandwidth(threads)
        outcomes = measure(wanted, options.repeats)
        bandwidths = before, read_bandwidth(threads)
    for outcome in outcomes:
        recorder.append(options.output, measured(outcome, bandwidths))
    bandwidth = f"memory: {bandwidths[0] / 1e9:.1f} GB/s before, {bandwidths[1] / 1e9:.1f} after"
    print(f"\n{this_device()}\n{threads} threads; {bandwidth}\n\n{table(outcomes, max(bandwidths))}")


if __name__ == "__main__":
    main()
