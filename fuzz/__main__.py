"""Fuzz one target, guided by coverage: `python -m fuzz manifest --seconds 600`. Needs atheris (pip install atheris).

New inputs are added to a folder of their own; what is worth keeping is copied into fuzz/corpus by hand. A find is
written there as `crash-...`, with its traceback on standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["toolkit", "converters", "device_harness"]):
    from fuzz.targets import TARGETS, target

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Run libFuzzer, which ends the process."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=[item.name for item in TARGETS])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="the folder for new inputs")
    arguments = parser.parse_args()
    chosen = target(arguments.target)
    folder = arguments.found / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    seeds = chosen.seeds()
    for i, seed in enumerate(seeds):
        (folder / f"seed-{i}").write_bytes(seed)
    kept = CORPUS / chosen.name
    options = [
        f"-max_total_time={arguments.seconds}", "-rss_limit_mb=2048", "-timeout=30", "-print_final_stats=1",
        f"-max_len={max(map(len, seeds)) + 4096}", f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(folder), *([str(kept)] if kept.is_dir() else [])], chosen.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
