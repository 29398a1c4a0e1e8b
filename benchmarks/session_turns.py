"""Prompts and answers of random tokens through our session, one for each line on stdin: one JSON object each.

A line has two numbers, the tokens of the prompt and those to decode. Earlier commits run this file too, so it uses only
what they have: `python benchmarks/session_turns.py BUNDLE CACHE THREADS`, with PYTHONPATH naming the checkout.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings


def main(bundle: str, cache: str, threads: str) -> None:
    """Until stdin ends; times in seconds."""
    with Session(Bundle(Path(bundle)), SessionSettings(threads=int(threads), weight_cache=Path(cache))) as session:
        for line in sys.stdin:
            prompt, decode = (int(word) for word in line.split())
            ids = np.random.default_rng(0).integers(0, session.text.ple_vocab_size, prompt + decode).tolist()
            session.truncate(0)
            begun, begun_cpu = time.perf_counter(), time.process_time()
            session.prefill(ids[:prompt])
            filled, filled_cpu = time.perf_counter(), time.process_time()
            for token in ids[prompt:]:
                session.decode(token).argmax()
            ended, ended_cpu = time.perf_counter(), time.process_time()
            times = {"prefill_s": filled - begun, "prefill_cpu_s": filled_cpu - begun_cpu}
            times |= {"decode_s": ended - filled, "decode_cpu_s": ended_cpu - filled_cpu}
            print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
