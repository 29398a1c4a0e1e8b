"""Exports of Gemma 4: the engine's own type for it, its template, and its greedy text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gemma4_models import write_random_model
from gemma4_oracle import hf_greedy
from litert_lm_engine import LmEngine, open_engine

from converters.behaviour import bundle_errors
from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.bundle.chat import Message
from toolkit.bundle.thoughts import Channel
from toolkit.check import check
from toolkit.litertlm.export import export_litertlm
from toolkit.litertlm.gemma4 import CALLS
from toolkit.litertlm.header import read_header
from toolkit.litertlm.reader import read_llm_metadata
from toolkit.litertlm.schema import LlmMetadata
from toolkit.runtime.bundle import Bundle

pytestmark = pytest.mark.reference

PROMPTS = ("the cat", "the cat and the cat and the cat sat", "the cat " * 20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("gemma4") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    path = checkpoint.parent / "bundle"
    convert(ConvertRequest(checkpoint, path, {"text": "f32"}, context=512, prefill_sizes=(8, 64)), gate=None)
    return path


@pytest.fixture(scope="module")
def exported(bundle: Path) -> Path:
    path = bundle.parent / "model.litertlm"
    assert export_litertlm(bundle, path).model_type == "gemma4"
    return path


@pytest.fixture(scope="module")
def engine(exported: Path) -> Iterator[LmEngine]:
    with open_engine(exported) as engine:
        yield engine


def metadata_of(path: Path) -> LlmMetadata:
    metadata = read_llm_metadata(path, read_header(path))
    assert metadata is not None
    return metadata


def test_the_file_says_how_calls_and_thoughts_are_written(exported: Path) -> None:
    metadata = metadata_of(exported)
    assert metadata.model_type == "gemma4"
    assert metadata.supports_function_calling and metadata.supports_thinking
    assert metadata.calls == CALLS
    assert metadata.thoughts == Channel("thought", "<|channel>thought\n", "<channel|>")
    assert check(exported) == []


def test_the_bundles_prompts_are_those_of_transformers(bundle: Path, checkpoint: Path) -> None:
    assert bundle_errors(bundle, checkpoint) == []
    assert check(bundle) == []


def test_a_template_without_thoughts_and_tools_offers_neither(checkpoint: Path, tmp_path: Path) -> None:
    plain = write_random_model(tmp_path / "plain")
    template = "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}"
    (plain / "chat_template.jinja").write_text(template)
    convert(ConvertRequest(plain, tmp_path / "bundle", context=64, prefill_sizes=(8,)), gate=None)
    export_litertlm(tmp_path / "bundle", tmp_path / "model.litertlm")
    metadata = metadata_of(tmp_path / "model.litertlm")
    assert not metadata.supports_function_calling and not metadata.supports_thinking
    assert metadata.thoughts is None


@pytest.mark.lm
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_the_engine_goes_on_as_transformers_does(engine: LmEngine, bundle: Path, checkpoint: Path, prompt: str) -> None:
    ids = [2, *Bundle(bundle).tokenizer().encode(prompt, special=False)]
    expected = hf_greedy(checkpoint, ids, 32)
    stops = [index for index, token in enumerate(expected) if token in (1, 5)]
    expected = expected[: stops[0]] if stops else expected
    # The engine gives no text for control tokens.
    pieces = list(filter(None, engine.pieces(expected)))
    assert len(pieces) > 5
    assert list(filter(None, engine.greedy(prompt, len(expected)))) == pieces


@pytest.mark.lm
def test_the_engine_answers_in_the_models_chat_template(engine: LmEngine, bundle: Path, checkpoint: Path) -> None:
    opened = Bundle(bundle)
    tokenizer = opened.tokenizer()
    text = opened.chat_template(tokenizer).render([Message("user", "the cat")])
    expected = hf_greedy(checkpoint, tokenizer.encode(text, special=False), 24)
    stops = [index for index, token in enumerate(expected) if token in (1, 5)]
    assert engine.chat("the cat", 24) == "".join(engine.pieces(expected[: stops[0]] if stops else expected))
