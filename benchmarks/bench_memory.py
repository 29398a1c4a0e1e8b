"""Measures the memory of a running bundle: by kind, at its peak and at the end, with and without a memory limit.

Each run is a separate process, watched from outside. Before every run, the pages of the bundle and of its packed
weights are dropped from the kernel's cache, so that a limit counts everything that the run reads. The runs take turns:

  python -m benchmarks.bench_memory BUNDLE --prompt 3968 --decode 128 --limit 3GB
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, this_device
from benchmarks.session_run import ROOT, SessionRequest, SessionRun, run_child
from device_harness.emulator.memory import MemoryLimit
from toolkit.base.errors import EnvironmentFault
from toolkit.base.procfs import parse_status
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures
from toolkit.runtime.memory import page_cache_bytes

_SAMPLE_SECONDS = 0.01
_KINDS = ("rss_bytes", "rss_anonymous_bytes", "rss_file_bytes", "rss_shmem_bytes")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the bundle."""

    name: str
    request: SessionRequest
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run; `run` is None if the kernel ended it for exceeding the limit."""

    contender: Contender
    run: SessionRun | None
    peak: dict[str, int]
    """The most bytes of each kind that were seen; kinds may have had their peaks at different times."""
    group_peak_bytes: int | None
    """The most bytes that the control group was charged with."""


def measure(contender: Contender) -> Outcome:
    """One run with cold files."""
    request = contender.request
    drop_page_cache([*request.bundle.iterdir(), *request.cache.glob("*.xnnpack")])
    with _limit(contender.limit_bytes) as limit:
        command = [*(limit.entering() if limit else ()), *request.command()]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as child, _watch(child.pid) as peak:  # fmt: skip
            out, errors = child.communicate()
        charged = limit.peak_bytes() if limit else None
    if child.returncode and not (limit and child.returncode in (-9, 137)):
        sys.exit(f"error: {' '.join(command)}: exit code {child.returncode}\n{errors[-2000:]}")
    run = None if child.returncode else SessionRun(**json.loads(out.splitlines()[-1]))
    return Outcome(contender, run, peak, charged)


def drop_page_cache(paths: Sequence[Path]) -> None:
    """Dirty and mapped pages stay whatever one asks, so files are synchronised first, and the result is looked at."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if kept := page_cache_bytes(path):
            print(f"warning: {path}: {kept} bytes stay in the page cache", file=sys.stderr)


@contextmanager
def _limit(limit_bytes: int | None) -> Iterator[MemoryLimit | None]:
    if limit_bytes is None:
        yield None
        return
    limit = MemoryLimit(limit_bytes)
    try:
        yield limit
    finally:
        limit.close()


@contextmanager
def _watch(pid: int) -> Iterator[dict[str, int]]:
    """Yield the most of each kind of memory so far, sampled a hundred times a second."""
    peak = dict.fromkeys(_KINDS, 0)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                status = parse_status(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
                for kind in _KINDS:
                    peak[kind] = max(peak[kind], getattr(status, kind) or 0)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def measured(outcome: Outcome, bundle: str) -> Measured:
    """One run as a record: its memory at the end and at its peak; a run that was killed has only the peak."""
    request = outcome.contender.request
    figures: Figures = {"peak_rss_bytes": outcome.peak["rss_bytes"]}
    if outcome.group_peak_bytes is not None:
        figures["group_peak_bytes"] = outcome.group_peak_bytes
    if outcome.run is not None:
        figures |= _held(outcome.run)
    conditions = {
        "run": outcome.contender.name,
        "skip": str(request.skip),
        "prompt": str(request.prompt),
        "generated": str(request.decode),
        "ple": request.ple,
        "tokenizer_bytes": str(request.tokenizer.stat().st_size if request.tokenizer else 0),
    }
    tests: dict[str, FigureName] = {
        "peak": "peak_rss_bytes",
        "end": "rss_bytes",
        "end_anonymous": "anonymous_bytes",
        "end_file": "file_bytes",
        "end_ple": "ple_resident_bytes",
        "end_effective": "effective_bytes",
        f"tg{request.decode}": "decode_tokens_per_s",
    }
    return Measured(
        model_record(request.bundle, bundle, size=request.size),
        {test: figure for test, figure in tests.items() if figure in figures},
        [figures],
        conditions,
        start="cold",
        threads=request.threads,
        is_whole=outcome.run is not None,
    )


def _held(run: SessionRun) -> Figures:
    """The memory after the last token, and at the peak of each stage."""
    end: dict[str, Any] = run.memory["decode"]
    return {
        "init_s": run.load_seconds,
        "decode_tokens_per_s": run.decode_tokens_per_s,
        "rss_bytes": end["rss_bytes"],
        "anonymous_bytes": end["rss_anonymous_bytes"],
        "file_bytes": end["rss_file_bytes"],
        "ple_resident_bytes": end["groups"]["per_layer_embedding"]["resident_bytes"],
        "effective_bytes": end["effective_bytes"],
        "load_peak_bytes": run.peaks["load"],
        "prefill_peak_bytes": run.peaks["prefill"],
        "decode_peak_bytes": run.peaks["decode"],
    }


def table(outcomes: Sequence[Outcome]) -> str:
    """A table in MB; all columns except the peak are of the end of the run."""
    rows = []
    for outcome in outcomes:
        peak, name = f"{outcome.peak['rss_bytes'] / 1e6:.0f}", outcome.contender.name
        if outcome.run is None:
            rows.append([name, peak, *["-"] * 5, "killed"])
            continue
        end = outcome.run.memory["decode"]
        ple = end["groups"]["per_layer_embedding"]["resident_bytes"]  # type: ignore[index]
        kinds = [end["rss_anonymous_bytes"], end["rss_file_bytes"], ple, end["effective_bytes"]]
        cells = [f"{value / 1e6:.0f}" for value in kinds]
        rows.append([name, peak, *cells, f"{outcome.run.decode_tokens_per_s:.1f}", "completed"])
    header = ["run", "peak RSS", "anonymous", "files", "PLE", "effective", "decode, tokens/s", ""]
    return markdown(header, rows)


def parse_bytes(argument: str) -> int:
    """
    >>> parse_bytes("3GB"), parse_bytes("256MB")
    (3000000000, 256000000)
    """
    match = re.fullmatch(r"([0-9.]+)(MB|GB)", argument)
    if match is None:
        raise argparse.ArgumentTypeError(f"found {argument!r}, wanted a size like 3GB")
    return int(float(match[1]) * {"MB": 10**6, "GB": 10**9}[match[2]])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--name", help="of the bundle in the results (default: its directory's)")
    parser.add_argument("--prompt", type=int, default=3968, help="default: %(default)s")
    parser.add_argument("--skip", type=int, default=0, help="positions before it that only count as filled")
    parser.add_argument("--decode", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--limit", type=parse_bytes, default="3GB", help="of the limited run (default: %(default)s)")
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer.json to hold in memory too: that of a synthetic checkpoint is small"
    )
    parser.add_argument("--cache", type=Path, help="for packed weights (default: a temporary one)")
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("memory")
    with TemporaryDirectory(prefix="bench_memory.") as scratch:
        cache = options.cache or Path(scratch)
        request = SessionRequest(
            options.bundle.resolve(),
            options.prompt,
            options.decode,
            cache,
            skip=options.skip,
            tokenizer=options.tokenizer,
        )
        run_child(replace(request, prompt=1, decode=1))  # packs the weights, as the first run of a bundle does
        limited = f"{options.limit / 1e9:g} GB limit"
        contenders = [
            Contender("free", request),
            Contender(limited, request, options.limit),
            Contender("PLE in RAM", replace(request, ple="ram")),
            Contender(f"PLE in RAM, {limited}", replace(request, ple="ram"), options.limit),
        ]
        outcomes = []
        for contender in contenders:
            try:
                outcomes.append(measure(contender))
            except EnvironmentFault as error:
                print(f"skipped: {contender.name}: {error}", file=sys.stderr)
                continue
            recorder.append(options.output, measured(outcomes[-1], options.name or options.bundle.name))
    print(f"\n{this_device()}\n{options.prompt} + {options.decode} tokens, MB\n\n{table(outcomes)}")


if __name__ == "__main__":
    main()
