"""Measures the memory and time of converting the towers at their published size, and of answering with them.

A checkpoint with the published towers beside a tiny language model, all with random weights, is converted with every
group. Then a prompt with one image and ten seconds of sound is answered several times, each in its own process: the
first packs the weights for this CPU, later ones find them in the weight cache. Peaks are the kernel's, by stage:

  python -m benchmarks.bench_towers --scratch DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile  # type: ignore[import-untyped]
from PIL import Image

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
)
from benchmarks.synthetic import write_synthetic
from converters.gemma3n.config.text import CONDITIONAL_GENERATION
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Figures, ModelRecord

SECONDS_OF_SOUND = 10
STAGES = ("load", "vision", "audio", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One conversion, and the objects of `run --json`, the first with a cold weight cache."""

    model: ModelRecord
    convert: ChildUsage
    group_bytes: dict[str, int]
    runs: tuple[dict[str, Any], ...]


def measure(scratch: Path, vision: str, audio: str, repeats: int) -> Outcome:
    """Convert and answer; all files are in `scratch`, an empty directory."""
    checkpoint, bundle, log = scratch / "checkpoint", scratch / "bundle", scratch / "log.txt"
    write_synthetic(checkpoint, "tiny", architecture=CONDITIONAL_GENERATION, vision=True, audio=True)
    toolkit = [sys.executable, "-m", "gemma_edge", "-q", "--no-progress"]
    quants = ["--vision-quant", vision, "--audio-quant", audio]
    convert = run_child(convert_command(checkpoint, *quants, "-o", str(bundle)), log)
    shutil.rmtree(checkpoint)
    groups = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["groups"]
    media = ["--image", str(_picture(scratch)), "--audio", str(_sound(scratch))]
    question = ["run", str(bundle), "-p", "See and hear", "-n", "2", "--json"]
    question += ["--weight-cache", str(scratch / "packed")]
    runs = []
    for _ in range(repeats):
        run_child([*toolkit, *question, *media], log)
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        runs.append(json.loads(lines[-1]))
    return Outcome(
        model_record(bundle, "towers"), convert, {name: group["bytes"] for name, group in groups.items()}, tuple(runs)
    )


def _picture(directory: Path) -> Path:
    path = directory / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)).save(path)
    return path


def _sound(directory: Path) -> Path:
    path = directory / "sound.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16_000 * SECONDS_OF_SOUND), 16_000)
    return path


def measured(outcome: Outcome, vision: str, audio: str) -> Iterator[Measured]:
    """The conversion and the runs as records."""
    conditions = {"vision": vision, "audio": audio, "sound_s": str(SECONDS_OF_SOUND)}
    converted = conversion_figures(outcome.convert, sum(outcome.group_bytes.values()))
    yield Measured(outcome.model, CONVERT_TESTS, [converted], conditions)
    stages: dict[str, FigureName] = {
        "load": "load_peak_bytes",
        "vision": "vision_peak_bytes",
        "audio": "audio_peak_bytes",
        "prefill": "prefill_peak_bytes",
        "decode": "decode_peak_bytes",
    }
    runs: list[Figures] = [
        {
            **{figure: run["memory"]["peaks"][stage] for stage, figure in stages.items()},
            "rss_bytes": run["memory"]["rss_bytes"],
            "media_s": run["media_s"],
        }
        for run in outcome.runs
    ]
    yield Measured(outcome.model, {**stages, "media": "media_s", "end": "rss_bytes"}, runs, conditions)


def table(outcome: Outcome) -> str:
    """MB and seconds."""
    convert = f"{outcome.convert.peak_rss_bytes / 1e6:.0f}"
    rows = [["convert", convert, *["-"] * len(STAGES), f"{outcome.convert.seconds:.0f}"]]
    for number, run in enumerate(outcome.runs):
        peaks = [f"{run['memory']['peaks'][stage] / 1e6:.0f}" for stage in STAGES]
        name = "run, packing weights" if number == 0 else "run"
        rows.append([name, f"{run['peak_rss_bytes'] / 1e6:.0f}", *peaks, f"{run['media_s']:.1f}"])
    return markdown(["", "peak RSS, MB", *STAGES, "convert, or image and sound, s"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_towers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--vision-quant", default="int8", help="default: %(default)s")
    parser.add_argument("--audio-quant", default="int8", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=2, help="runs (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where 5 GB fit; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS / "towers.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    recorder = Recorder("towers")
    with TemporaryDirectory(prefix="gemma-edge-towers-", dir=options.scratch) as scratch:
        outcome = measure(Path(scratch), options.vision_quant, options.audio_quant, options.repeats)
    for found in measured(outcome, options.vision_quant, options.audio_quant):
        recorder.append(options.output, found)
    print(table(outcome))


if __name__ == "__main__":
    main()
