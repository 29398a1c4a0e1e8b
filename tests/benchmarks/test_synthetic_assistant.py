"""The synthetic drafters: real enough to be put into a bundle, with the published number of weights."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.synthetic_assistant import assistant_config, write_assistant
from benchmarks.synthetic_gemma4 import write_synthetic
from converters.assistant import AssistantChoice
from converters.convert import convert
from converters.families import open_assistant
from converters.gemma4.assistant.checkpoint import Assistant
from converters.gemma4.assistant.tensors import assistant_tensors
from converters.request import ConvertRequest


def test_a_drafter_opens_with_its_config_and_fits_its_model(tmp_path: Path) -> None:
    write_assistant(tmp_path / "drafter", "tiny")
    write_assistant(tmp_path / "again", "tiny")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("drafter", "again"))
    assert one == other
    with closing(open_assistant(tmp_path / "drafter")) as opened:
        assert isinstance(opened, Assistant) and opened.config.target_hidden_size == 64
        assert opened.config.decoder.layers == assistant_config("tiny").decoder.layers
    write_synthetic(tmp_path / "tiny", "tiny")
    chosen = AssistantChoice(tmp_path / "drafter")
    request = ConvertRequest(tmp_path / "tiny", tmp_path / "bundle", context=64, prefill_sizes=(8,), drafter=chosen)
    assert "drafter" in convert(request, gate=None).manifest.groups


@pytest.mark.parametrize("preset", ["e2b", "e4b"])
def test_published_presets_have_about_the_published_number_of_weights(preset: str) -> None:
    count = sum(map(math.prod, assistant_tensors(assistant_config(preset)).values()))
    assert count == pytest.approx(78e6, rel=0.03)  # without clusters
