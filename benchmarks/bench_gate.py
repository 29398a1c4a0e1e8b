"""Measures the cost of the comparisons at the end of `convert`: that of predictions (the gate), and that of prompts.

Each is a separate process. Predictions are judged as in `convert`, for the bundle's default size, with weights that are
packed for it, whatever earlier runs have left in the user's cache. Prompts are those of every conversation;
`--tokenizer` names another tokenizer.json than the checkpoint's, such as that of the published models. The time of
loading the tokenizer is listed separately, because `convert` loads it in any case:

  python -m benchmarks.bench_gate e2b E2B --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import RESULTS, ChildUsage, Measured, Recorder, model_record, run_step, this_device
from converters.behaviour import require_same_prompts
from converters.families import open_checkpoint
from converters.gate import judge
from converters.huggingface.prompt_files import PromptFiles, read_prompt_files
from converters.verify import SHORT_TOKENS
from toolkit.base.files import hash_file
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures

TESTS: Mapping[str, FigureName] = {"gate": "gate_s", "gate_cpu": "gate_cpu_s", "peak": "peak_rss_bytes"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One comparison: its seconds, the processor seconds of all its processes, the seconds of loading a tokenizer."""

    gate: str
    seconds: float
    cpu_seconds: float
    load_seconds: float
    usage: ChildUsage


def judge_weights(bundle: Path, checkpoint: Path, tokens: int) -> list[float]:
    """Compare predictions; return seconds, processor seconds, and 0."""
    with open_checkpoint(checkpoint) as opened:
        started, before = time.perf_counter(), _cpu_seconds()
        judge(bundle, opened, tokens=tokens, sizes=[read_manifest(bundle).default_size])
        return [time.perf_counter() - started, _cpu_seconds() - before, 0.0]


def judge_prompts(bundle: Path, checkpoint: Path, tokenizer: Path | None) -> list[float]:
    """Compare prompts; return seconds and processor seconds without loading the tokenizer, and the seconds of that."""
    manifest = read_manifest(bundle)
    text = manifest.text
    files = _prompt_files(checkpoint, text.vocab_size, tokenizer)
    started, before = time.perf_counter(), _cpu_seconds()
    Tokenizer(Path("tokenizer.json"), files.tokenizer)
    load_seconds, load_cpu_seconds = time.perf_counter() - started, _cpu_seconds() - before
    started, before = time.perf_counter(), _cpu_seconds()
    require_same_prompts(files, text, None, None, manifest.architecture)  # loads it again
    seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds() - before
    return [seconds - load_seconds, cpu_seconds - load_cpu_seconds, load_seconds]


def _prompt_files(checkpoint: Path, vocab_size: int, tokenizer: Path | None) -> PromptFiles:
    files = read_prompt_files(checkpoint, vocab_size)
    return files if tokenizer is None else replace(files, tokenizer=tokenizer.read_bytes())


def _cpu_seconds() -> float:
    """The processor seconds of this process and of those that it has waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def conditions(gate: str, tokens: int, tokenizer: Path | None) -> dict[str, str]:
    """What sets a comparison's record apart: how many predictions, or whose tokenizer (its contents, not its name)."""
    if gate == "weights":
        return {"tokens": str(tokens)}
    return {"tokenizer": "checkpoint's" if tokenizer is None else hash_file(tokenizer).sha256[:12]}


def measured(outcome: Outcome, bundle: Path, name: str, conditions: Mapping[str, str]) -> Measured:
    """One comparison as a record."""
    figures: Figures = {
        "gate_s": outcome.seconds,
        "gate_cpu_s": outcome.cpu_seconds,
        "peak_rss_bytes": outcome.usage.peak_rss_bytes,
    }
    return Measured(model_record(bundle, name), TESTS, [figures], {"gate": outcome.gate, **conditions})


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each comparison."""
    rows = [
        [
            outcome.gate,
            f"{outcome.seconds:.2f}",
            f"{outcome.cpu_seconds:.2f}",
            f"{outcome.load_seconds:.2f}",
            f"{outcome.usage.peak_rss_bytes / 1e6:.0f}",
        ]
        for outcome in outcomes
    ]
    return markdown(["gate", "seconds", "CPU seconds", "loading the tokenizer, s", "peak RSS, MB"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--child"]:
        print(json.dumps(_child(words[1:])))
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="judge prompts with this tokenizer.json")
    parser.add_argument("--tokens", type=int, default=SHORT_TOKENS, help="predictions judged (default: %(default)s)")
    parser.add_argument("--gate", choices=("weights", "prompts"), action="append", help="only this one")
    parser.add_argument("--output", type=Path, default=RESULTS / "gate.jsonl", help="default: %(default)s")
    options = parser.parse_args(words)
    recorder = Recorder("gate")
    tokenizer = "" if options.tokenizer is None else str(options.tokenizer.absolute())
    details = {"weights": str(options.tokens), "prompts": tokenizer}
    outcomes = []
    with TemporaryDirectory(prefix="bench_gate.") as scratch:
        for gate in options.gate or ("prompts", "weights"):
            step = [gate, options.bundle, options.checkpoint, details[gate]]
            log, environment = Path(scratch) / "log.txt", {"GEMMA_EDGE_CACHE": str(Path(scratch).absolute())}
            usage, (seconds, cpu_seconds, load_seconds) = run_step("bench_gate", step, log, environment)
            outcomes.append(Outcome(gate, seconds, cpu_seconds, load_seconds, usage))
            named = conditions(gate, options.tokens, options.tokenizer)
            recorder.append(options.output, measured(outcomes[-1], options.bundle, options.bundle.name, named))
    print(f"{this_device()}\nload average before: {recorder.load_before:.2f}\n\n{table(outcomes)}")


def _child(words: Sequence[str]) -> list[float]:
    gate, bundle, checkpoint, detail = words
    if gate == "weights":
        return judge_weights(Path(bundle), Path(checkpoint), int(detail))
    return judge_prompts(Path(bundle), Path(checkpoint), Path(detail) if detail else None)


if __name__ == "__main__":
    main()
