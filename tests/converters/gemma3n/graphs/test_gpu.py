"""Every graph of a bundle on the GPU: delegated whole, with the right results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from gpu_inputs import signature_inputs
from gpu_process import Arrays, Outcome, run_graphs
from paths import EXAMPLE
from towers import write_multimodal_checkpoint

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.media.mel import log_mel
from toolkit.media.sound import load_sound

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

FILES = ("embedder", "text_decoder", "vision_encoder", "vision_adapter", "audio_encoder", "audio_adapter")
LONG = ("vision_encoder", "audio_encoder")
FIRST_IDS = {"vision_adapter": 3072, "audio_adapter": 3080}  # of the towers' own tokens
FLOAT = {"text": "f32", "ple": "f32", "vision": "f32", "audio": "f32"}
RECIPES = {
    "f32": FLOAT,
    "int8": dict.fromkeys(FLOAT, "int8"),
    "int4-channel": {**FLOAT, "text": "int4-channel"},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Random weights with rings, context buckets and both towers, in the recipes of a name."""
    directory = tmp_path_factory.mktemp("gpu")
    checkpoint = write_multimodal_checkpoint(directory / "checkpoint")

    def made(name: str) -> Path:
        path = directory / name
        if not path.exists():
            convert(ConvertRequest(checkpoint, path, RECIPES[name], context=160, prefill_sizes=(4, 16)), gate=None)
        return path

    return made


def largest_error(found: Outcome, wanted: Outcome) -> float:
    """The largest difference over all outputs of all signatures, each as a share of its largest value."""
    assert found.outputs.keys() == wanted.outputs.keys()
    errors = [
        np.abs(value.astype(np.float64) - found.outputs[name][key]).max() / max(np.abs(value).max(), 1e-30)
        for name, outputs in wanted.outputs.items()
        for key, value in outputs.items()
    ]
    return float(max(errors))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in LONG else name for name in FILES]
)
def test_every_float_graph_runs_on_the_gpu_alone_as_on_the_cpu(bundle: Callable[[str], Path], name: str) -> None:
    path = bundle("f32") / f"{name}.tflite"
    inputs = signature_inputs(path, first_id=FIRST_IDS.get(name, 0))
    found = run_graphs(path, inputs, "gpu-f32")
    assert found.whole, found.log
    assert largest_error(found, run_graphs(path, inputs, "cpu")) < 2e-4


@pytest.mark.full
@pytest.mark.parametrize(
    ("recipe", "name"), [*(("int8", name) for name in FILES), ("int4-channel", FILES[0]), ("int4-channel", FILES[1])]
)
def test_every_quantised_graph_runs_on_the_gpu_alone(bundle: Callable[[str], Path], recipe: str, name: str) -> None:
    """Its numbers are not the CPU's, which quantises activations too."""
    path = bundle(recipe) / f"{name}.tflite"
    found = run_graphs(path, signature_inputs(path, first_id=FIRST_IDS.get(name, 0)), "gpu-f32")
    assert found.whole, found.log
    floats = [v for outputs in found.outputs.values() for v in outputs.values() if v.dtype.kind == "f"]
    assert floats and all(np.isfinite(values).all() for values in floats)


@pytest.mark.full
@pytest.mark.parametrize(("name", "signature"), [("vision_adapter", "adapt"), ("audio_adapter", "adapt_112")])
def test_in_float16_an_adapter_is_right_at_every_magnitude(tmp_path: Path, name: str, signature: str) -> None:
    group = name.split("_")[0]
    roles = dict.fromkeys(("text", "ple", group), "f32")
    convert(ConvertRequest(EXAMPLE, tmp_path / "bundle", roles, groups=("text", group), context=512), gate=None)
    path = tmp_path / "bundle" / f"{name}.tflite"
    magnitudes = (0.1, 1.0, 100.0, 5_000.0)
    inputs = signature_inputs(path, first_id=FIRST_IDS[name])[signature]
    steps = {
        f"{signature}@times {n:g}": {**inputs, "features": (inputs["features"].astype(np.float32) * np.float32(n))}
        for n in magnitudes
    }
    found, wanted = run_graphs(path, steps, "gpu-f16"), run_graphs(path, steps, "cpu")
    assert found.whole, found.log
    assert largest_error(found, wanted) < 1e-2


@pytest.mark.full
def test_in_float16_the_audio_encoder_of_the_example_is_right(tmp_path: Path) -> None:
    """Its norms are not those of larger activations, but its running norm sums thousands of squares."""
    roles = {"text": "f32", "ple": "f32", "audio": "f32"}
    convert(ConvertRequest(EXAMPLE, tmp_path / "bundle", roles, groups=("text", "audio"), context=512), gate=None)
    path = tmp_path / "bundle" / "audio_encoder.tflite"
    steps = {}
    for word in ("seven", "left"):
        mel, mask = log_mel(load_sound(EXAMPLE / "samples" / f"{word}.wav"))
        room = ((0, 112 - len(mel)), (0, 0))
        sound, present = np.pad(mel, room)[None], np.pad(mask, room[0])[None]
        steps[f"encode_112@{word}"] = {"src_inputs": sound, "mask": present}
    found, wanted = run_graphs(path, steps, "gpu-f16"), run_graphs(path, steps, "cpu")
    assert found.whole, found.log
    for name, outputs in wanted.outputs.items():
        error = np.abs(found.outputs[name]["features"] - outputs["features"]).max() / np.abs(outputs["features"]).max()
        assert error < 1e-2, name


def trained_decoder(directory: Path, context: int) -> Path:
    """The example in float32."""
    directory.mkdir(exist_ok=True)
    roles = {"text": "f32", "ple": "f32"}
    request = ConvertRequest(
        EXAMPLE, directory / "bundle", roles, groups=("text",), context=context, prefill_sizes=(16,)
    )
    convert(request, gate=None)
    return directory / "bundle" / "text_decoder.tflite"


def logit_errors(model: Path, inputs: Mapping[str, Arrays]) -> list[float]:
    """Of each decode step in float16: the largest error, as a share of the largest logit on the CPU."""
    found, wanted = run_graphs(model, inputs, "gpu-f16"), run_graphs(model, inputs, "cpu")
    assert found.whole, found.log
    errors = []
    for name, outputs in wanted.outputs.items():
        logits = outputs["logits"].astype(np.float64)
        errors.append(float(np.abs(found.outputs[name]["logits"] - logits).max() / np.abs(logits).max()))
        print(name, f"{errors[-1]:.1e}")
    return errors


@pytest.mark.full
def test_in_float16_a_step_is_right_at_every_position(tmp_path: Path) -> None:
    """Its error grows with the number of random keys: 4e-3 at position 3, 1.2e-2 at 32,000."""
    for context, positions in ((2_048, (3, 1_000, 2_000)), (32_768, (32_000,))):
        model = trained_decoder(tmp_path / str(context), context)
        steps = {f"decode@{n} of {context}": signature_inputs(model, position=n)["decode"] for n in positions}
        assert max(logit_errors(model, steps)) < 2e-2


@pytest.mark.full
def test_in_float16_a_step_is_right_at_every_magnitude(tmp_path: Path) -> None:
    model = trained_decoder(tmp_path, 512)
    magnitudes = (0.1, 50.0, 1_000.0, 5_000.0)
    steps = {f"decode@times {n:g}": signature_inputs(model, magnitude=n)["decode"] for n in magnitudes}
    assert max(logit_errors(model, steps)) < 1e-2
