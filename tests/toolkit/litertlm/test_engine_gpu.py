"""Exports in Google's engine on its GPU backend, which opens only what the GPU takes whole.

Prompts are short: behind some 350 tokens the engine itself is not deterministic on Vulkan in software.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_process import Message, answers
from paths import EXAMPLE

from converters.convert import ConvertRequest, convert
from toolkit.litertlm.export import ExportOptions, export_litertlm

pytestmark = [pytest.mark.lm, pytest.mark.gpu, pytest.mark.slow]

MEDIA = EXAMPLE / "samples"
MESSAGES: tuple[Message, ...] = (
    ("Tell me a story.",),
    (MEDIA / "red-circle.png", "What is this?"),
    (MEDIA / "seven.wav", "What do you hear?"),
)


def test_text_image_and_sound_are_answered_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    roles = ("text", "ple", "vision", "audio")
    request = ConvertRequest(EXAMPLE, tmp_path / "bundle", dict.fromkeys(roles, "f32"), context=512)
    convert(request, gate=None)
    file = tmp_path / "model.litertlm"
    export_litertlm(tmp_path / "bundle", file, ExportOptions())
    wanted = answers(file, "cpu", MESSAGES, tokens=12)
    assert wanted[1] == "a red circle" and wanted[2] == "seven", wanted
    assert answers(file, "gpu", MESSAGES, tokens=12) == wanted
