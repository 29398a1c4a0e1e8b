"""Measures the lookup of one token's per-layer embeddings, from flash and from memory, by layout of the table.

Layouts: our shards, where a token is one row, with and without MADV_RANDOM; and the same codes layer by layer, as if
each layer had its own table, where a token is a piece of each. Cold: the files' pages were dropped from the kernel's
cache, which is checked, and every token is a new one. Warm: the same tokens once more. Costs are compared with a
decode step of the same bundle:

  python -m benchmarks.bench_ple BUNDLE
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_memory import drop_page_cache
from benchmarks.measure import RESULTS, Measured, Recorder, model_record, text, this_device
from benchmarks.session_run import SessionRequest, run_child
from toolkit.base.procfs import parse_io
from toolkit.bundle.ple_shards import HEADER_BYTES, PleLayout, read_header, unpack_rows
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures, ModelRecord, Start
from toolkit.results.statistics import Summary, summary
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.memory import page_cache_bytes
from toolkit.runtime.ple_lookup import PleTable

Lookup = Callable[[NDArray[np.int32]], NDArray[np.float32]]

_LAYER_MAJOR = "layer_major.bin"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to look up rows, `batch` tokens at a time."""

    name: str
    layout: str
    random_advice: bool
    in_ram: bool = False
    batch: int = 1


WAYS = (
    Way("rows, MADV_RANDOM", "rows", True),
    Way("rows, no advice", "rows", False),
    Way("layer by layer, MADV_RANDOM", "layers", True),
    Way("layer by layer, no advice", "layers", False),
    Way("rows, MADV_RANDOM, 256 at once", "rows", True, batch=256),
    Way("rows in RAM", "rows", True, in_ram=True),
)


@dataclass(frozen=True, slots=True)
class Pass:
    """The microseconds per token of one pass over all tokens, and the bytes per token that were read from storage."""

    median_us: float
    p99_us: float
    read_bytes: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A way's passes; a table in memory is never cold."""

    way: Way
    cold: tuple[Pass, ...]
    warm: tuple[Pass, ...]


def write_layer_major(shards: Sequence[Path], layout: PleLayout, path: Path) -> None:
    """Write the same codes and scales as uint8[layers, vocabulary, bytes of one layer]."""
    width, scale = layout.width * layout.bits // 8, layout.scale_bytes // layout.layers
    table = np.memmap(path, np.uint8, "w+", shape=(layout.layers, layout.vocab_size, width + scale))
    for shard in shards:
        header = read_header(shard)
        span = slice(header.first_token, header.first_token + header.row_count)
        rows = np.memmap(shard, np.uint8, "r", HEADER_BYTES, (header.row_count, layout.row_bytes))
        end = layout.code_bytes + layout.scale_bytes
        for layer in range(layout.layers):
            table[layer, span, :width] = rows[:, layer * width : (layer + 1) * width]
            scales = rows[:, layout.code_bytes : end].reshape(header.row_count, layout.layers, scale)
            table[layer, span, width:] = scales[:, layer]
    table.flush()


@contextmanager
def opened(way: Way, bundle: Bundle, layer_major: Path) -> Iterator[Lookup]:
    """The table, ready for lookups without a cache of recent rows."""
    if way.layout == "layers":
        layout = read_header(bundle.ple_shards()[0]).layout
        with open(layer_major, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            mapped.madvise(mmap.MADV_RANDOM if way.random_advice else mmap.MADV_NORMAL)
            table = np.frombuffer(mapped, np.uint8).reshape(layout.layers, layout.vocab_size, -1)
            yield lambda ids: _gather(table, ids, layout)
            del table
        return
    ple = PleTable(bundle.ple_shards(), cache_bytes=0, in_ram=way.in_ram)
    if not way.random_advice:
        for shard in ple._maps:
            shard.madvise(mmap.MADV_NORMAL)
    yield lambda ids: ple.lookup(ids.tolist())
    ple.close()


def _gather(table: NDArray[np.uint8], ids: NDArray[np.int32], layout: PleLayout) -> NDArray[np.float32]:
    """Join the pieces of all layers to the form of one of our rows."""
    pieces, width = table[:, ids[0]], layout.width * layout.bits // 8
    row = np.empty((1, layout.code_bytes + layout.scale_bytes), np.uint8)
    row[0, : layout.code_bytes] = pieces[:, :width].reshape(-1)
    row[0, layout.code_bytes :] = pieces[:, width:].reshape(-1)
    values = unpack_rows(row, layout)
    values *= np.float32(np.sqrt(layout.width))
    return values


def timed(lookup: Lookup, ids: NDArray[np.int32], batch: int) -> Pass:
    """Look up all tokens once, `batch` at a time."""
    times = []
    before = _storage_bytes()
    for start in range(0, len(ids), batch):
        begun = time.perf_counter()
        lookup(ids[start : start + batch])
        times.append((time.perf_counter() - begun) / batch * 1e6)
    read = (_storage_bytes() - before) / len(ids)
    return Pass(statistics.median(times), float(np.percentile(times, 99)), read)


def _storage_bytes() -> int:
    return parse_io(Path("/proc/self/io").read_text(encoding="ascii")).read_bytes or 0


def measure(bundle: Bundle, layer_major: Path, tokens: int, repeats: int) -> list[Outcome]:
    """Rounds in which the ways take turns."""
    files = [*bundle.ple_shards(), layer_major]
    vocabulary = bundle.manifest.text.ple_vocab_size
    outcomes = [Outcome(way, (), ()) for way in WAYS]
    for turn in range(repeats):
        ids = np.random.default_rng(turn).permutation(vocabulary)[:tokens].astype(np.int32)
        for number, outcome in enumerate(outcomes):
            way = outcome.way
            drop_page_cache(files)
            assert not any(page_cache_bytes(file) for file in files), "not cold"
            with opened(way, bundle, layer_major) as lookup:
                first, second = timed(lookup, ids, way.batch), timed(lookup, ids, way.batch)
            cold = outcome.cold if way.in_ram else (*outcome.cold, first)
            outcomes[number] = Outcome(way, cold, (*outcome.warm, second))
    return outcomes


def _medians(passes: Sequence[Pass], field: str) -> Summary | None:
    return summary([getattr(each, field) for each in passes]) if passes else None


def measured(outcome: Outcome, model: ModelRecord, steps_ms: Sequence[float], tokens: int) -> list[Measured]:
    """A way's passes as records, one cold and one warm; a table in memory is never cold."""
    way = outcome.way
    conditions = {"table": way.name, "batch": str(way.batch), "tokens": str(tokens)}
    tests: dict[str, FigureName] = {"lookup": "lookup_latency_p50_s", "lookup_p99": "lookup_latency_p99_s"}
    starts: tuple[tuple[Start, tuple[Pass, ...]], ...] = (("cold", outcome.cold), ("warm", outcome.warm))
    return [
        Measured(
            model, tests, [_figures(*pair) for pair in zip(passes, steps_ms, strict=True)], conditions, start=start
        )
        for start, passes in starts
        if passes
    ]


def _figures(one: Pass, step_ms: float) -> Figures:
    """The figures of a pass, and one of the decode steps, which were measured before all passes."""
    return {
        "lookup_latency_p50_s": one.median_us * 1e-6,
        "lookup_latency_p99_s": one.p99_us * 1e-6,
        "lookup_read_bytes": one.read_bytes,
        "decode_step_s": step_ms * 1e-3,
    }


def table(outcomes: Sequence[Outcome], step_ms: float) -> str:
    """Microseconds per token: median, least and most of the passes' medians, also relative to a decode step."""
    rows = []
    for outcome in outcomes:
        cells = []
        for passes in (outcome.cold, outcome.warm):
            median = _medians(passes, "median_us")
            cells += [text(median, ".0f"), f"{median.median / step_ms / 10:.2f} %"] if median else ["-", "-"]
        read = _medians(outcome.cold, "read_bytes")
        rows.append([outcome.way.name, *cells, f"{read.median / 1e3:.1f}" if read else "-"])
    header = ["table", "cold, us", "of a step", "warm, us", "of a step", "cold: read from storage, kB a token"]
    return markdown(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_ple",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--name", help="of the bundle in the results (default: its directory's)")
    parser.add_argument("--tokens", type=int, default=512, help="of a pass (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="for packed weights (default: a temporary one)")
    parser.add_argument("--scratch", type=Path, help="for a copy of the table (default: beside the bundle)")
    parser.add_argument("--output", type=Path, default=RESULTS / "ple.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("ple")
    bundle = Bundle(options.bundle.resolve())
    folder = options.scratch or bundle.path.parent
    with TemporaryDirectory(prefix="bench_ple.", dir=folder) as scratch:
        cache = options.cache or Path(scratch)
        request = SessionRequest(bundle.path, 16, 32, cache)
        step_ms = summary([run_child(request).decode_step_ms for _ in range(options.repeats)])
        layer_major = Path(scratch) / _LAYER_MAJOR
        write_layer_major(bundle.ple_shards(), read_header(bundle.ple_shards()[0]).layout, layer_major)
        outcomes = measure(bundle, layer_major, options.tokens, options.repeats)
    name = options.name or bundle.path.name
    for outcome in outcomes:
        for found in measured(outcome, model_record(bundle.path, name), step_ms.values, options.tokens):
            recorder.append(options.output, found)
    print(f"\n{this_device()}\n{name}; decode step {text(step_ms, '.1f')} ms\n\n{table(outcomes, step_ms.median)}")


if __name__ == "__main__":
    main()
