"""A checkpoint's tokenizer and chat template: where they are found, and what of them is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from paths import EXAMPLE

from converters.huggingface.prompt_files import read_prompt_files
from toolkit.base.errors import ToolkitError

TINY = EXAMPLE
VOCABULARY = 4096


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with a tokenizer and nothing else."""
    shutil.copyfile(TINY / "tokenizer.json", tmp_path / "tokenizer.json")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("tokenizer.json", b"", "JSON"),
        ("tokenizer.json", b"{}", "model vocab"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 1000000}}}', "token ids: found 1000000, wanted 0 to"),
        ("chat_template.jinja", b"{% if", "Jinja"),
        ("chat_template.jinja", b"\xff", "UTF-8"),
        ("tokenizer_config.json", b"{", "UTF-8"),
        ("tokenizer_config.json", b"\xff", "UTF-8"),
        ("tokenizer_config.json", b"[" * 100_000, "UTF-8"),
        ("chat_template.json", b'{"chat_template": "\\ud800"}', "UTF-8"),
    ],
)
def test_what_cannot_be_used_is_named(checkpoint: Path, name: str, data: bytes, says: str) -> None:
    (checkpoint / name).write_bytes(data)
    with pytest.raises(ToolkitError, match=says) as error:
        read_prompt_files(checkpoint, VOCABULARY)
    assert error.value.file is not None and Path(error.value.file).is_relative_to(checkpoint)


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_template_is_found_wherever_transformers_keeps_it(checkpoint: Path, name: str) -> None:
    (checkpoint / "tokenizer_config.json").write_text('{"chat_template": [{"name": "tool_use"}]}')
    # A number that strict JSON refuses: a text's length without a limit, as transformers writes it.
    stated = json.dumps({"model_max_length": 10**30, "chat_template": "{{ x }}"})
    (checkpoint / name).write_text("{{ x }}" if name.endswith(".jinja") else stated)
    assert read_prompt_files(checkpoint, VOCABULARY).template == "{{ x }}"


def test_a_checkpoint_may_have_no_template(checkpoint: Path) -> None:
    assert read_prompt_files(checkpoint, VOCABULARY).template is None
