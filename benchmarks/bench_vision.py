"""Measures converting the vision tower at its published size, and encoding an image beside timm: time and memory.

Every conversion and every series of images is a separate process, measured by the kernel. Systems take turns. Both
encoders run warm on the same image with the same number of threads; timm's tower, in float32, has other random weights.
timm needs torch and torchvision, for which the tests have stand-ins.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measure import (
    CONVERT_TESTS,
    ENCODE_TESTS,
    RESULTS,
    Measured,
    Recorder,
    conversion_cells,
    conversion_figures,
    encoder_figures,
    model_record,
    run_step,
    take_turns,
    text,
    this_device,
    timed_runs,
    tree_bytes,
)
from benchmarks.synthetic import write_synthetic
from converters.gemma3n.config.text import CONDITIONAL_GENERATION
from toolkit.bundle.manifest import VISION_ENCODER
from toolkit.report.tables import markdown
from toolkit.results.statistics import summary

PEER = "timm float32"
MODULE = "bench_vision"
PACKAGES = ("ai-edge-litert", "numpy", "timm", "torch")


def convert(checkpoint: Path, output: Path, recipe: str, size: int) -> None:
    """Convert both files of the group; runs in its own process."""
    from converters.gemma3n.family import open_gemma3n
    from converters.gemma3n.plan.vision import open_vision
    from converters.gemma3n.recipes import built_in

    output.mkdir()
    with open_gemma3n(checkpoint) as opened:
        open_vision(opened, built_in(recipe), size).files.write(output)


def encode_litert(model: Path, size: int, threads: int, repeats: int) -> list[float]:
    """Seconds of each image after the first."""
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    encode = Interpreter(str(model), num_threads=threads).get_signature_runner("encode")
    image = _image(size)
    return timed_runs(lambda: encode(images=image), repeats)


def encode_timm(size: int, threads: int, repeats: int) -> list[float]:
    """Seconds of each image after the first."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
    import torch
    from timm_oracle import import_timm

    torch.set_num_threads(threads)
    tower = import_timm().create_model("mobilenetv5_300m_enc", pretrained=False).train(False)
    image = torch.from_numpy(_image(size)).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        return timed_runs(lambda: tower(image), repeats)


def _image(size: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, size, size, 3), np.float32)


def execute(step: str, arguments: Sequence[str]) -> list[float]:
    """Run a step in the child process."""
    if step == "convert":
        checkpoint, output, recipe, size = arguments
        convert(Path(checkpoint), Path(output), recipe, int(size))
        return []
    *model, size, threads, repeats = arguments
    if step == "timm":
        return encode_timm(int(size), int(threads), int(repeats))
    return encode_litert(Path(model[0]), int(size), int(threads), int(repeats))


def measure(options: argparse.Namespace, scratch: Path) -> list[list[str]]:
    """Convert with each recipe, then let the encoders take turns; return the rows of the table."""
    checkpoint, log = scratch / "checkpoint", scratch / "log.txt"
    write_synthetic(checkpoint, "tiny", architecture=CONDITIONAL_GENERATION, vision=True)
    recorder, model = Recorder("vision", PACKAGES), model_record(checkpoint, "vision tower")
    size, how = options.size, (options.size, options.threads, options.repeats)
    converted, steps = {}, {}
    for recipe in options.recipes:
        converted[recipe], _ = run_step(MODULE, ["convert", checkpoint, scratch / recipe, recipe, size], log)
        steps[recipe] = ("litert", scratch / recipe / VISION_ENCODER, *how)
    rows = []
    for name, series in take_turns(MODULE, {**steps, PEER: ("timm", *how)}, options.rounds, log).items():
        found = encoder_figures(series)
        conditions = {"system": name, "pixels": str(size)}
        recorder.append(options.output, Measured(model, ENCODE_TESTS, found, conditions, threads=options.threads))
        cells = ["", "", ""]
        if name in converted:
            figures = conversion_figures(converted[name], tree_bytes(scratch / name))
            recorder.append(options.output, Measured(model, CONVERT_TESTS, [figures], conditions))
            cells = conversion_cells(converted[name], scratch / name)
        rows.append([name, *cells, text(summary(series.seconds), ".3f"), f"{series.peak_rss_bytes / 1e6:.0f}"])
    print(f"\n{this_device()}\nload average before: {recorder.load_before:.2f}\n")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_vision", description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["f32", "vision-f16", "vision-int8"])
    parser.add_argument("--size", type=int, default=768, help="pixels (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each system (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="images in a turn (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where files are written and removed; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS / "vision.jsonl", help="default: %(default)s")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(execute(options.child[0], options.child[1:])))
        return
    with TemporaryDirectory(dir=options.scratch, prefix="bench_vision.") as name:
        rows = measure(options, Path(name))
    header = ["system", "convert, s", "its peak RSS, MB", "files, MB", "encode, s", "its peak RSS, MB"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
