"""What the drafts of one step cost, beside a step that decodes and one that checks them, at several positions.

The bundle has a drafter (docs/speculative.md). How long its drafts take does not depend on whether they are right, so
random weights do: `synthetic_assistant.py` writes drafters of Google's dimensions. With one thread, CPU time shows the
costs on a busy machine too.

  python -m benchmarks.bench_drafter BUNDLE --positions 100 500 2000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, text, this_device
from toolkit.base.errors import BundleError
from toolkit.report.tables import markdown
from toolkit.results.record import Figures
from toolkit.results.statistics import summary
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.source import DraftSource
from toolkit.runtime.drafts.sources import DraftSources
from toolkit.runtime.session import Session, SessionSettings, default_threads


def measure(session: Session, drafter: DraftSource, ids: Sequence[int], rounds: int) -> dict[str, list[Figures]]:
    """The time of each kind of step after all of `ids` but the last `draft_tokens` + 1; the first is not counted."""
    most = session.text.draft_tokens
    assert most is not None
    position = len(ids) - most - 1
    session.prefill(ids[session.position : position - 1])
    session.decode(ids[position - 1])
    state = session.activations()[0]
    calls: Mapping[str, Callable[[], object]] = {
        "decode": lambda: session.decode(ids[position]),
        "verify": lambda: session.verify(ids[position:]),
        "drafts": lambda: drafter.propose(ids[: position + 1], state, most),
    }
    found: dict[str, list[Figures]] = {}
    for name, call in calls.items():
        runs: list[Figures] = []
        for _ in range(rounds + 1):
            started, cpu_started = time.perf_counter(), time.process_time()
            call()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            session.truncate(position)
            runs.append({"decode_s": seconds, "decode_cpu_s": cpu_seconds})
        found[name] = runs[1:]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_drafter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="converted with --drafter")
    parser.add_argument("--positions", type=int, nargs="+", default=[100, 500, 2000], help="default: 100 500 2000")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, help="where packed weights are kept (default: in memory)")
    parser.add_argument("--output", type=Path, default=RESULTS / "drafter.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("drafter")
    bundle = Bundle(options.bundle)
    decoder, most = bundle.manifest.text, bundle.manifest.text.draft_tokens
    settings = SessionSettings(threads=options.threads, weight_cache=options.cache or "memory")
    with Session(bundle, settings) as session, closing(DraftSources(session)) as sources:
        drafter = sources.drafter()
        if drafter is None or most is None:
            raise BundleError(file=options.bundle, found="no drafter", remedy="convert it with --drafter")
        ends = [position + most + 1 for position in sorted(set(options.positions))]
        ids = np.random.default_rng(0).integers(0, decoder.text_ids, ends[-1]).tolist()
        found = {end - most - 1: measure(session, drafter, ids[:end], options.rounds) for end in ends}
    rows = []
    for position, steps in found.items():
        for name, runs in steps.items():
            recorder.append(
                options.output,
                Measured(
                    model_record(options.bundle, options.bundle.name),
                    {name: "decode_cpu_s"},
                    runs,
                    {"step": name, "position": str(position), "draft_tokens": str(most)},
                    threads=options.threads,
                    context=decoder.context,
                ),
            )
        cpu = [summary([run["decode_cpu_s"] for run in runs]) for runs in steps.values()]
        rows.append([f"{position:,}", *(text(figures, ".1f", 1e3) for figures in cpu)])
    header = ["position", "decode, CPU ms", f"check {most} drafts, CPU ms", f"make {most} drafts, CPU ms"]
    print(f"{this_device()}\nload before: {recorder.load_before:.2f}; context {decoder.context:,}")
    print(f"medians of {options.rounds} (least to most)\n")
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
