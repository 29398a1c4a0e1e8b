"""Measures conversion at real sizes: seconds, rate and peak memory, by size, by recipe and by how scales are chosen.

Each run is a separate process. Before it, the checkpoint's pages are dropped from the kernel's cache, and the rate of
the storage itself is measured for comparison. A rate counts the bytes in the checkpoint of the weights that the bundle
keeps. All cases take turns:

  python -m benchmarks.bench_convert_size e4b=E4B e2b=E4B:E2B --search absmax --scratch DIRECTORY
  python -m benchmarks.bench_convert_size e2b=E2B --lora 16 --repeats 3
  python -m benchmarks.bench_convert_size 3n=GEMMA3N,int4 4=GEMMA4,int4 qat=GEMMA4_QAT,qat --baseline 3n

With --lora, each run is followed by one that merges a random LoRA adapter of that rank, on all attention and
feed-forward layers of text.
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
from dataclasses import dataclass, replace
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
from benchmarks.synthetic_adapter import write_adapter
from converters.families import open_checkpoint
from toolkit.report.tables import markdown
from toolkit.results.record import Figures
from toolkit.results.statistics import Summary, summary

_STORAGE_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, and the size that is cut out of it; None: it is converted whole."""

    name: str
    checkpoint: Path
    size: str | None
    quant: str
    lora: int | None = None
    """The rank of an adapter that is merged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case's runs, the bytes of the checkpoint that its bundle keeps, and the storage's rate before the runs."""

    case: Case
    runs: tuple[ChildUsage, ...]
    kept_bytes: int
    output_bytes: int
    storage_bytes_per_s: float


def measure(cases: Sequence[Case], search: str, repeats: int, scratch: Path) -> list[Outcome]:
    """Cold runs of the cases, in turns."""
    found: dict[Case, Outcome] = {}
    for case in [*cases] * repeats:
        now, before = _run(case, search, scratch), found.get(case)
        if before is not None:
            storage = max(before.storage_bytes_per_s, now.storage_bytes_per_s)
            now = replace(now, runs=before.runs + now.runs, storage_bytes_per_s=storage)
        found[case] = now
        last = now.runs[-1]
        print(
            f"{case.name} {case.quant} {search}: {last.seconds:.1f} s, {last.peak_rss_bytes / 1e6:.0f} MB", flush=True
        )
    return list(found.values())


def _run(case: Case, search: str, scratch: Path) -> Outcome:
    files = sorted(case.checkpoint.glob("*.safetensors"))
    options = ["--sizes", case.size] if case.size else []
    if case.lora is not None:
        adapter = scratch / f"adapter of {case.checkpoint.name}"
        if not adapter.exists():
            write_adapter(case.checkpoint, adapter, case.lora)
        options += ["--adapter", str(adapter)]
    output = scratch / "bundle"
    command = convert_command(case.checkpoint, "--quant", case.quant, "--search", search, *options, "-o", str(output))
    drop_page_cache(files)
    storage = storage_rate(max(files, key=lambda file: file.stat().st_size))
    drop_page_cache(files)
    usage = run_child(command, scratch / "log.txt")
    kept, size = kept_bytes(case.checkpoint, output), tree_bytes(output)
    shutil.rmtree(output)
    return Outcome(case, (usage,), kept, size, storage)


def kept_bytes(checkpoint: Path, bundle: Path) -> int:
    """The bytes in the checkpoint of the parameters that the bundle keeps: of each group, at its mean bytes of one."""
    groups = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["groups"]
    kept: dict[str, int] = {name: group["parameters"] for name, group in groups.items()}
    with open_checkpoint(checkpoint) as opened:
        per_parameter = {group.name: group.stored_bytes / max(1, group.parameters) for group in opened.groups}
    return round(sum(count * per_parameter[name] for name, count in kept.items()))


def storage_rate(path: Path, readers: int = 2) -> float:
    """The bytes per second at which some threads read a file's first GiB in pieces of 1 MiB, without the page cache."""
    size = min(_STORAGE_BYTES, path.stat().st_size // _PIECE_BYTES * _PIECE_BYTES)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(offset: int) -> int:
        with mmap.mmap(-1, _PIECE_BYTES) as page_aligned:
            return os.preadv(fd, [page_aligned], offset)

    with open(fd, "rb", buffering=0), ThreadPoolExecutor(readers) as pool:
        started = time.perf_counter()
        read_bytes = sum(pool.map(read, range(0, size, _PIECE_BYTES)))
        return read_bytes / (time.perf_counter() - started)


def measured(outcome: Outcome, search: str) -> Measured:
    """One case's runs as a record; every run has the rate of the storage alone."""
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
        {"recipe": case.quant, "search": search} | ({} if case.lora is None else {"lora_rank": str(case.lora)}),
        start="cold",
    )


def table(outcomes: Sequence[Outcome], search: str, baseline: str | None = None) -> str:
    """Median, and from least to most; with a `baseline`, seconds and processor seconds as ratios to that case's."""
    base = next((outcome for outcome in outcomes if outcome.case.name == baseline), None)
    rows = []
    for outcome in outcomes:
        seconds, cpu = _seconds(outcome)
        memory = text(summary([run.peak_rss_bytes for run in outcome.runs]), ".0f", 1e-6)
        rate = f"{outcome.kept_bytes / seconds.median / 1e6:.0f}"
        storage = f"{outcome.storage_bytes_per_s / 1e6:.0f}"
        sizes = f"{outcome.kept_bytes / 1e9:.2f}", f"{outcome.output_bytes / 1e9:.2f}"
        cells = [text(seconds, ".0f"), text(cpu, ".0f"), rate, storage, memory]
        if base is not None:
            bases = _seconds(base)
            cells.append(f"{seconds.median / bases[0].median:.2f}, {cpu.median / bases[1].median:.2f}")
        rows.append([outcome.case.name, outcome.case.quant, search, *sizes, *cells])
    header = ["size", "recipe", "scales", "kept, GB", "bundle, GB", "seconds", "CPU seconds", "MB/s", "storage, MB/s"]
    header += ["peak RSS, MB"] + ([] if base is None else [f"x {baseline}: seconds, CPU seconds"])
    return markdown(header, rows)


def _seconds(outcome: Outcome) -> tuple[Summary, Summary]:
    """By the clock, and of the processors."""
    return summary([run.seconds for run in outcome.runs]), summary([run.cpu_seconds for run in outcome.runs])


def parse_case(argument: str) -> Case:
    """Parse NAME=CHECKPOINT, with :SIZE or ,RECIPE after it or both; without a recipe, it is that of --quant.

    >>> parse_case("e2b=.:E2B,int8").size, parse_case("e2b=.:E2B,int8").quant
    ('E2B', 'int8')
    """
    name, separator, rest = argument.partition("=")
    place, _, quant = rest.partition(",")
    path, _, size = place.partition(":")
    if not separator or not name or not Path(path).is_dir():
        wanted = "NAME=CHECKPOINT[:SIZE][,RECIPE], a directory that exists"
        raise argparse.ArgumentTypeError(f"found {argument!r}, wanted {wanted}")
    return Case(name, Path(path).resolve(), size or None, quant)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_convert_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="+", type=parse_case, metavar="NAME=CHECKPOINT[:SIZE][,RECIPE]")
    parser.add_argument("--quant", default="int4", help="recipe of cases that name none (default: %(default)s)")
    parser.add_argument("--baseline", metavar="NAME", help="compare the other cases with this one")
    parser.add_argument("--search", choices=("absmax", "mse"), default="mse", help="default: %(default)s")
    parser.add_argument("--lora", type=int, metavar="RANK", help="also merge a random LoRA adapter of this rank")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="where bundles are written and removed; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS / "convert_size.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("convert_size")
    variants = []
    for case in options.cases:
        named = replace(case, quant=case.quant or options.quant)
        variants.append(named)
        if options.lora is not None:
            variants.append(replace(named, name=f"{case.name} + LoRA {options.lora}", lora=options.lora))
    with TemporaryDirectory(dir=options.scratch, prefix="bench_convert_size.") as scratch:
        outcomes = measure(variants, options.search, options.repeats, Path(scratch))
    for outcome in outcomes:
        recorder.append(options.output, measured(outcome, options.search))
    print(f"\n{this_device()}\nload average before: {recorder.load_before:.2f}\n")
    print(table(outcomes, options.search, options.baseline))


if __name__ == "__main__":
    main()
