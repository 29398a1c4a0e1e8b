"""Measures Google's LiteRT-LM engine with its Python package, in a separate process: `python3 -m` this module.

Runs the engine's own benchmark: one prompt and one answer after loading, without a warm-up.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from device_harness.runners.child_program import Measured, run_child
from toolkit.base.errors import EnvironmentFault


def measure(arguments: argparse.Namespace) -> Measured:
    """Run the engine's own benchmark once; returns figures by their names in docs/formats/results.md."""
    engine = importlib.import_module("litert_lm")
    # Only then does it log how many nodes its delegate took; this adds no output while it computes.
    engine.set_min_log_severity(engine.LogSeverity.VERBOSE)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    benchmark = engine.Benchmark(
        str(arguments.model),
        engine.Backend.GPU() if arguments.backend == "gpu" else engine.Backend.CPU(thread_count=arguments.threads),
        prefill_tokens=arguments.prompt_tokens,
        decode_tokens=arguments.generated_tokens,
        max_num_tokens=arguments.context,
        cache_dir=str(arguments.cache),
    )
    try:
        found = benchmark.run()
    except RuntimeError as error:
        remedy = "run gemma-edge check" + (", or use --backend cpu" if arguments.backend == "gpu" else "")
        raise EnvironmentFault(
            file=arguments.model, found=f"LiteRT-LM cannot load it ({error})", remedy=remedy
        ) from error
    prefill, decode = found.last_prefill_token_count, found.last_decode_token_count
    asked = (arguments.prompt_tokens, arguments.generated_tokens)
    if (prefill, decode) != asked:
        raise EnvironmentFault("LiteRT-LM", found=f"{prefill} and {decode} tokens", wanted=f"{asked[0]} and {asked[1]}")
    return Measured(
        {
            "init_s": found.init_time_in_second,
            "time_to_first_token_s": found.time_to_first_token_in_second,
            "prefill_tokens_count": prefill,
            "decode_tokens_count": decode,
            "prefill_tokens_per_s": found.last_prefill_tokens_per_second,
            "decode_tokens_per_s": found.last_decode_tokens_per_second,
        }
    )


def library() -> tuple[str, Path]:
    """The name of LiteRT-LM's package, and its shared library."""
    spec = importlib.util.find_spec("litert_lm")
    if spec is None or spec.origin is None:
        raise EnvironmentFault(
            "Python", found="the package litert_lm is not installed", remedy="pip install 'gemma-edge[lm]'"
        )
    return "litert-lm-api", Path(spec.origin).parent / "liblitert-lm.so"


if __name__ == "__main__":
    code = run_child(None, measure, library)
    sys.stdout.flush()
    # Without the destructors of the engine's GPU delegate, which crash with some drivers.
    os._exit(code)
