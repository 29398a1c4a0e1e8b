"""Runs LiteRT-LM's own benchmark once, in its own process; prints one JSON object.

`python -m benchmarks.engine_run FILE.litertlm --prefill 512 --decode 128 --threads 2 --context 4096 --cache DIR`
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What every runtime is asked to do; `cache` keeps packed weights between runs, if the runtime packs any."""

    prefill: int
    decode: int
    threads: int
    context: int
    cache: Path


@dataclass(frozen=True, slots=True)
class EngineRun:
    """The figures of one session as the runtime reports them, and the peak memory of this process (ru_maxrss)."""

    init_seconds: float
    time_to_first_token_seconds: float
    prefill_tokens: int
    prefill_tokens_per_s: float
    decode_tokens: int
    decode_tokens_per_s: float
    peak_rss_bytes: int


def run_engine(path: Path, options: RunOptions) -> EngineRun:
    """Prefill and decode tokens on the CPU; the context is the file's own."""
    import litert_lm

    benchmark = litert_lm.Benchmark(
        model_path=str(path),
        backend=litert_lm.Backend.CPU(thread_count=options.threads),
        prefill_tokens=options.prefill,
        decode_tokens=options.decode,
        cache_dir=str(options.cache),
    )
    info = benchmark.run()
    return EngineRun(
        init_seconds=info.init_time_in_second,
        time_to_first_token_seconds=info.time_to_first_token_in_second,
        prefill_tokens=info.last_prefill_token_count,
        prefill_tokens_per_s=info.last_prefill_tokens_per_second,
        decode_tokens=info.last_decode_token_count,
        decode_tokens_per_s=info.last_decode_tokens_per_second,
        peak_rss_bytes=peak_rss_bytes(),
    )


def peak_rss_bytes() -> int:
    """The peak memory of this process, including mapped file pages."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parse_options(script: str, arguments: Sequence[str] | None) -> tuple[Path, RunOptions]:
    """The command line of a script that makes one run."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{script}")
    parser.add_argument("file", type=Path)
    for name in ("prefill", "decode", "threads", "context"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    options = vars(parser.parse_args(arguments))
    return options.pop("file"), RunOptions(**options)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    path, options = parse_options("engine_run", arguments)
    print(json.dumps(asdict(run_engine(path, options))))


if __name__ == "__main__":
    main()
