"""Prefill and decode rates of .litertlm files in LiteRT-LM's engine, side by side with a peer's files in the same run.

Each run is a process of its own with the engine's own BenchmarkInfo. Files take turns (A B A B), after one run of each
that builds its weight cache and is not counted. Bundles and peers with the same name are compared:

  python -m benchmarks.bench_decode --bundle int8=ours.litertlm --peer-bundle int8=theirs.litertlm
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.engine_run import EngineRun
from benchmarks.measure import RESULTS, Summary, append_result, load_average, markdown, summary, text, this_device

OURS, PEER = "gemma-edge", "litert-torch"


@dataclass(frozen=True, slots=True)
class Entrant:
    """A file under a recipe's name, ours or the peer's."""

    system: str
    recipe: str
    path: Path


@dataclass(frozen=True, slots=True)
class Load:
    """What every run does."""

    prefill: int
    decode: int
    threads: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """An entrant's runs; `first` built the weight cache."""

    entrant: Entrant
    first: EngineRun
    runs: tuple[EngineRun, ...]

    def prefill(self) -> Summary:
        """Tokens per second."""
        return summary([run.prefill_tokens_per_s for run in self.runs])

    def decode(self) -> Summary:
        """Tokens per second."""
        return summary([run.decode_tokens_per_s for run in self.runs])

    def peak_rss_bytes(self) -> Summary:
        """Of the engine's process, mapped file pages included."""
        return summary([run.peak_rss_bytes for run in self.runs])


def measure(entrants: Sequence[Entrant], load: Load, cache: Path) -> list[Outcome]:
    """One run of each that is not counted, then rounds of one run each."""
    caches = [cache / str(number) for number in range(len(entrants))]
    for directory in caches:
        directory.mkdir()
    first = [_run(entrant, load, directory) for entrant, directory in zip(entrants, caches, strict=True)]
    runs: list[list[EngineRun]] = [[] for _ in entrants]
    for _ in range(load.repeats):
        for number, entrant in enumerate(entrants):
            run = _run(entrant, load, caches[number])
            runs[number].append(run)
            rates = f"{run.prefill_tokens_per_s:.1f} prefill, {run.decode_tokens_per_s:.1f} decode tokens/s"
            print(f"{entrant.system} {entrant.recipe}: {rates}", flush=True)
    return [Outcome(e, f, tuple(r)) for e, f, r in zip(entrants, first, runs, strict=True)]


def _run(entrant: Entrant, load: Load, cache: Path) -> EngineRun:
    options = {"prefill": load.prefill, "decode": load.decode, "threads": load.threads, "cache": cache}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.engine_run", str(entrant.path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        sys.exit(f"error: {entrant.path}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return EngineRun(**json.loads(done.stdout.splitlines()[-1]))


def record(outcome: Outcome, load: Load, load_before: float, path: Path) -> None:
    """Append one entrant's runs to the results."""
    fields = {
        "system": outcome.entrant.system,
        "recipe": outcome.entrant.recipe,
        "file_bytes": outcome.entrant.path.stat().st_size,
        "engine": "LiteRT-LM, CPU",
        "load": asdict(load),
        "load_average_before": load_before,
        "first_init_seconds": outcome.first.init_seconds,
        "init_seconds": asdict(summary([run.init_seconds for run in outcome.runs])),
        "prefill_tokens_per_s": asdict(outcome.prefill()),
        "decode_tokens_per_s": asdict(outcome.decode()),
        "time_to_first_token_seconds": asdict(summary([run.time_to_first_token_seconds for run in outcome.runs])),
        "peak_rss_bytes": asdict(outcome.peak_rss_bytes()),
    }
    append_result(path, "decode", fields)


def table(outcomes: Sequence[Outcome]) -> str:
    """Median, and from least to most; for ours also the ratio of the medians to the peer's."""
    peers = {o.entrant.recipe: o for o in outcomes if o.entrant.system == PEER}
    rows = []
    for outcome in outcomes:
        entrant = outcome.entrant
        peer = peers.get(entrant.recipe) if entrant.system == OURS else None
        prefill, decode = text(outcome.prefill(), ".0f"), text(outcome.decode(), ".1f")
        if peer is not None:
            prefill += f", {outcome.prefill().median / peer.prefill().median:.2f} x"
            decode += f", {outcome.decode().median / peer.decode().median:.2f} x"
        sizes = f"{entrant.path.stat().st_size / 1e6:.0f}", text(outcome.peak_rss_bytes(), ".0f", 1e-6)
        rows.append([entrant.recipe, entrant.system, prefill, decode, *sizes])
    header = ["recipe", "made by", "prefill, tokens/s", "decode, tokens/s", "file, MB", "peak RSS, MB"]
    return markdown(header, rows)


def _named_file(argument: str) -> tuple[str, Path]:
    name, separator, path = argument.partition("=")
    if not separator or not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"found {argument!r}, wanted RECIPE=FILE with a file that exists")
    return name, Path(path).resolve()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, whose in (("--bundle", "ours"), ("--peer-bundle", "the peer's")):
        about = f"a .litertlm of {whose}; may be repeated"
        parser.add_argument(flag, action="append", default=[], type=_named_file, metavar="RECIPE=FILE", help=about)
    parser.add_argument("--prefill", type=int, default=512, help="prompt length (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=128, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="counted runs of each file (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "decode.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    load = Load(options.prefill, options.decode, options.threads, options.repeats)
    entrants = [Entrant(OURS, name, path) for name, path in options.bundle]
    entrants += [Entrant(PEER, name, path) for name, path in options.peer_bundle]
    if not entrants:
        parser.error("no file: give --bundle RECIPE=FILE")
    load_before = load_average()
    with TemporaryDirectory(prefix="bench_decode.") as cache:
        outcomes = measure(entrants, load, Path(cache))
    for outcome in outcomes:
        record(outcome, load, load_before, options.output)
    print(f"\n{this_device()}\n{load}\nload average before: {load_before:.2f}\n\n{table(outcomes)}")


if __name__ == "__main__":
    main()
