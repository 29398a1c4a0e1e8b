"""Our program in C beside our session in Python: rates in turns of a few tokens, the time to open, and memory.

Both are open at the same time, with the same library, tokens and packed weights, and take turns, so that a machine that
others use slows both alike. Prints a row of JSON: medians over the rounds, and the ratios of C to Python.

  python -m benchmarks.bench_native BUNDLE --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
from numpy.typing import NDArray

from device_harness.machines.host import Host
from device_harness.native.client import NativeClient
from device_harness.native.place import place_runner
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def decode_all(step: Callable[[int], NDArray[np.float32]], ids: Sequence[int]) -> None:
    for token in ids:
        step(token).argmax()


def measure(bundle: Path, cache: Path, *, prompt: int, decode: int, threads: int, rounds: int) -> dict[str, object]:
    """Medians of `rounds` turns of each."""
    times: dict[str, list[float]] = {name: [] for name in ("prefill C", "prefill Python", "decode C", "decode Python")}
    settings = SessionSettings(threads=threads, weight_cache=cache)
    Session(Bundle(bundle), settings).close()  # packs the weights
    opened: list[Session] = []
    open_python_s = seconds(lambda: opened.append(Session(Bundle(bundle), settings)))
    draw = np.random.default_rng(0)
    with NativeClient(Host(), place_runner(Host())) as native, opened[0] as session:
        found = native.open(str(bundle), threads=threads, weight_folder=str(cache))
        assert found.weight_cache == "kept", "both share one file of packed weights"
        for turn in range(rounds + 1):  # the first prepares the signatures
            ids = [int(token) for token in draw.integers(0, session.text.ple_vocab_size, prompt + decode)]
            session.truncate(0)
            native.truncate(0)
            first, rest = ids[:prompt], ids[prompt:]
            taken = {
                "prefill C": seconds(partial(native.prefill, first)),
                "prefill Python": seconds(partial(session.prefill, first)),
                "decode C": seconds(partial(decode_all, native.decode, rest)),
                "decode Python": seconds(partial(decode_all, session.decode, rest)),
            }
            for name, value in taken.items() if turn else ():
                times[name].append(value)
        memory = cast("dict[str, int]", native.stats()["memory"])
        python = session.memory().process
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{f"{name}, tokens/s": round((prompt if "prefill" in name else decode) / s, 2) for name, s in middle.items()},
        "prefill, C to Python": round(middle["prefill Python"] / middle["prefill C"], 3),
        "decode, C to Python": round(middle["decode Python"] / middle["decode C"], 3),
        "open C, s": round(found.seconds, 3),
        "open Python, s": round(open_python_s, 3),
        "RSS C, MB": round(memory["rss_bytes"] / 1e6, 1),
        "RSS Python, MB": round((python.rss_bytes or 0) / 1e6, 1),
        "anonymous C, MB": round(memory["rss_anonymous_bytes"] / 1e6, 1),
        "anonymous Python, MB": round((python.rss_anonymous_bytes or 0) / 1e6, 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_native", description=__doc__)
    parser.add_argument("bundle", type=Path)
    for name, value in (("prompt", 128), ("decode", 16), ("threads", 1), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    with TemporaryDirectory() as scratch:
        print(json.dumps(measure(options.pop("bundle"), Path(scratch), **options), indent=1))


if __name__ == "__main__":
    main()
