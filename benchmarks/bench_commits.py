"""Prefill and decode of this commit beside an earlier one, in turns of a few tokens.

Both processes are open at the same time, each with the code and the bundle of its commit and its own packed weights.
They take turns, first the one and then the other: what else the machine does slows both alike, so that a difference of
one per cent shows. Prints medians and their ratio, and appends a record for each.

  git worktree add --detach earlier COMMIT
  (cd earlier && python -m gemma_edge convert CHECKPOINT -o ../earlier-bundle --quant int4)
  python -m benchmarks.bench_commits bundle --earlier earlier-bundle --earlier-checkout earlier --rounds 30
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, this_device
from toolkit.base.processors import usable_processors
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures
from toolkit.results.statistics import summary

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("session_turns.py")
NOW, EARLIER = "gemma-edge", "gemma-edge before"
TESTS: dict[str, FigureName] = {
    "prefill": "prefill_s",
    "prefill_cpu": "prefill_cpu_s",
    "decode": "decode_s",
    "decode_cpu": "decode_cpu_s",
}


@dataclass(frozen=True, slots=True)
class Contender:
    """A bundle, and the checkout whose code runs it."""

    name: str
    bundle: Path
    checkout: Path

    @property
    def commit(self) -> str:
        """Its checkout's."""
        command = ["git", "-C", str(self.checkout), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def start(self, cache: Path, threads: int) -> subprocess.Popen[str]:
        """A process that takes a turn for each line: this checkout's script with the code of its own."""
        command = [sys.executable, str(SCRIPT), str(self.bundle), str(cache), str(threads)]
        code = os.environ | {"PYTHONPATH": str(self.checkout)}
        return subprocess.Popen(command, env=code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure(contenders: Sequence[Contender], options: argparse.Namespace) -> list[list[Figures]]:
    """Of each contender, the figures of each round; the first round prepares the signatures and is not counted."""
    found: list[list[Figures]] = [[] for _ in contenders]
    with TemporaryDirectory(dir=options.scratch, prefix="bench_commits.") as scratch, ExitStack() as stack:
        caches = [Path(scratch, str(number)).resolve() for number in range(len(contenders))]
        for cache in caches:
            cache.mkdir()
        pairs = zip(contenders, caches, strict=True)
        processes = [stack.enter_context(one.start(cache, options.threads)) for one, cache in pairs]
        for turn in range(options.rounds + 1):
            order = range(len(processes))
            for number in order if turn % 2 else reversed(order):
                figures = _turn(processes[number], f"{options.prompt} {options.decode}")
                if turn:
                    found[number].append(figures)
        for process in processes:
            process.communicate("")
    return found


def _turn(process: subprocess.Popen[str], line: str) -> Figures:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        sys.exit(f"error: {SCRIPT.name}: exit code {process.wait()}")
    figures: Figures = json.loads(answer)
    return figures


def table(found: Sequence[list[Figures]]) -> str:
    """Medians in seconds, and the median of the rounds' ratios with its quartiles."""
    now, before = found
    rows = []
    for name, figure in TESTS.items():
        medians = [summary([run[figure] for run in runs]).median for runs in (now, before)]
        ratios = [one[figure] / other[figure] for one, other in zip(now, before, strict=True)]
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        rows.append([f"{name}, s", *(f"{value:.3f}" for value in medians), f"{middle:.3f} ({low:.3f} to {high:.3f})"])
    return markdown(["", NOW, EARLIER, "ratio of a round: median (quartiles)"], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_commits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="written by this commit")
    parser.add_argument(
        "--earlier", type=Path, required=True, help="a bundle of the same checkpoint, written by the earlier commit"
    )
    parser.add_argument("--earlier-checkout", type=Path, required=True, help="where the earlier commit is checked out")
    numbers = {"prompt": 128, "decode": 8, "threads": usable_processors(), "rounds": 20}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="where packed weights are written and removed")
    parser.add_argument("--output", type=Path, default=RESULTS / "commits.jsonl", help="default: %(default)s")
    options = parser.parse_args()
    contenders = (
        Contender(NOW, options.bundle.resolve(), ROOT),
        Contender(EARLIER, options.earlier.resolve(), options.earlier_checkout.resolve()),
    )
    recorder = Recorder("commits")
    found = measure(contenders, options)
    for contender, runs in zip(contenders, found, strict=True):
        named = {"system": contender.name, "prompt": str(options.prompt), "decode": str(options.decode)}
        measured = Measured(
            model_record(contender.bundle, contender.bundle.name), TESTS, runs, named, threads=options.threads
        )
        recorder.append(options.output, measured, {"gemma-edge commit": contender.commit})
    print(f"{this_device()}\nload average before: {recorder.load_before:.2f}\n\n{table(found)}")


if __name__ == "__main__":
    main()
