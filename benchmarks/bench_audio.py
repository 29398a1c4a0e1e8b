"""Measures converting the audio tower at its published size, and encoding sound beside transformers: time and memory.

Every conversion and every series of runs is a separate process, measured by the kernel. Systems take turns. All
encoders have the same random weights and run warm, on the same mel frames, with the same number of threads. The error
is the root mean square of the difference from transformers in float32, relative to that of its features.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import (
    CONVERT_TESTS,
    ENCODE_TESTS,
    RESULTS,
    ChildUsage,
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
from converters.gemma3n.family import open_gemma3n
from converters.gemma3n.plan.audio import FRAMES_PER_SECOND, open_audio
from converters.gemma3n.recipes import built_in
from toolkit.base.layout import align_up
from toolkit.bundle.manifest import AUDIO_ENCODER
from toolkit.report.tables import markdown
from toolkit.results.statistics import summary

F32 = NDArray[np.float32]

PEERS = {"transformers float32": "float32", "transformers bfloat16": "bfloat16"}
MODULE = "bench_audio"
PACKAGES = ("ai-edge-litert", "numpy", "torch", "transformers")
BINS, FRAMES_PER_TOKEN = 128, 16


def convert(checkpoint: Path, output: Path, recipe: str, frames: int) -> None:
    """Convert both files of the group; runs in its own process."""
    output.mkdir()
    with open_gemma3n(checkpoint) as opened:
        open_audio(opened, built_in(recipe), [frames / FRAMES_PER_SECOND]).files.write(output)


def encode_litert(model: Path, frames: int, threads: int, repeats: int, features: Path) -> list[float]:
    """Seconds of each run after the first; writes the features."""
    from toolkit.runtime.backends.cpu import CpuBackend
    from toolkit.runtime.backends.interface import BackendOptions, ModelFile

    length = align_up(frames, FRAMES_PER_TOKEN)
    name = f"encode_{length}"
    runtime = CpuBackend().start(BackendOptions(threads, "memory"))
    opened = runtime.open(ModelFile(model, "0" * 64, model.stat().st_size), "large")
    signature = opened.signature(name)
    inputs = {key: opened.input_buffer(name, key) for key in signature.inputs}
    outputs = {key: opened.output_buffer(name, key) for key in signature.outputs}
    mel = np.zeros((1, length, BINS), np.float32)
    mel[0, :frames] = mel_frames(frames)
    inputs["src_inputs"].write(mel)
    inputs["mask"].write((np.arange(length) < frames)[None])
    seconds = timed_runs(opened.bind(name, inputs, outputs), repeats)
    np.save(features, outputs["features"].read()[0])
    runtime.close()
    return seconds


def encode_transformers(
    checkpoint: Path, dtype: str, frames: int, threads: int, repeats: int, features: Path
) -> list[float]:
    """Seconds of each run after the first; writes the features."""
    import torch
    from safetensors import safe_open
    from transformers import Gemma3nAudioConfig
    from transformers.initialization import no_init_weights
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder

    torch.set_num_threads(threads)
    config = json.loads((checkpoint / "config.json").read_text())["audio_config"]
    with no_init_weights():
        encoder = Gemma3nAudioEncoder(Gemma3nAudioConfig(**config)).to(getattr(torch, dtype)).train(False)
    prefix = "model.audio_tower."
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, not a mapping
        encoder.load_state_dict({name.removeprefix(prefix): file.get_tensor(name) for name in names}, strict=True)
    mel = torch.from_numpy(mel_frames(frames)[None]).to(getattr(torch, dtype))
    absent = torch.zeros((1, frames), dtype=torch.bool)
    with torch.inference_mode():
        seconds = timed_runs(lambda: encoder(mel, absent), repeats)
        np.save(features, encoder(mel, absent).last_hidden_state[0].float().numpy())
    return seconds


def mel_frames(frames: int) -> F32:
    """Noise that resembles log-mel features."""
    noise = np.random.default_rng(0).standard_normal((frames, BINS), np.float32)
    return noise * np.float32(2) - np.float32(5)


def execute(step: str, arguments: Sequence[str]) -> list[float]:
    """Run a step in the child process."""
    if step == "convert":
        checkpoint, output, recipe, frames = arguments
        convert(Path(checkpoint), Path(output), recipe, int(frames))
        return []
    *model, frames, threads, repeats, features = arguments
    how = (int(frames), int(threads), int(repeats), Path(features))
    if step == "litert":
        return encode_litert(Path(model[0]), *how)
    return encode_transformers(Path(model[0]), model[1], *how)


def measure(options: argparse.Namespace, scratch: Path) -> list[list[str]]:
    """Convert with each recipe, then let the encoders take turns; return the rows of the table."""
    checkpoint, log = scratch / "checkpoint", scratch / "log.txt"
    write_synthetic(checkpoint, "tiny", architecture=CONDITIONAL_GENERATION, audio=True)
    frames = (options.seconds * 16000 - 513) // 160 + 1  # transformers' feature extractor: windows of 513 every 160
    recorder, model = Recorder("audio", PACKAGES), model_record(checkpoint, "audio tower")
    how = (frames, options.threads, options.repeats)
    steps: dict[str, tuple[object, ...]] = {
        name: ("transformers", checkpoint, dtype, *how, scratch / f"{name}.npy") for name, dtype in PEERS.items()
    }
    converted: dict[str, ChildUsage] = {}
    for recipe in options.recipes:
        converted[recipe], _ = run_step(MODULE, ["convert", checkpoint, scratch / recipe, recipe, frames], log)
        steps[recipe] = ("litert", scratch / recipe / AUDIO_ENCODER, *how, scratch / f"{recipe}.npy")
    rows = []
    for name, series in take_turns(MODULE, steps, options.rounds, log).items():
        error = relative_error(scratch / f"{name}.npy", scratch / f"{next(iter(PEERS))}.npy")
        found = encoder_figures(series, error)
        conditions = {"system": name, "sound_s": str(options.seconds)}
        recorder.append(options.output, Measured(model, ENCODE_TESTS, found, conditions, threads=options.threads))
        cells = ["", "", ""]
        if name in converted:
            figures = conversion_figures(converted[name], tree_bytes(scratch / name))
            recorder.append(options.output, Measured(model, CONVERT_TESTS, [figures], conditions))
            cells = conversion_cells(converted[name], scratch / name)
        times = text(summary(series.seconds), ".3f")
        rows.append([name, *cells, times, f"{series.peak_rss_bytes / 1e6:.0f}", f"{error:.1e}"])
    print(f"\n{this_device()}\nload average before: {recorder.load_before:.2f}\n")
    return rows


def relative_error(features: Path, wanted: Path) -> float:
    """The root mean square of the difference, relative to that of the wanted features."""
    want = np.load(wanted)
    return float(np.sqrt(np.mean((np.load(features) - want) ** 2) / np.mean(want**2)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_audio", description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["f32", "audio-int8", "audio-int4"])
    parser.add_argument("--seconds", type=int, default=10, help="of sound (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each system (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs in a turn (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="where files are written and removed; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS / "audio.jsonl", help="default: %(default)s")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(execute(options.child[0], options.child[1:])))
        return
    with TemporaryDirectory(dir=options.scratch, prefix="bench_audio.") as name:
        rows = measure(options, Path(name))
    header = ["system", "convert, s", "its peak RSS, MB", "files, MB", "encode, s", "its peak RSS, MB", "error"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
