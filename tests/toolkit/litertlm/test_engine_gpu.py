"""Exports in Google's engine on its GPU backend, which opens only what the GPU takes whole.

Prompts are short: behind some 350 tokens the engine itself is not deterministic on Vulkan in software.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from engine_process import Message, answers, scores
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.base.activations import ACTIVATIONS, Activations
from toolkit.litertlm.export import TARGETS, ExportOptions, Target, export_litertlm

pytestmark = [pytest.mark.lm, pytest.mark.gpu, pytest.mark.slow]

MEDIA = EXAMPLE / "samples"
MESSAGES: tuple[Message, ...] = (
    ("What colour is the sky?",),
    (MEDIA / "red-circle.png", "What is this?"),
    (MEDIA / "seven.wav", "What do you hear?"),
)


TEXTS = (
    ("Once upon a time", " there was a king of the land"),
    ("In the morning", " she went to the market with her brother"),
    ("The old man", " lived in a little house near the sea"),
    ("And the king said", " unto his servants, Go ye into the city"),
    ("There was a cat", " which could not walk and was very cold"),
    ("We will go", " up to the house of our fathers this day"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine_gpu") / "bundle"
    roles = ("text", "ple", "vision", "audio")
    convert(ConvertRequest(EXAMPLE, path, dict.fromkeys(roles, "f32"), context=512), gate=None)
    return path


@pytest.mark.full
@pytest.mark.parametrize(
    ("target", "activations"),
    [
        ("cpu", None),
        ("gpu", None),
        ("gpu", "fp16"),
    ],
)
def test_text_image_and_sound_are_answered_on_the_gpu_as_on_the_cpu(
    bundle: Path, tmp_path: Path, target: Target, activations: Activations | None
) -> None:
    file = tmp_path / "model.litertlm"
    export_litertlm(bundle, file, ExportOptions(target=target, activations=activations))
    wanted = answers(file, "cpu", MESSAGES, tokens=12)
    assert wanted == ["The sky is blue.", "a red circle", "seven"]
    assert answers(file, "gpu", MESSAGES, tokens=12) == wanted


@pytest.mark.full
def test_the_engine_computes_the_decoder_with_the_activations_that_its_section_asks_for(
    bundle: Path, tmp_path: Path
) -> None:
    files: dict[Activations, Path] = {"fp16": tmp_path / "fp16.litertlm", "fp32": tmp_path / "fp32.litertlm"}
    for kind, file in files.items():
        export_litertlm(bundle, file, ExportOptions(groups=("text",), activations=kind))
    wanted = scores(files["fp32"], "cpu", TEXTS)
    assert scores(files["fp32"], "gpu", TEXTS) == pytest.approx(wanted, rel=1e-5)
    rounded = scores(files["fp16"], "gpu", TEXTS)
    assert rounded == pytest.approx(wanted, rel=1e-2) and rounded != pytest.approx(wanted, rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(
    ("convolution", "messages", "wanted"),
    [
        (
            "model.audio_tower.subsample_conv_projection.conv_0.conv.weight",
            [(MEDIA / f"{word}.wav", "What do you hear?") for word in ("seven", "left")],
            ["seven", "left"],
        ),
        (
            "model.vision_tower.timm_model.blocks.0.0.conv_exp.weight",
            [(MEDIA / "red-circle.png", "What is this?")],
            ["a red circle"],
        ),
    ],
    ids=["audio", "vision"],
)
def test_the_engine_computes_an_encoder_with_the_activations_that_its_section_asks_for(
    convolution: str, messages: list[Message], wanted: list[str], tmp_path: Path
) -> None:
    """Its first convolution is too large for float16 here, which the norm behind it takes back in float32."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(EXAMPLE, checkpoint, copy_function=shutil.copy)
    multiply(checkpoint / "model.safetensors", convolution, 2**15)
    roles = dict.fromkeys(("text", "ple", "vision", "audio"), "f32")
    convert(ConvertRequest(checkpoint, tmp_path / "bundle", roles, context=512), gate=None)
    found = {}
    for kind in ACTIVATIONS:
        file = tmp_path / f"{kind}.litertlm"
        export_litertlm(tmp_path / "bundle", file, ExportOptions(activations=kind, target="gpu"))
        found[kind] = answers(file, "gpu", messages, tokens=12)
    assert found["fp32"] == wanted
    assert found["fp16"] != found["fp32"]


def multiply(file: Path, tensor: str, power_of_two: int) -> None:
    """Multiply a bfloat16 tensor of a .safetensors in place."""
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])[tensor]
    assert header["dtype"] == "BF16"
    begin, end = (8 + length + offset for offset in header["data_offsets"])
    numbers = np.frombuffer(data, np.uint16, (end - begin) // 2, begin)
    exponent = np.uint16(power_of_two.bit_length() - 1) << np.uint16(7)
    data[begin:end] = np.where(numbers & 0x7FFF, numbers + exponent, numbers).astype(np.uint16).tobytes()
    file.write_bytes(data)


@pytest.mark.full
def test_norms_that_are_composites_are_as_exact_in_float16(bundle: Path, tmp_path: Path) -> None:
    files = {target: tmp_path / f"{target}.litertlm" for target in TARGETS}
    for target, file in files.items():
        export_litertlm(bundle, file, ExportOptions(groups=("text",), target=target))
    wanted = np.array(scores(files["cpu"], "cpu", TEXTS))
    errors = {target: np.abs(scores(file, "gpu", TEXTS) - wanted).mean() for target, file in files.items()}
    assert 0 < errors["gpu"] < 2 * errors["cpu"] < 0.05, errors


@pytest.mark.full
def test_int4_in_blocks_is_computed_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    """Not exactly: a CPU quantises activations."""
    roles = {"text": "int4", "ple": "int4"}
    convert(ConvertRequest(EXAMPLE, tmp_path / "bundle", roles, groups=("text",), context=512), gate=None)
    file = tmp_path / "model.litertlm"
    export_litertlm(tmp_path / "bundle", file, ExportOptions(target="gpu"))
    assert scores(file, "gpu", TEXTS) == pytest.approx(scores(file, "cpu", TEXTS), rel=1e-2)
