"""Measures time and peak memory of a conversion, and of the official exporter's on the same checkpoint in the same run.

Every conversion is a separate process, measured by the kernel from its start to its end; the checkpoint is in the page
cache, and no earlier run has left packed weights for the quality gate. With --peer-python PATH, a Python that has
litert-torch, the peer takes turns with ours.

  python -m benchmarks.bench_convert --preset e2b --recipes int4 --repeats 1 --also=--calibrate
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import (
    CONVERT_TESTS,
    RESULTS,
    ChildUsage,
    Measured,
    Recorder,
    conversion_figures,
    convert_command,
    model_record,
    run_child,
    text,
    this_device,
    tree_bytes,
)
from benchmarks.synthetic import PRESETS, write_synthetic
from converters.gemma3n.config.text import CONDITIONAL_GENERATION
from toolkit.report.tables import markdown
from toolkit.results.statistics import summary

PEER_RECIPES = {"int8": "dynamic_wi8_afp32", "int4": "dynamic_wi4_afp32"}
# The options that the exporter needs for Gemma 3n; the synthetic checkpoint has no towers that are worth exporting.
PEER_FLAGS = (
    "--externalize_embedder=True",
    "--single_token_embedder=True",
    "--export_vision_encoder=False",
    "--export_audio_encoder=False",
)
PEER_PACKAGES = ("litert-torch", "litert-converter", "ai-edge-quantizer", "torch", "transformers", "tensorflow")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to convert; the output's path is appended to `command`."""

    name: str
    recipe: str
    command: tuple[str, ...]
    repeats: int
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every run of a contender, and the bytes that a run wrote."""

    contender: Contender
    runs: list[ChildUsage]
    output_bytes: int


def contenders(options: argparse.Namespace, checkpoint: Path) -> list[Contender]:
    """Ours with and without the quality gate, and the peer if there is one."""
    found: list[Contender] = []
    peer = () if options.peer_python is None else (str(options.peer_python.parent / "litert-torch"), "export_hf")
    peer_versions = _peer_versions(options.peer_python) if peer else {}
    for recipe in options.recipes:
        ours = convert_command(checkpoint, "--quant", recipe, "-o")
        found.append(Contender("gemma-edge", recipe, tuple(ours), options.repeats))
        if options.gate:
            judged = tuple(argument for argument in ours if argument != "--no-verify")
            found.append(Contender("gemma-edge, with its quality gate", recipe, judged, options.repeats))
        for words in options.also:
            with_options = convert_command(checkpoint, "--quant", recipe, *shlex.split(words), "-o")
            found.append(Contender(f"gemma-edge {words}", recipe, tuple(with_options), options.repeats))
        if peer and recipe in PEER_RECIPES:
            command = (*peer, *PEER_FLAGS, f"--quantization_recipe={PEER_RECIPES[recipe]}", str(checkpoint))
            found.append(Contender("litert-torch", recipe, command, options.peer_repeats, peer_versions))
    return found


def measure(all_contenders: Sequence[Contender], scratch: Path, keep: Path | None = None) -> list[Outcome]:
    """Rounds of one run each, so that a slow minute of the machine affects all contenders alike."""
    outcomes = [Outcome(contender, [], 0) for contender in all_contenders]
    for turn in range(max(c.repeats for c in all_contenders)):
        for number, outcome in enumerate(outcomes):
            if turn >= outcome.contender.repeats:
                continue
            output, cache = scratch / "output", scratch / "cache"
            command = (*outcome.contender.command, str(output))
            run = run_child(command, scratch / "log.txt", {"GEMMA_EDGE_CACHE": str(cache.absolute())})
            shutil.rmtree(cache, ignore_errors=True)
            outcome.runs.append(run)
            outcomes[number] = Outcome(outcome.contender, outcome.runs, tree_bytes(output))
            contender = outcome.contender
            if keep is not None and contender.versions:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(output / "model.litertlm", keep / f"peer_{contender.recipe}.litertlm")
            shutil.rmtree(output)
            print(f"{contender.name} {contender.recipe}: {run.seconds:.2f} s, {run.peak_rss_bytes / 1e6:.0f} MB")
    return outcomes


def measured(outcome: Outcome, checkpoint: Path, name: str) -> Measured:
    """One contender's runs as a record."""
    contender = outcome.contender
    return Measured(
        model_record(checkpoint, name),
        CONVERT_TESTS,
        [conversion_figures(run, outcome.output_bytes) for run in outcome.runs],
        {"system": contender.name, "recipe": contender.recipe},
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """The median of each contender, and its least and most."""
    rows = []
    for outcome in outcomes:
        seconds = summary([run.seconds for run in outcome.runs])
        memory = summary([run.peak_rss_bytes for run in outcome.runs])
        contender = outcome.contender
        sizes = f"{outcome.output_bytes / 1e6:.0f}"
        times = text(seconds, ".1f"), text(memory, ".0f", 1e-6)
        rows.append([contender.recipe, contender.name, *times, sizes, str(len(outcome.runs))])
    return markdown(["recipe", "system", "seconds", "peak RSS, MB", "output, MB", "repeats"], rows)


def _peer_versions(python: Path) -> dict[str, str]:
    code = f"import importlib.metadata as m\nfor n in {PEER_PACKAGES!r}: print(n, m.version(n))"
    lines = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="0.43b", help="synthetic checkpoint (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", type=Path, help="that preset, written before; default: written for this run")
    parser.add_argument("--recipes", nargs="+", default=["int8", "int4"], help="default: int8 int4")
    parser.add_argument("--repeats", type=int, default=5, help="of ours (default: %(default)s)")
    parser.add_argument("--gate", action="store_true", help="measure convert with its quality gate too")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="measure convert with these options too: --also=--calibrate; may be given several times",
    )
    parser.add_argument("--peer-python", type=Path, help="a Python that has litert-torch")
    parser.add_argument("--peer-repeats", type=int, default=1, help="of the peer (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a directory that gets the peer's .litertlm files")
    parser.add_argument("--scratch", type=Path, help="where bundles are written and removed; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS / "convert.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("convert")
    with TemporaryDirectory(dir=options.scratch, prefix="bench_convert.") as name:
        scratch = Path(name)
        checkpoint = options.checkpoint
        if checkpoint is None:
            checkpoint = scratch / "checkpoint"
            # The published class: the peer supports per-layer embeddings in no other class.
            write_synthetic(checkpoint, options.preset, architecture=CONDITIONAL_GENERATION)
        outcomes = measure(contenders(options, checkpoint), scratch, options.keep)
        for outcome in outcomes:
            recorder.append(options.output, measured(outcome, checkpoint, options.preset), outcome.contender.versions)
    print(f"\n{this_device()}\nload average before: {recorder.load_before:.2f}\n\n{table(outcomes)}")


if __name__ == "__main__":
    main()
