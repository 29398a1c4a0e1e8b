"""Runs a GGUF file in llama.cpp once, in its own process; prints one JSON object. It needs only llama-cpp-python.

`PEER/bin/python -m benchmarks.llama_run FILE.gguf --prefill 512 --decode 128 --threads 2 --context 4096 --cache DIR`

llama.cpp packs weights in memory when it loads a file and leaves `--cache` empty.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import llama_cpp  # type: ignore[import-not-found]

from benchmarks.engine_run import EngineRun, RunOptions, parse_options, peak_rss_bytes

BATCH = 512
WARM_TOKENS = 32


def run_llama(path: Path, options: RunOptions) -> EngineRun:
    """Prefill and decode random tokens, after a short warm-up."""
    llama_cpp.llama_backend_init()
    started = time.perf_counter()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"error: {path}: llama.cpp does not load it")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = options.context
    settings.n_batch = settings.n_ubatch = BATCH
    settings.n_threads = settings.n_threads_batch = options.threads
    settings.swa_full = False  # layers with a sliding window have caches of the window's size
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        sys.exit(f"error: {path}: llama.cpp makes no context of {options.context}")
    init_seconds = time.perf_counter() - started
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    draw = random.Random(0)
    tokens = [draw.randrange(vocabulary) for _ in range(options.prefill + options.decode)]
    for warm in (tokens[:WARM_TOKENS], tokens[:1]):
        _take_in(context, warm)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    started = time.perf_counter()
    for start in range(0, options.prefill, BATCH):
        _take_in(context, tokens[start : min(start + BATCH, options.prefill)])
    prefilled = time.perf_counter()
    steps = [_take_in(context, [token]) for token in tokens[options.prefill :]]
    decode_seconds = sum(steps)
    return EngineRun(
        init_seconds=init_seconds,
        time_to_first_token_seconds=prefilled - started + steps[0],
        prefill_tokens=options.prefill,
        prefill_tokens_per_s=options.prefill / (prefilled - started),
        decode_tokens=options.decode,
        decode_tokens_per_s=options.decode / decode_seconds,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _take_in(context: object, tokens: Sequence[int]) -> float:
    started = time.perf_counter()
    ids = (ctypes.c_int32 * len(tokens))(*tokens)  # kept alive: the batch only points to it
    batch = llama_cpp.llama_batch_get_one(ids, len(tokens))
    code = llama_cpp.llama_decode(context, batch)
    if code:
        sys.exit(f"error: llama_decode ended with {code}")
    llama_cpp.llama_synchronize(context)
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    path, options = parse_options("llama_run", arguments)
    print(json.dumps(asdict(run_llama(path, options))))


if __name__ == "__main__":
    main()
