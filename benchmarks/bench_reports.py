"""Measures `report` and `compare` with very many records: processor time, memory, and the size of the page.

    python -m benchmarks.bench_reports --records 10000

The records are those of the tests' fixture with other figures, all of a few configurations (`alike`), or of another
model every eight records (`distinct`). As a peer, Python's own `json` parses the same lines.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "results.jsonl"
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


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds of processor time, and peak memory in MB of 10**6 bytes, of a command in its own process."""
    code = f"import os, subprocess, sys; sys.exit(subprocess.call({command!r}, stdout=subprocess.DEVNULL))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    count = parser.parse_args().records
    print("| records | work | processor time | times json's | page |\n|---|---|--:|--:|--:|")
    for kind in ("alike", "distinct"):
        with tempfile.TemporaryDirectory() as folder:
            base, new, page = Path(folder, "base.jsonl"), Path(folder, "new.jsonl"), Path(folder, "page.html")
            for path, seed in ((base, 0), (new, 1)):
                write_records(path, count // 2, distinct=kind == "distinct", seed=seed)
            files = [str(base), str(new)]
            tool = [sys.executable, "-m", "gemma_edge", "--no-progress"]
            peer, _ = measured([sys.executable, "-c", _PEER, *files])
            for name, command in (
                ("report", [*tool, "report", *files, "-o", str(page)]),
                ("compare", [*tool, "compare", *files]),
            ):
                seconds, _ = measured(command)
                size = f"{page.stat().st_size / 1e6:.2f} MB" if name == "report" else ""
                print(f"| {count:,} {kind} | {name} | {seconds:.1f} s | {seconds / peer:.1f} | {size} |", flush=True)


if __name__ == "__main__":
    main()
