"""Conversion at real sizes: seconds, rate and peak memory by size and by how scales are chosen.

Each run is a process of its own. Before it the checkpoint's pages are dropped from the kernel's cache, and what
storage itself gives is measured, so that a rate can be set against it. A rate counts the checkpoint's bytes of the
weights that the bundle keeps:

  python -m benchmarks.bench_convert_size e4b=E4B e2b=E4B:E2B --search absmax --scratch DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench_memory import drop_page_cache
from benchmarks.measure import (
    CONVERT_TESTS,
    RESULTS,
    ChildUsage,
    Measured,
    Recorder,
    conversion_figures,
    convert_command,
    model_record,
    run_child,
    text,
    this_device,
    tree_bytes,
)
from benchmarks.synthetic import BYTES_PER_WEIGHT
from toolkit.report.tables import markdown
from toolkit.results.record import Figures
from toolkit.results.statistics import summary

_STORAGE_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, and the size cut out of it; without one it is converted whole."""

    name: str
    checkpoint: Path
    size: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case's runs, the bytes of the checkpoint that its bundle keeps, and what storage gave before them."""

    case: Case
    runs: tuple[ChildUsage, ...]
    kept_bytes: int
    output_bytes: int
    storage_bytes_per_s: float


def measure(case: Case, quant: str, search: str, repeats: int, scratch: Path) -> Outcome:
    """Cold runs, one after the other."""
    files = sorted(case.checkpoint.glob("*.safetensors"))
    sizes = ["--sizes", case.size] if case.size else []
    output = scratch / "bundle"
    command = convert_command(case.checkpoint, "--quant", quant, "--search", search, *sizes, "-o", str(output))
    runs, storage, kept, size = [], 0.0, 0, 0
    for _ in range(repeats):
        drop_page_cache(files)
        storage = max(storage, storage_rate(max(files, key=lambda file: file.stat().st_size)))
        drop_page_cache(files)
        runs.append(run_child(command, scratch / "log.txt"))
        groups = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["groups"].values()
        kept = BYTES_PER_WEIGHT * sum(group["parameters"] for group in groups)
        size = tree_bytes(output)
        shutil.rmtree(output)
        print(f"{case.name} {quant} {search}: {runs[-1].seconds:.1f} s, {runs[-1].peak_rss_bytes / 1e6:.0f} MB")
    return Outcome(case, tuple(runs), kept, size, storage)


def storage_rate(path: Path, readers: int = 2) -> float:
    """Bytes per second of a file's first GiB past the page cache, read in MiB pieces by some threads in turn."""
    size = min(_STORAGE_BYTES, path.stat().st_size // _PIECE_BYTES * _PIECE_BYTES)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(offset: int) -> int:
        with mmap.mmap(-1, _PIECE_BYTES) as page_aligned:
            return os.preadv(fd, [page_aligned], offset)

    with open(fd, "rb", buffering=0), ThreadPoolExecutor(readers) as pool:
        started = time.perf_counter()
        read_bytes = sum(pool.map(read, range(0, size, _PIECE_BYTES)))
        return read_bytes / (time.perf_counter() - started)


def measured(outcome: Outcome, quant: str, search: str) -> Measured:
    """One case's runs as a record; what storage alone gave is in every run."""
    runs: list[Figures] = [
        {
            **conversion_figures(run, outcome.output_bytes),
            "kept_bytes": outcome.kept_bytes,
            "storage_bytes_per_s": outcome.storage_bytes_per_s,
        }
        for run in outcome.runs
    ]
    case = outcome.case
    return Measured(
        model_record(case.checkpoint, case.name, size=case.size),
        CONVERT_TESTS,
        runs,
        {"recipe": quant, "search": search},
        start="cold",
    )


def table(outcomes: Sequence[Outcome], search: str) -> str:
    """Median, and from least to most."""
    rows = []
    for outcome in outcomes:
        seconds = summary([run.seconds for run in outcome.runs])
        memory = text(summary([run.peak_rss_bytes for run in outcome.runs]), ".0f", 1e-6)
        cpu = text(summary([run.cpu_seconds for run in outcome.runs]), ".0f")
        rate = f"{outcome.kept_bytes / seconds.median / 1e6:.0f}"
        storage = f"{outcome.storage_bytes_per_s / 1e6:.0f}"
        kept = f"{outcome.kept_bytes / 1e9:.2f}"
        rows.append([outcome.case.name, search, kept, text(seconds, ".0f"), cpu, rate, storage, memory])
    header = ["size", "scales", "kept, GB", "seconds", "CPU seconds", "MB/s", "storage, MB/s", "peak RSS, MB"]
    return markdown(header, rows)


def parse_case(argument: str) -> Case:
    """NAME=CHECKPOINT, or NAME=CHECKPOINT:SIZE."""
    name, separator, rest = argument.partition("=")
    path, _, size = rest.partition(":")
    if not separator or not name or not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"found {argument!r}, wanted NAME=CHECKPOINT[:SIZE], a directory that exists")
    return Case(name, Path(path).resolve(), size or None)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_convert_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="+", type=parse_case, metavar="NAME=CHECKPOINT[:SIZE]")
    parser.add_argument("--quant", default="int4", help="recipe (default: %(default)s)")
    parser.add_argument("--search", choices=("absmax", "mse"), default="mse", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="where bundles are written and removed; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS / "convert_size.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("convert_size")
    outcomes = []
    for case in options.cases:
        with TemporaryDirectory(dir=options.scratch, prefix="bench_convert_size.") as scratch:
            outcomes.append(measure(case, options.quant, options.search, options.repeats, Path(scratch)))
        recorder.append(options.output, measured(outcomes[-1], options.quant, options.search))
    print(f"\n{this_device()}\nload average before: {recorder.load_before:.2f}\n\n{table(outcomes, options.search)}")


if __name__ == "__main__":
    main()
