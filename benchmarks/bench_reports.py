"""Measures `report` and `compare` with very many records: processor time, memory, and the size of the page.

    python -m benchmarks.bench_reports --records 10000

The records are those of the tests' fixture with other figures, all of a few configurations (`alike`), or of another
model every eight records (`distinct`). As a peer, Python's own `json` parses the same lines. Each is a process of its
own; they take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import ChildUsage, run_child, text, this_device
from toolkit.report.tables import markdown
from toolkit.results.statistics import summary

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "results.jsonl"
PAGE = "page.html"
_PEER = "import json, sys; [json.loads(line) for path in sys.argv[1:] for line in open(path)]"


def write_records(path: Path, count: int, *, distinct: bool, seed: int) -> None:
    """Write a results file; `seed`: for the figures, which differ from the fixture's by up to a tenth."""
    choice = random.Random(seed)
    lines = FIXTURE.read_text().splitlines()
    with open(path, "w") as file:
        for number in range(count):
            record = json.loads(lines[number % len(lines)])
            if distinct:
                record["model"]["name"] = f"model-{number // len(lines)}"
            for iteration in record["iterations"]:
                for name, value in iteration["figures"].items():
                    if isinstance(value, float):
                        iteration["figures"][name] = value * choice.uniform(0.9, 1.1)
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def commands(folder: Path) -> dict[str, list[str]]:
    """What is measured, by name: first the peer, then the verbs with both files of records in `folder`."""
    files = [str(folder / "base.jsonl"), str(folder / "new.jsonl")]
    tool = [sys.executable, "-m", "gemma_edge", "--no-progress"]
    return {
        "json": [sys.executable, "-c", _PEER, *files],
        "report": [*tool, "report", *files, "-o", str(folder / PAGE)],
        "compare": [*tool, "compare", *files],
    }


def rows(start: str, found: Mapping[str, Sequence[ChildUsage]], page_bytes: int) -> list[list[str]]:
    """A row for each command: processor time, its ratio to the peer's in the same round, peak memory, the page."""
    result = []
    for name, runs in found.items():
        seconds, peaks = [run.cpu_seconds for run in runs], [run.peak_rss_bytes for run in runs]
        ratios = [run.cpu_seconds / peer.cpu_seconds for run, peer in zip(runs, found["json"], strict=True)]
        cells = [text(summary(seconds), ".1f"), text(summary(ratios), ".1f"), text(summary(peaks), ".0f", 1e-6)]
        result.append([start, name, *cells, f"{page_bytes / 1e6:.2f}" if name == "report" else ""])
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_reports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args(arguments)
    table = []
    for kind in ("alike", "distinct"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for seed, file in enumerate(("base.jsonl", "new.jsonl")):
                write_records(folder / file, options.records // 2, distinct=kind == "distinct", seed=seed)
            found: dict[str, list[ChildUsage]] = {}
            for _ in range(options.rounds):
                for work, command in commands(folder).items():
                    found.setdefault(work, []).append(run_child(command, folder / "log.txt"))
            table += rows(f"{options.records:,} {kind}", found, (folder / PAGE).stat().st_size)
    print(f"{this_device()}\nmedians of {options.rounds} (least to most)\n")
    heads = ["records", "work", "processor time, s", "times json's", "peak RSS, MB", "page, MB"]
    print(markdown(heads, table))


if __name__ == "__main__":
    main()
