"""Exports in Google's engine on its GPU backend, which opens only what the GPU takes whole.

Prompts are short: behind some 350 tokens the engine itself is not deterministic on Vulkan in software.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_process import Message, answers, score
from paths import EXAMPLE

from converters.convert import ConvertRequest, convert
from toolkit.base.activations import Activations
from toolkit.litertlm.export import ExportOptions, export_litertlm

pytestmark = [pytest.mark.lm, pytest.mark.gpu, pytest.mark.slow]

MEDIA = EXAMPLE / "samples"
MESSAGES: tuple[Message, ...] = (
    ("Tell me a story.",),
    (MEDIA / "red-circle.png", "What is this?"),
    (MEDIA / "seven.wav", "What do you hear?"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine_gpu") / "bundle"
    roles = ("text", "ple", "vision", "audio")
    convert(ConvertRequest(EXAMPLE, path, dict.fromkeys(roles, "f32"), context=512), gate=None)
    return path


def test_text_image_and_sound_are_answered_on_the_gpu_as_on_the_cpu(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.litertlm"
    export_litertlm(bundle, file, ExportOptions())
    wanted = answers(file, "cpu", MESSAGES, tokens=12)
    assert wanted[1] == "a red circle" and wanted[2] == "seven", wanted
    assert answers(file, "gpu", MESSAGES, tokens=12) == wanted


def test_the_engine_computes_the_decoder_with_the_activations_that_its_section_asks_for(
    bundle: Path, tmp_path: Path
) -> None:
    texts = ("Once upon a time", " there was a king of the land")
    files: dict[Activations, Path] = {"fp16": tmp_path / "fp16.litertlm", "fp32": tmp_path / "fp32.litertlm"}
    for kind, file in files.items():
        export_litertlm(bundle, file, ExportOptions(groups=("text",), activations=kind))
    wanted = score(files["fp32"], "cpu", *texts)
    assert score(files["fp32"], "gpu", *texts) == pytest.approx(wanted, rel=1e-5)
    rounded = score(files["fp16"], "gpu", *texts)
    assert rounded == pytest.approx(wanted, rel=1e-2) and rounded != pytest.approx(wanted, rel=1e-5)


def test_the_engine_computes_the_audio_encoder_with_the_activations_that_its_section_asks_for(
    bundle: Path, tmp_path: Path
) -> None:
    """In float16 the encoder's sums are infinite, and every sound gets the same answer."""
    file = tmp_path / "fp16.litertlm"
    export_litertlm(bundle, file, ExportOptions(activations="fp16"))
    sounds = [(MEDIA / f"{word}.wav", "What do you hear?") for word in ("seven", "left")]
    first, second = answers(file, "gpu", sounds, tokens=12)
    assert first == second
