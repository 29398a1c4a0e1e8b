"""Fuzz one target, guided by coverage: `python -m fuzz manifest --seconds 600`. Needs atheris (pip install atheris).

New inputs are written to a separate folder; those worth keeping are copied into fuzz/corpus by hand. A find is written
there as `crash-...`, with its traceback on standard error. All times are processor times, with those of child
processes, so that other work on the machine makes a run longer but not less thorough.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import atheris

with atheris.instrument_imports(include=["toolkit", "converters", "device_harness"]):
    from fuzz.native_targets import NATIVE_TARGETS
    from fuzz.target import CORPUS
    from fuzz.targets import TARGETS, target

_RUN_S = 30.0
"""A single input that takes longer is a find."""
_STUCK_S = 3600
"""The limit in real time, for code that never returns to Python; it is long, because it goes on while stopped."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took over {_RUN_S:.0f} s")


def main() -> None:
    """Run libFuzzer, which ends the process when it is done."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=[item.name for item in (*TARGETS, *NATIVE_TARGETS)])
    parser.add_argument("--seconds", type=int, default=60, help="processor time (60)")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="the folder for new inputs")
    arguments = parser.parse_args()
    folder = arguments.found / arguments.target
    for native in NATIVE_TARGETS:
        if native.name == arguments.target:
            sys.exit(native.fuzz(arguments.seconds, folder))
    chosen = target(arguments.target)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = chosen.seeds()
    for i, seed in enumerate(seeds):
        (folder / f"seed-{i}").write_bytes(seed)
    kept = CORPUS / chosen.name
    options = [
        "-rss_limit_mb=2048", f"-timeout={_STUCK_S}", "-print_final_stats=1",
        f"-max_len={max(map(len, seeds)) + 4096}", f"-artifact_prefix={folder}/",
        "-len_control=0", "-keep_seed=1",  # else short inputs, where a child does the reading and no seed is new
    ]  # fmt: skip

    def run(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, _RUN_S)
        chosen.run(data)
        if sum(os.times()[:4]) > arguments.seconds:
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer ends, and prints its figures

    atheris.Setup([sys.argv[0], *options, str(folder), *([str(kept)] if kept.is_dir() else [])], run)
    signal.signal(signal.SIGVTALRM, _too_long)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
