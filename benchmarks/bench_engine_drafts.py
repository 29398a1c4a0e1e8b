"""Decoding with drafts beside decoding without in LiteRT-LM's engine, with a drafter that is right as often as told.

Our session decodes the answer first, since the engine tells no token ids. The bundle is exported once, with a drafter
that offers the answer's tokens by their position, each of them right with the given probability (forced_drafter.py):
so any acceptance can be measured, with random weights too. A draft counts only if all before it in the step were right.
The drafter costs what a fitted one costs, and a little more.

Each answer is decoded in a process of its own, after one that warms up; contenders take turns, and the first round is
not counted. Every answer must have the text that the engine gives without drafts, and with drafts as many tokens, in as
many steps, as follow from which drafts are right. Rates are the engine's own, of decoding alone, up to and including
its last step, which may pass the wanted number of tokens.

  python -m benchmarks.bench_engine_drafts BUNDLE --right 0 0.5 0.7 1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench_speculative import PLAIN, Run, decode, report
from benchmarks.engine_answer import Answer, AnswerRequest, run_child
from benchmarks.forced_drafter import (
    drawn,
    expected,
    export_with_drafter,
    offered,
    replace_drafter,
    write_forced_drafter,
)
from benchmarks.measure import RESULTS, Recorder
from toolkit.base.errors import EnvironmentFault, UsageError
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings, default_threads
from toolkit.runtime.speculative import DraftStatistics

PROMPT = "the old man said that he had seen a ship on the sea"


@dataclass(frozen=True, slots=True)
class Load:
    """What every answer is: `decode` tokens after `prompt`, which gets no template."""

    prompt: str
    decode: int
    threads: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A drafter, and what the engine will do with it."""

    drafter: Path
    expected: DraftStatistics


def known_answer(bundle: Bundle, load: Load) -> tuple[list[int], list[int]]:
    """The prompt's ids, and the answer's: as many as `decode` and those that drafts may guess behind them.

    UsageError for a bundle without `draft_tokens`, for what the context has no room for, and for an answer in which the
    model would stop.
    """
    text = bundle.manifest.text
    if text.draft_tokens is None:
        raise UsageError(str(bundle.path), found="no draft_tokens", wanted="a bundle converted with --draft-tokens")
    prompt = bundle.tokenizer().encode(load.prompt, special=True)
    count = load.decode + 2 * text.draft_tokens + 1
    if len(prompt) + count > text.context:
        found = f"{len(prompt)} tokens and {count} to decode"
        raise UsageError("prompt", found=found, wanted=f"at most the context's {text.context}")
    with Session(bundle, SessionSettings(threads=load.threads, weight_cache="memory")) as session:
        answer, _ = decode(session, prompt, count, None)
    stops = [token for token in answer if token in text.stop_token_ids]
    if stops:
        raise UsageError("answer", found=f"it stops at token {stops[0]}", wanted="none", remedy="take another --prompt")
    return prompt, answer


def contenders(bundle: Bundle, load: Load, rights: Sequence[float], folder: Path) -> dict[str, Contender]:
    """A drafter in `folder` for each fraction of right drafts, by the name of its contender."""
    text = bundle.manifest.text
    prompt, answer = known_answer(bundle, load)
    assert text.draft_tokens is not None
    found = {}
    for number, fraction in enumerate(rights):
        right = drawn(fraction, len(answer))
        drafter = folder / f"drafter_{number}.tflite"
        write_forced_drafter(drafter, [*prompt, *offered(answer, right, text.text_ids)], text)
        found[f"{100 * fraction:g}% right"] = Contender(drafter, expected(right, text.draft_tokens, load.decode))
    return found


def require_expected(name: str, answer: Answer, plain: Answer, drafts: DraftStatistics) -> None:
    """EnvironmentFault for another text than without drafts, or other numbers of tokens or steps than those expected.

    Steps are counted by the pieces of text that were streamed, so not where some pieces are empty.
    """
    if not answer.text.startswith(plain.text):
        raise EnvironmentFault(name, found=f"the answer {answer.text!r}", wanted=repr(plain.text))
    counted = answer.pieces if plain.pieces == plain.tokens else drafts.steps
    if (answer.tokens, counted) != (drafts.steps + drafts.accepted, drafts.steps):
        found, wanted = f"{answer.tokens} tokens in {counted} steps", f"{drafts.steps + drafts.accepted} tokens"
        raise EnvironmentFault(name, found=found, wanted=f"{wanted} in {drafts.steps}")


def measure(file: Path, made: Mapping[str, Contender], load: Load, rounds: int, cache: Path) -> dict[str, list[Run]]:
    """Rounds of one answer without drafts and one with each drafter; the first round warms up and is not counted."""
    found: dict[str, list[Run]] = {name: [] for name in (PLAIN, *made)}
    for turn in range(rounds + 1):
        plain = run_child(AnswerRequest(file, load.prompt, load.decode, load.threads, cache, drafts=False))
        runs = {PLAIN: _run(plain, None)}
        for name, contender in made.items():
            replace_drafter(file, contender.drafter)
            answer = run_child(AnswerRequest(file, load.prompt, load.decode, load.threads, cache, drafts=True))
            require_expected(name, answer, plain, contender.expected)
            runs[name] = _run(answer, contender.expected)
        rates = ", ".join(f"{run.tokens / run.seconds:.1f} {name}" for name, run in runs.items())
        print(f"round {turn}, tokens/s: {rates}", flush=True)
        if turn:
            for name, run in runs.items():
                found[name].append(run)
    return found


def _run(answer: Answer, drafts: DraftStatistics | None) -> Run:
    return Run(answer.tokens / answer.tokens_per_s, answer.cpu_seconds, answer.tokens, drafts)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_engine_drafts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="converted with --draft-tokens")
    parser.add_argument("--right", type=float, nargs="+", default=[0.0, 0.5, 0.7, 1.0], help="default: 0 0.5 0.7 1")
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument("--decode", type=int, default=128, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--work", type=Path, help="a directory with room for the export and its packed weights")
    parser.add_argument("--output", type=Path, default=RESULTS / "engine_drafts.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("engine_drafts")
    bundle = Bundle(options.bundle)
    load = Load(options.prompt, options.decode, options.threads)
    with TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        file, cache = work / "model.litertlm", work / "cache"
        cache.mkdir()
        try:
            made = contenders(bundle, load, options.right, work)
            export_with_drafter(options.bundle, file, next(iter(made.values())).drafter)
            found = measure(file, made, load, options.rounds, cache)
        except (EnvironmentFault, UsageError) as error:
            sys.exit(f"error: {error}")
    conditions = {"runtime": "LiteRT-LM", "prompt": load.prompt}
    report(recorder, options.output, options.bundle, found, conditions, decode=load.decode, threads=load.threads)


if __name__ == "__main__":
    main()
