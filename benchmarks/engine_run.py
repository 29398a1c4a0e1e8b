"""One run of LiteRT-LM's own benchmark, in a process of its own; prints one JSON object.

`python -m benchmarks.engine_run FILE.litertlm --prefill 512 --decode 128 --threads 2 --cache DIR`
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What the engine's BenchmarkInfo says of one session, and the peak of this process (ru_maxrss)."""

    init_seconds: float
    time_to_first_token_seconds: float
    prefill_tokens: int
    prefill_tokens_per_s: float
    decode_tokens: int
    decode_tokens_per_s: float
    peak_rss_bytes: int


def run_engine(path: Path, *, prefill: int, decode: int, threads: int, cache: Path) -> EngineRun:
    """Prefill and decode so many tokens on the CPU; `cache` keeps the engine's packed weights between runs."""
    import litert_lm  # type: ignore[import-untyped]

    benchmark = litert_lm.Benchmark(
        model_path=str(path),
        backend=litert_lm.Backend.CPU(thread_count=threads),
        prefill_tokens=prefill,
        decode_tokens=decode,
        cache_dir=str(cache),
    )
    info = benchmark.run()
    return EngineRun(
        init_seconds=info.init_time_in_second,
        time_to_first_token_seconds=info.time_to_first_token_in_second,
        prefill_tokens=info.last_prefill_token_count,
        prefill_tokens_per_s=info.last_prefill_tokens_per_second,
        decode_tokens=info.last_decode_token_count,
        decode_tokens_per_s=info.last_decode_tokens_per_second,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_run", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prefill", type=int, required=True)
    parser.add_argument("--decode", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args(arguments)
    run = run_engine(
        options.file, prefill=options.prefill, decode=options.decode, threads=options.threads, cache=options.cache
    )
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
