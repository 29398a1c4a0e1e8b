"""Runs one conversation of random tokens in our own session, in its own process; prints one JSON object.

`python -m benchmarks.session_run BUNDLE --prompt 512 --decode 128 --cache DIR`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from toolkit.bundle.tokenizer import Tokenizer
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.memory import StagePeaks
from toolkit.runtime.ple_lookup import DEFAULT_CACHE_BYTES
from toolkit.runtime.session import Session, SessionSettings, default_threads

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What to run; every token is random, so that nearly every PLE row is a new one."""

    bundle: Path
    prompt: int
    decode: int
    cache: Path
    skip: int = 0
    """Positions before the prompt that are only marked as filled: their keys and values are all the same number."""
    size: str | None = None
    threads: int = field(default_factory=default_threads)
    ple: str = "flash"
    ple_cache_mb: int = DEFAULT_CACHE_BYTES >> 20
    tokenizer: Path | None = None
    """A tokenizer.json to keep in memory, as `gemma-edge run` keeps the bundle's own."""

    def command(self) -> list[str]:
        """The command line of its process, which runs in another directory: its paths are absolute."""
        flags = ["--prompt", self.prompt, "--decode", self.decode, "--cache", self.cache.resolve()]
        flags += ["--threads", self.threads]
        flags += ["--ple", self.ple, "--ple-cache-mb", self.ple_cache_mb, "--skip", self.skip]
        flags += ["--size", self.size] if self.size else []
        flags += ["--tokenizer", self.tokenizer.resolve()] if self.tokenizer else []
        return [sys.executable, "-m", "benchmarks.session_run", str(self.bundle.resolve()), *map(str, flags)]


@dataclass(frozen=True, slots=True)
class SessionRun:
    """The times of one process, and its memory after each stage (toolkit/runtime/memory.py)."""

    size: str
    load_seconds: float
    prefill_tokens_per_s: float | None
    first_step_ms: float
    """The first step after the prompt, which prepares its signature."""
    decode_step_ms: float
    """Median over the steps."""
    decode_tokens_per_s: float
    """Over all steps, including the first and slowest."""
    peaks: dict[str, int]
    memory: dict[str, dict[str, object]]
    ple: dict[str, int]
    """The counts of the decode steps alone."""


def run_session(request: SessionRequest) -> SessionRun:
    """Run it in this process."""
    peaks = StagePeaks()
    memory: dict[str, dict[str, object]] = {}
    tokenizer = request.tokenizer and Tokenizer(request.tokenizer)
    started = time.perf_counter()
    settings = SessionSettings(
        size=request.size,
        threads=request.threads,
        weight_cache=request.cache,
        ple_in_ram=request.ple == "ram",
        ple_cache_bytes=request.ple_cache_mb << 20,
    )
    with Session(Bundle(request.bundle), settings) as session:

        def end(stage: str) -> None:
            peaks.end(stage)
            memory[stage] = session.memory().to_json()

        loaded = time.perf_counter()
        end("load")
        ids = np.random.default_rng(0).integers(0, session.text.ple_vocab_size, request.prompt + request.decode)
        prompt, decoded = ids[: request.prompt].tolist(), ids[request.prompt :].tolist()
        if request.skip:
            session._ids.extend([0] * request.skip)
            # Pages that were never written take no memory yet, and no time to read.
            for buffer in session._caches.buffers.values():
                buffer.write(np.full(buffer.info.shape, 2**-10, np.float32))
        begun = time.perf_counter()
        session.prefill(prompt)
        prefilled = time.perf_counter() - begun
        end("prefill")
        before = session.ple.statistics.to_json()
        steps = []
        for token in decoded:
            begun = time.perf_counter()
            session.decode(token)
            steps.append(time.perf_counter() - begun)
        end("decode")
        after = session.ple.statistics.to_json()
        del tokenizer
        return SessionRun(
            size=session.size,
            load_seconds=loaded - started,
            prefill_tokens_per_s=request.prompt / prefilled if request.prompt else None,
            first_step_ms=steps[0] * 1e3,
            decode_step_ms=statistics.median(steps) * 1e3,
            decode_tokens_per_s=len(steps) / sum(steps),
            peaks=peaks.stages,
            memory=memory,
            ple={name: count - (before[name] or 0) for name, count in after.items() if count is not None},
        )


def run_child(request: SessionRequest, entering: Sequence[str] = ()) -> SessionRun:
    """Run it as a separate process, with `entering` before its command. SystemExit with its last output if it fails."""
    done = subprocess.run([*entering, *request.command()], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: {' '.join(request.command())}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return SessionRun(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.session_run", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--decode", type=int, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--size")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--ple", choices=("flash", "ram"), default="flash")
    parser.add_argument("--ple-cache-mb", type=int, default=DEFAULT_CACHE_BYTES >> 20)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to hold in memory")
    options = parser.parse_args(arguments)
    print(json.dumps(asdict(run_session(SessionRequest(**vars(options))))))


if __name__ == "__main__":
    main()
