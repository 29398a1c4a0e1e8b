"""Decoding with drafts beside decoding without, in turns, with a drafter that is right as often as it is told.

The answer is decoded once without drafts. A test drafter that knows it then offers its next tokens, each of them right
with the given probability, and the same answer is decoded again: so any acceptance can be measured, with random weights
too. A draft counts only if all before it in the step were right. `look-up` drafts by prompt look-up instead, `drafter`
with the bundle's drafter, if it has one: how much it is slower than drafts that are as often right is what it costs.

These go on drafting whatever it costs; `as run` leaves drafts out where they do not pay, as `run --speculative` does.
With one thread, CPU time shows the ratios on a busy machine too.

  python -m benchmarks.bench_speculative BUNDLE --right 0 0.5 0.7 1
  python -m benchmarks.bench_speculative BUNDLE --text corrections.txt
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, text, this_device
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures
from toolkit.results.statistics import summary
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.prompt_lookup import PromptLookup
from toolkit.runtime.drafts.source import DraftSource
from toolkit.runtime.drafts.sources import DraftSources
from toolkit.runtime.session import Session, SessionSettings, default_threads
from toolkit.runtime.speculative import DraftStatistics, SpeculativeDecoder

PLAIN, LOOK_UP, DRAFTER, AS_RUN = "without", "look-up", "drafter", "as run"


class TestDrafter:
    """A drafter that knows the answer, and draws for each draft whether it offers the right token or another one."""

    def __init__(self, known: Sequence[int], right: float, vocabulary: int) -> None:
        """`known`: the prompt and the answer."""
        self._known = known
        self._right = right
        self._vocabulary = vocabulary
        self._draw = np.random.default_rng(0)

    def propose(self, ids: Sequence[int], activations: NDArray[np.float32] | None, most: int) -> Sequence[int]:
        known = self._known[len(ids) : len(ids) + most]
        return [token if self._draw.random() < self._right else (token + 1) % self._vocabulary for token in known]


@dataclass(frozen=True, slots=True)
class Run:
    """One answer."""

    seconds: float
    cpu_seconds: float
    tokens: int
    drafts: DraftStatistics | None


def decode(
    session: Session, prompt: Sequence[int], count: int, source: DraftSource | None, *, always: bool = True
) -> tuple[list[int], Run]:
    """Decode greedily; the prompt except its last token is processed before the clock starts.

    `always`: draft even if it does not pay, by giving the decoder a clock that stands still.
    """
    session.truncate(0)
    session.prefill(prompt[:-1])
    clock = (lambda: 0.0) if always else time.perf_counter
    drafter = None if source is None else SpeculativeDecoder(session, source, prompt[:-1], clock=clock)
    step: Callable[[int], NDArray[np.float32]] = session.decode if drafter is None else drafter.decode
    tokens = [prompt[-1]]
    started, cpu_started = time.perf_counter(), time.process_time()
    for _ in range(count):
        tokens.append(int(step(tokens[-1])[: session.text.text_ids].argmax()))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return tokens[1:], Run(seconds, cpu_seconds, count, None if drafter is None else drafter.statistics)


def measure(
    session: Session,
    drafter: DraftSource | None,
    prompt: Sequence[int],
    count: int,
    rights: Sequence[float],
    rounds: int,
) -> dict[str, list[Run]]:
    """Rounds of one run of each contender; the first round warms up and is not counted."""
    answer, _ = decode(session, prompt, count, None)
    known = [*prompt, *answer]
    makers: dict[str, Callable[[], DraftSource | None]] = {PLAIN: lambda: None, LOOK_UP: PromptLookup}
    if drafter is not None:
        makers[DRAFTER] = lambda: drafter
    for right in rights:
        makers[f"{100 * right:g}% right"] = partial(TestDrafter, known, right, session.text.text_ids)
    if rights:
        makers[f"{100 * rights[0]:g}% right, {AS_RUN}"] = partial(TestDrafter, known, rights[0], session.text.text_ids)
    found: dict[str, list[Run]] = {name: [] for name in makers}
    for turn in range(rounds + 1):
        for name, make in makers.items():
            tokens, run = decode(session, prompt, count, make(), always=not name.endswith(AS_RUN))
            assert tokens == answer, f"{name} gave another answer"
            if turn:
                found[name].append(run)
    return found


def figures(run: Run) -> Figures:
    """The figures of one answer, by their names in the results."""
    found: Figures = {
        "decode_tokens_per_s": run.tokens / run.seconds,
        "decode_s": run.seconds,
        "decode_cpu_s": run.cpu_seconds,
    }
    if run.drafts is not None:
        found["decode_tokens_per_step"] = run.tokens / run.drafts.steps
        found["drafts_offered_count"] = run.drafts.offered
        found["drafts_accepted_count"] = run.drafts.accepted
        if run.drafts.offered:
            found["draft_acceptance_fraction"] = run.drafts.accepted / run.drafts.offered
    return found


def table(found: dict[str, list[Run]]) -> str:
    """Medians, and the ratio to decoding without drafts in the same round."""
    rows = []
    for name, runs in found.items():
        pairs = list(zip(found[PLAIN], runs, strict=True))
        ratios = [plain.seconds / run.seconds for plain, run in pairs]
        cpu_ratios = [plain.cpu_seconds / run.cpu_seconds for plain, run in pairs]
        drafts = runs[0].drafts
        counts = (
            ["", "1.00"]
            if drafts is None
            else [f"{drafts.accepted} of {drafts.offered}", f"{runs[0].tokens / drafts.steps:.2f}"]
        )
        rates = text(summary([run.tokens / run.seconds for run in runs]), ".1f")
        rows.append([name, *counts, rates, *(text(summary(some), ".2f") for some in (ratios, cpu_ratios))])
    header = ["drafts", "accepted", "tokens a step", "decode, tokens/s", "x without drafts", "the same by CPU time"]
    return markdown(header, rows)


def report(
    recorder: Recorder,
    output: Path,
    bundle: Path,
    found: dict[str, list[Run]],
    conditions: Mapping[str, str],
    *,
    decode: int,
    threads: int,
) -> None:
    """Append a record for each contender to the file `output`, and print the table."""
    record, model = Bundle(bundle).manifest.text, model_record(bundle, bundle.name)
    tests: dict[str, FigureName] = {f"tg{decode}": "decode_tokens_per_s"}
    drafted: dict[str, FigureName] = {
        **tests,
        f"tg{decode}:accepted": "draft_acceptance_fraction",
        f"tg{decode}:per_step": "decode_tokens_per_step",
    }
    for name, runs in found.items():
        recorder.append(
            output,
            Measured(
                model,
                tests if name == PLAIN else drafted,
                [figures(run) for run in runs],
                {"drafts": name, "draft_tokens": str(record.draft_tokens), **conditions},
                threads=threads,
                context=record.context,
            ),
        )
    step = statistics.median(run.seconds / run.tokens for run in found[PLAIN]) * 1e3
    print(f"{this_device()}\nload before: {recorder.load_before:.2f}; a plain step: {step:.1f} ms\n\n{table(found)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_speculative",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="converted with --draft-tokens")
    parser.add_argument("--right", type=float, nargs="*", default=[0.0, 0.5, 0.7, 1.0], help="default: 0 0.5 0.7 1")
    parser.add_argument("--text", type=Path, help="the prompt (default: random tokens)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=64, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, help="where packed weights are kept (default: in memory)")
    parser.add_argument("--output", type=Path, default=RESULTS / "speculative.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("speculative")
    bundle = Bundle(options.bundle)
    settings = SessionSettings(threads=options.threads, weight_cache=options.cache or "memory")
    if options.text is None:
        prompt = np.random.default_rng(0).integers(0, bundle.manifest.text.text_ids, options.prompt).tolist()
    else:
        prompt = bundle.tokenizer().encode(options.text.read_text(encoding="utf-8"), special=True)[: options.prompt]
    with Session(bundle, settings) as session, closing(DraftSources(session)) as sources:
        found = measure(session, sources.drafter(), prompt, options.decode, options.right, options.rounds)
    conditions = {"prompt": str(len(prompt)), "text": "random" if options.text is None else options.text.name}
    report(recorder, options.output, options.bundle, found, conditions, decode=options.decode, threads=options.threads)


if __name__ == "__main__":
    main()
