"""Our program in C beside our session in Python: rates in turns of a few tokens, the time to open, and memory.

Both are open at the same time, with the same library, tokens and packed weights, and take turns, so that a machine that
others use slows both alike; so do the ways to open the bundle, beside LiteRT's own share of that. Prints a row of JSON:
medians over the rounds, and the ratios of C to Python. Memory is counted once `--fill` tokens are in the conversation.

  python -m benchmarks.bench_native BUNDLE --rounds 5 --fill 3964
"""

from __future__ import annotations

import argparse
import json
import os
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
from device_harness.native.place import PlacedRunner, place_runner
from toolkit.runtime.backends.litert.compiled import LiteRt
from toolkit.runtime.backends.litert.litert_log import quietly
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def decode_all(step: Callable[[int], NDArray[np.float32]], ids: Sequence[int]) -> None:
    for token in ids:
        step(token).argmax()


def measure(
    bundle: Path, cache: Path, *, prompt: int, decode: int, fill: int, threads: int, rounds: int
) -> dict[str, object]:
    """Medians of `rounds` turns of each, then the memory of both once `fill` tokens are in the conversation."""
    times: dict[str, list[float]] = {name: [] for name in ("prefill C", "prefill Python", "decode C", "decode Python")}
    settings = SessionSettings(threads=threads, weight_cache=cache)
    Session(Bundle(bundle), settings).close()  # packs the weights
    (packed,) = cache.glob("*.xnnpack")
    placed = place_runner(Host())
    opens = open_in_turns(bundle, packed, placed, settings, rounds)
    draw = np.random.default_rng(0)
    with NativeClient(Host(), placed) as native, Session(Bundle(bundle), settings) as session:
        found = native.open(str(bundle), threads=threads, weight_folder=str(cache))
        assert found.weight_cache == "kept", "both share one file of packed weights"

        def draw_ids(count: int) -> list[int]:
            return [int(token) for token in draw.integers(0, session.text.ple_vocab_size, count)]

        for turn in range(rounds + 1):  # the first prepares the signatures
            ids = draw_ids(prompt + decode)
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
        if fill > prompt + decode:
            more = draw_ids(fill - prompt - decode)
            native.prefill(more)
            session.prefill(more)
        memory = cast("dict[str, int]", native.stats()["memory"])
        python = session.memory()
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{f"{name}, tokens/s": round((prompt if "prefill" in name else decode) / s, 2) for name, s in middle.items()},
        "prefill, C to Python": round(middle["prefill Python"] / middle["prefill C"], 3),
        "decode, C to Python": round(middle["decode Python"] / middle["decode C"], 3),
        **{f"open {name}, s": round(statistics.median(values), 3) for name, values in opens.items()},
        "tokens in memory": max(fill, prompt + decode),
        "effective C, MB": round(memory["rss_bytes"] / 1e6, 1),  # it reads per-layer embeddings, and maps none
        "effective Python, MB": round((python.effective_bytes or 0) / 1e6, 1),
        "anonymous C, MB": round(memory["rss_anonymous_bytes"] / 1e6, 1),
        "anonymous Python, MB": round((python.process.rss_anonymous_bytes or 0) / 1e6, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def open_in_turns(
    bundle: Path, packed: Path, placed: PlacedRunner, settings: SessionSettings, rounds: int
) -> dict[str, list[float]]:
    """Seconds to open the bundle, files and packed weights in the page cache; and what LiteRT alone takes for them."""
    taken: dict[str, list[float]] = {"LiteRT": [], "C": [], "C with its start": [], "Python": []}
    threads = settings.threads or 1
    for turn in range(rounds + 1):  # the first reads from storage
        litert = quietly("LiteRT", LiteRt)
        load = partial(load_graphs, litert, bundle, packed, threads)
        values = {"LiteRT": seconds(partial(quietly, "LiteRT", load))}
        quietly("LiteRT", litert.close)
        started = time.perf_counter()
        with NativeClient(Host(), placed) as native:
            opened = native.open(str(bundle), threads=threads, weight_folder=str(packed.parent))
            values |= {"C": opened.seconds, "C with its start": time.perf_counter() - started}
        values["Python"] = seconds(lambda: Session(Bundle(bundle), settings).close())
        for name, value in values.items() if turn else ():
            taken[name].append(value)
    return taken


def load_graphs(litert: LiteRt, bundle: Path, packed: Path, threads: int) -> None:
    """What LiteRT does when the bundle is opened, and nothing of ours: two files, one with packed weights."""
    decoder = litert.open_on_cpu(bundle / "text_decoder.tflite", threads=threads, weight_cache=str(packed))
    embedder = litert.open_on_cpu(bundle / "embedder.tflite", threads=1, weight_cache="")
    embedder.close()
    decoder.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_native", description=__doc__)
    parser.add_argument("bundle", type=Path)
    for name, value in (("prompt", 128), ("decode", 16), ("fill", 0), ("threads", 1), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    with TemporaryDirectory() as scratch:
        print(json.dumps(measure(options.pop("bundle"), Path(scratch), **options), indent=1))


if __name__ == "__main__":
    main()
