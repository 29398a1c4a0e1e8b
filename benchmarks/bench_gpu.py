"""Compares decode steps on a GPU with those on the CPU, in float32 and in float16, and counts the operators it takes.

The models have float weights: the trained example in three sizes, a random model with an irregular pattern of layers,
and a random model with the published widths and few layers. Their caches are filled with random numbers; each step is
at one position, with embeddings of one magnitude. The error is the largest difference of a logit, relative to the
largest logit.

Without a GPU, `PYTHONPATH=tests/support python -m benchmarks.bench_gpu --software` uses Vulkan in software.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import RESULTS, Measured, Recorder, model_record, this_device
from benchmarks.synthetic import TOKENIZER_SOURCE, text_config, write_synthetic
from converters.convert import convert
from converters.gemma.config import Attention, layer_kv_sources
from converters.gemma3n.config.text import LayerConfig, TextConfig
from converters.request import ConvertRequest
from toolkit.base.activations import ACTIVATIONS, Activations
from toolkit.bundle.manifest import TEXT_DECODER
from toolkit.report.tables import markdown
from toolkit.results.figures import FigureName
from toolkit.results.record import Delegation
from toolkit.runtime.backends.cpu.runtime import CpuRuntime
from toolkit.runtime.backends.gpu.remote import GpuRuntime
from toolkit.runtime.backends.interface import BackendOptions, Model, Runtime
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.kv_buffers import BLOCKED
from toolkit.tflite.reader import read_tflite

Numbers = Mapping[str, NDArray[np.generic]]

CONTEXT = 32_768
POSITIONS = (3, 1_000, 8_000, 32_000)
MAGNITUDES = (0.1, 1.0, 50.0, 1_000.0, 5_000.0)
TESTS: Mapping[str, FigureName] = {"error": "relative_error_fraction"}


@dataclass(frozen=True, slots=True)
class Case:
    """One decode step: the position of its token, and the factor of its embedding."""

    position: int = 3
    magnitude: float = 1.0


CASES = (*map(Case, POSITIONS), *(Case(magnitude=n) for n in MAGNITUDES if n != 1))


def odd() -> TextConfig:
    """A config whose pattern of layers and widths no published model has; the last three layers share caches."""
    config = text_config(
        hidden=88, layers=9, ffn=136, vocabulary=(3328, 3072), ple=24, heads=(6, 2), head_dim=24, shared=3, window=37
    )  # fmt: skip
    return with_layers(config, "fsffsssfs", shared=3, ffn=(136, 72, 200, 136, 88, 136, 264, 136, 72))


def published_widths() -> TextConfig:
    """A config with E2B's widths, four layers, of which two share caches, and a small vocabulary."""
    config = text_config(
        hidden=2048, layers=4, ffn=8192, vocabulary=(3328, 3072), ple=256, heads=(8, 2), head_dim=256, shared=2
    )  # fmt: skip
    return with_layers(config, "sfsf", shared=2, ffn=(8192,) * 4)


def with_layers(config: TextConfig, kinds: str, *, shared: int, ffn: Sequence[int]) -> TextConfig:
    """The config with these layers: s for each sliding one, f for each full one; the first third is sparse."""
    attention: list[Attention] = ["full" if kind == "f" else "sliding" for kind in kinds]
    sources = layer_kv_sources(attention, shared)
    sparse = len(kinds) // 3
    layers = [LayerConfig(attention[n], ffn[n], sources[n], 0.95 if n < sparse else 0.0) for n in range(len(kinds))]
    return replace(config, layers=tuple(layers))


def bundles(scratch: Path) -> Iterator[tuple[str, Bundle]]:
    """Each model in float32; the caller removes its files."""
    yield "example, trained", converted(TOKENIZER_SOURCE, scratch / "example", sizes=("large", "mid-wide", "small"))
    for name, config in (("odd layers", odd()), ("published widths", published_widths())):
        checkpoint = scratch / f"{name} checkpoint"
        write_synthetic(checkpoint, config)
        yield name, converted(checkpoint, scratch / name)


def converted(checkpoint: Path, output: Path, *, sizes: Sequence[str] = ()) -> Bundle:
    """Convert text in float32, without verifying."""
    roles = {"text": "f32", "ple": "f32"}
    request = ConvertRequest(
        checkpoint, output, roles, groups=("text",), context=CONTEXT, prefill_sizes=(16,), sizes=tuple(sizes)
    )
    convert(request, gate=None)
    return Bundle(output)


def inputs_of(model: Model, signature: str, case: Case) -> Numbers:
    """Random numbers for each input; equal for equal cases."""
    draw = np.random.default_rng(0)
    found: dict[str, NDArray[np.generic]] = {}
    for name, info in model.signature(signature).inputs.items():
        if name == "input_pos":
            found[name] = np.full(info.shape, case.position, np.int32)
        elif name == "mask":
            found[name] = np.where(np.arange(info.shape[-1]) <= case.position, np.float32(0), BLOCKED).reshape(
                info.shape
            )
        else:
            numbers = draw.standard_normal(info.shape, np.float32)
            found[name] = numbers * np.float32(case.magnitude) if name == "embeddings" else numbers
    return found


def logits(runtime: Runtime, bundle: Bundle, signature: str) -> list[NDArray[np.float64]]:
    """The logits of every case."""
    model = runtime.open(bundle.described_file(TEXT_DECODER), "large")
    info = model.signature(signature)
    inputs = {name: model.input_buffer(signature, name) for name in info.inputs}
    outputs = {name: inputs[name] if name in inputs else model.output_buffer(signature, name) for name in info.outputs}
    call = model.bind(signature, inputs, outputs)
    found = []
    for case in CASES:
        for name, numbers in inputs_of(model, signature, case).items():
            inputs[name].write(numbers)
        call()
        found.append(outputs["logits"].read().astype(np.float64))
    return found


def errors(bundle: Bundle, signature: str, activations: Activations) -> tuple[list[float], str]:
    """The error of every case on the GPU, and its adapter's name."""
    cpu, gpu = CpuRuntime(BackendOptions(2, "memory")), GpuRuntime(BackendOptions(2, "memory", activations))
    try:
        wanted, found = logits(cpu, bundle, signature), logits(gpu, bundle, signature)
        adapter = gpu.adapter or "unknown"
    finally:
        cpu.close()
        gpu.close()
    pairs = zip(found, wanted, strict=True)
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs], adapter


def measure(options: argparse.Namespace, scratch: Path) -> Iterator[list[str]]:
    """A row for each size of each model and each kind of activations."""
    recorder = Recorder("gpu")
    for name, bundle in bundles(scratch):
        graphs = read_tflite(bundle.path / TEXT_DECODER)
        for size in bundle.manifest.sizes:
            signature = bundle.manifest.size(size).decode
            nodes = len(graphs.graph(signature).operators)
            model = model_record(bundle.path, name, size=size, quantization="f32")
            for activations in ACTIVATIONS:
                found, adapter = errors(bundle, signature, activations)
                delegation = Delegation(nodes, nodes, f"LiteRT opened it with the GPU alone, adapter {adapter}")
                for case, error in zip(CASES, found, strict=True):
                    conditions = {
                        "activations": activations,
                        "position": str(case.position),
                        "magnitude": f"{case.magnitude:g}",
                    }
                    runs = [{TESTS["error"]: error}]
                    one = Measured(
                        model, TESTS, runs, conditions, context=CONTEXT, backend="gpu", delegation=delegation
                    )
                    recorder.append(options.output, one)
                row = [f"{name}, {size}", activations, f"{nodes} of {nodes}", *(f"{error:.1e}" for error in found)]
                print(" ".join(row), flush=True)
                yield row
    print(f"\n{this_device()}\nadapter: {adapter}\nload average before: {recorder.load_before:.2f}\n")


def use_software() -> None:
    """Make processes use the Vulkan driver that tests use."""
    from software_vulkan import find_driver

    driver = find_driver()
    if driver is None:
        raise SystemExit("no driver; python tests/support/software_vulkan.py downloads one")
    print(f"Vulkan: {driver}")
    os.environ.update(driver.environment)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu", description=__doc__)
    parser.add_argument("--software", action="store_true", help="use Vulkan in software, or the GPU that tests use")
    parser.add_argument("--scratch", type=Path, help="where files are written and removed; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.jsonl", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.software:
        use_software()
    with TemporaryDirectory(dir=options.scratch, prefix="bench_gpu.") as name:
        rows = list(measure(options, Path(name)))
    positions = (f"at {position:,}" for position in POSITIONS)
    magnitudes = (f"times {case.magnitude:g}" for case in CASES[len(POSITIONS) :])
    print(markdown(["model, size", "computes in", "delegated", *positions, *magnitudes], rows))


if __name__ == "__main__":
    main()
