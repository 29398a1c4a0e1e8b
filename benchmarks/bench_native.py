"""Compares our program in C with our session in Python: times in turns of a few tokens, the time to open, and memory.

Both are open at the same time, with the same library, tokens and packed weights, and take turns, so that other work on
the machine slows both alike. Opening the bundle is measured in turns too, beside LiteRT's own share of it. On a busy
machine, only processor time is comparable. Memory is counted when `--fill` tokens are in the conversation. Prints a
table, and appends a record for each of C, Python and LiteRT.

  python -m benchmarks.bench_native BUNDLE --rounds 5 --fill 3964
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, this_device
from device_harness.machines.host import Host
from device_harness.native.client import NativeClient
from device_harness.native.place import PlacedRunner, place_runner
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures
from toolkit.results.statistics import summary
from toolkit.runtime.backends.litert.compiled import LiteRt
from toolkit.runtime.backends.litert.litert_log import quietly
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.sampling import Sampler, Sampling
from toolkit.runtime.session import Session, SessionSettings

C, PYTHON, LITERT = "C", "Python", "LiteRT"
STEPS: dict[str, FigureName] = {
    "prefill": "prefill_s",
    "prefill_cpu": "prefill_cpu_s",
    "decode": "decode_s",
    "decode_cpu": "decode_cpu_s",
}
OPENING: dict[str, FigureName] = {"open": "init_s", "open_cpu": "init_cpu_s"}
MEMORY: dict[str, FigureName] = {"effective": "effective_bytes", "anonymous": "anonymous_bytes"}


@dataclass(slots=True)
class Runs:
    """The figures of one contender: of each round, of each opening, and its memory at the end."""

    steps: list[Figures] = field(default_factory=list)
    opening: list[Figures] = field(default_factory=list)
    memory: list[Figures] = field(default_factory=list)

    def median(self, name: FigureName) -> float | None:
        """The median of a figure; None if it was not measured."""
        values = [run[name] for run in (*self.steps, *self.opening, *self.memory) if name in run]
        return summary(values).median if values else None


@dataclass(frozen=True, slots=True)
class Work:
    """Something to measure, and a function that gives the processor seconds of its process so far."""

    run: Callable[[], object]
    cpu_seconds: Callable[[], float]

    def measured(self) -> tuple[float, float]:
        """Run it; return wall-clock seconds and processor seconds."""
        started, before = time.perf_counter(), self.cpu_seconds()
        self.run()
        used = self.cpu_seconds() - before
        return time.perf_counter() - started, used


def process_seconds(pid: int) -> float:
    """The processor seconds of all threads of another process."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def answer_natively(native: NativeClient, token: int, count: int) -> None:
    """Draw the most likely token `count` times after `token`, streamed one by one as `run --device` has them."""
    answer = native.generate([token], Sampling(), limit=count, stops=())
    if len(list(answer)) != count:
        raise RuntimeError(f"the program in C drew {len(answer.tokens)} tokens, not {count}")


def answer_here(session: Session, token: int, count: int) -> None:
    """The same in our session."""
    sampler = Sampler(Sampling(), session.text.text_ids)
    for _ in range(count):
        token = sampler.draw(session.decode(token))


def measure(
    bundle: Path, cache: Path, *, prompt: int, decode: int, fill: int, threads: int, rounds: int
) -> dict[str, Runs]:
    """Measure turns of each, then the memory of both when `fill` tokens are in the conversation."""
    settings = SessionSettings(threads=threads, weight_cache=cache)
    Session(Bundle(bundle), settings).close()  # packs the weights
    (packed,) = cache.glob("*.xnnpack")
    placed = place_runner(Host())
    found = open_in_turns(bundle, packed, placed, settings, rounds)
    draw = np.random.default_rng(0)
    with NativeClient(Host(), placed) as native, Session(Bundle(bundle), settings) as session:
        opened = native.open(str(bundle), threads=threads, weight_folder=str(cache))
        assert opened.weight_cache == "kept", "both share one file of packed weights"
        seconds: dict[str, Callable[[], float]] = {C: partial(process_seconds, native.pid), PYTHON: time.process_time}

        def draw_ids(count: int) -> list[int]:
            return [int(token) for token in draw.integers(0, session.text.ple_vocab_size, count)]

        for turn in range(rounds + 1):  # the first prepares the signatures
            ids = draw_ids(prompt + 1)
            session.truncate(0)
            native.truncate(0)
            names = (C, PYTHON) if turn % 2 else (PYTHON, C)
            steps: dict[str, list[float]] = {name: [] for name in names}
            prefills: dict[str, Callable[[], object]] = {
                C: partial(native.prefill, ids[:prompt]),
                PYTHON: partial(session.prefill, ids[:prompt]),
            }
            decodes: dict[str, Callable[[], object]] = {
                C: partial(answer_natively, native, ids[-1], decode),
                PYTHON: partial(answer_here, session, ids[-1], decode),
            }
            for runs in (prefills, decodes):
                for name in names:
                    steps[name] += Work(runs[name], seconds[name]).measured()
            for name, values in steps.items() if turn else ():
                found[name].steps.append(dict(zip(STEPS.values(), values, strict=True)))
        if fill > prompt + decode:
            more = draw_ids(fill - prompt - decode)
            native.prefill(more)
            session.prefill(more)
        there, here = cast("dict[str, int]", native.stats()["memory"]), session.memory()
    # The program reads per-layer embeddings, and maps none.
    found[C].memory.append({"effective_bytes": there["rss_bytes"], "anonymous_bytes": there["rss_anonymous_bytes"]})
    anonymous = here.process.rss_anonymous_bytes or 0
    found[PYTHON].memory.append({"effective_bytes": here.effective_bytes or 0, "anonymous_bytes": anonymous})
    return found


def open_in_turns(
    bundle: Path, packed: Path, placed: PlacedRunner, settings: SessionSettings, rounds: int
) -> dict[str, Runs]:
    """Measure opening the bundle, with all files in the page cache, and what LiteRT alone takes for its files."""
    found = {name: Runs() for name in (LITERT, C, PYTHON)}
    threads = settings.threads or 1
    for turn in range(rounds + 1):  # the first reads from storage
        litert = quietly("LiteRT", LiteRt)
        load = partial(load_graphs, litert, bundle, packed, threads)
        values = {LITERT: Work(partial(quietly, "LiteRT", load), time.process_time).measured()}
        quietly("LiteRT", litert.close)
        started = time.perf_counter()
        with NativeClient(Host(), placed) as native:
            native.open(str(bundle), threads=threads, weight_folder=str(packed.parent))
            # Including the program's start. Another process hashes files meanwhile, which counts only while it waits.
            values[C] = time.perf_counter() - started, process_seconds(native.pid)
        values[PYTHON] = Work(lambda: Session(Bundle(bundle), settings).close(), time.process_time).measured()
        for name, taken in values.items() if turn else ():
            found[name].opening.append(dict(zip(OPENING.values(), taken, strict=True)))
    return found


def load_graphs(litert: LiteRt, bundle: Path, packed: Path, threads: int) -> None:
    """Do only what LiteRT does when the bundle is opened: load two files, one of them with packed weights."""
    decoder = litert.open_on_cpu(bundle / "text_decoder.tflite", threads=threads, weight_cache=str(packed))
    embedder = litert.open_on_cpu(bundle / "embedder.tflite", threads=1, weight_cache="")
    embedder.close()
    decoder.close()


def record(recorder: Recorder, options: argparse.Namespace, found: dict[str, Runs]) -> None:
    """Append a record for each contender; the numbers of tokens are its conditions."""
    model = model_record(options.bundle, options.bundle.name)
    tokens = max(options.fill, options.prompt + options.decode)
    conditions = {"prompt": str(options.prompt), "decode": str(options.decode), "tokens_in_memory": str(tokens)}
    for system, runs in found.items():
        for tests, figures in ((STEPS, runs.steps), (OPENING, runs.opening), (MEMORY, runs.memory)):
            if figures:
                named = {"system": system, **conditions}
                recorder.append(options.output, Measured(model, tests, figures, named, threads=options.threads))


def table(found: dict[str, Runs]) -> str:
    """Medians of each contender: seconds, and megabytes."""
    rows = []
    for name, figure in (STEPS | OPENING | MEMORY).items():
        is_memory = figure in MEMORY.values()
        values = [runs.median(figure) for runs in found.values()]
        cells = ("" if n is None else f"{n / 1e6:.0f}" if is_memory else f"{n:.3f}" for n in values)
        rows.append([f"{name}, {'MB' if is_memory else 's'}", *cells])
    return markdown(["", *found], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_native",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    numbers = {"prompt": 128, "decode": 16, "fill": 0, "threads": 1, "rounds": 5}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--output", type=Path, default=RESULTS / "native.jsonl", help="default: %(default)s")
    options = parser.parse_args()
    recorder = Recorder("native")
    with TemporaryDirectory() as scratch:
        found = measure(options.bundle, Path(scratch), **{name: getattr(options, name) for name in numbers})
    record(recorder, options, found)
    print(f"{this_device()}\nload average before: {recorder.load_before:.2f}\n\n{table(found)}")


if __name__ == "__main__":
    main()
