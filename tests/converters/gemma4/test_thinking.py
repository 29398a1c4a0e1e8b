"""Thoughts of Gemma 4: asked for as in transformers, and kept apart from the answer and the conversation."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from gemma4_models import CONTROL, write_prompt_files, write_random_model
from paths import EXAMPLE

import gemma_edge
from converters.convert import convert
from converters.request import ConvertRequest
from gemma_edge import cli
from gemma_edge.api.model import Model
from toolkit.base.errors import UsageError
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.runtime.answer import Answer

pytestmark = pytest.mark.reference

SETTINGS = {"temperature": 2.0, "seed": 5, "top_k": 0, "top_p": 1.0, "max_tokens": 30}


def bundle_of(folder: Path, places: Mapping[str, int]) -> Path:
    checkpoint = write_random_model(folder / "checkpoint")
    write_prompt_files(checkpoint, places)
    convert(ConvertRequest(checkpoint, folder / "bundle", context=512, prefill_sizes=(8,)), gate=None)
    return folder / "bundle"


def opened(bundle: Path) -> Model:
    return gemma_edge.load(bundle, threads=1, weight_cache="memory")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, int]:
    """Ids that the random model draws once each: the tokens around a thought are to have them."""
    with opened(bundle_of(tmp_path_factory.mktemp("plain"), {})) as model:
        ids = model.generate("the cat", thinking=True, ignore_eos=True, **SETTINGS).token_ids  # type: ignore[arg-type]
    once = [i for i, token in enumerate(ids) if ids.count(token) == 1 and token > len(CONTROL) + 100]
    begin, end = next((a, b) for a in once for b in once if 1 < a < b - 5 < len(ids) - 9)
    return {"<|channel>": ids[begin], "<channel|>": ids[end]}


@pytest.fixture(scope="module")
def bundle(places: Mapping[str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("thinking"), places)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with opened(bundle) as model:
        yield model


@pytest.fixture(scope="module")
def answer(model: Model) -> Answer:
    """Text, a thought, and more text."""
    return model.generate("the cat", thinking=True, **SETTINGS)  # type: ignore[arg-type]


def test_a_thought_is_no_part_of_the_answer(
    model: Model, bundle: Path, answer: Answer, places: Mapping[str, int]
) -> None:
    tokenizer, ids = Tokenizer(bundle / "tokenizer.json"), list(answer.token_ids)
    begin, end = (ids.index(places[token]) for token in ("<|channel>", "<channel|>"))
    assert answer.text == tokenizer.decode(ids[:begin]) + tokenizer.decode(ids[end + 1 :])
    assert answer.thought == tokenizer.decode(ids[begin + 1 : end]).strip() and answer.thought
    pieces: dict[str, list[str]] = {"text": [], "thought": []}
    again = model.generate(
        "the cat", thinking=True, on_text=pieces["text"].append, on_thought=pieces["thought"].append,
        **SETTINGS,  # type: ignore[arg-type]
    )  # fmt: skip
    assert again.token_ids == answer.token_ids
    assert ("".join(pieces["text"]), "".join(pieces["thought"]).strip()) == (answer.text, answer.thought)


def test_a_conversation_goes_on_without_its_thoughts(model: Model, answer: Answer) -> None:
    chat = model.chat(thinking=True, **SETTINGS)  # type: ignore[arg-type]
    assert chat.send("the cat").thought == answer.thought
    assert [message.text for message in chat.history] == ["the cat", answer.text]
    plain = model.chat(temperature=0, max_tokens=1, thinking=True)
    plain.restore(chat.history)
    assert plain.send("and").prompt_tokens == chat.send("and").prompt_tokens


def test_a_prompt_asks_for_thoughts_as_in_transformers(model: Model, bundle: Path) -> None:
    tokenizer = Tokenizer(bundle / "tokenizer.json")
    asked = "<bos><|turn>system\n<|think|><turn|>\n<|turn>user\nthe cat<turn|>\n<|turn>model\n"
    unasked = "<bos><|turn>user\nthe cat<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    for thinking, text in ((True, asked), (False, unasked)):
        wanted = len(tokenizer.encode(text, special=False))
        assert model.generate("the cat", thinking=thinking, max_tokens=1).prompt_tokens == wanted


def test_the_command_shows_thoughts_apart(
    bundle: Path, answer: Answer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [str(bundle), "--thinking", "--weight-cache", "memory", "--threads", "1"]
    options += [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    assert cli.main(["run", *options, "-p", "the cat"]) == 0
    shown = capsys.readouterr()
    assert shown.out == answer.text + "\n" and str(answer.thought) in shown.err
    assert cli.main(["--quiet", "run", *options, "-p", "the cat"]) == 0
    hidden = capsys.readouterr()
    assert (hidden.out, hidden.err) == (answer.text + "\n", "")
    for verb in ("run", "chat"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
        assert cli.main(["--json", verb, *options, *(["-p", "-"] if verb == "run" else [])]) == 0
        value = json.loads(capsys.readouterr().out.splitlines()[0])
        assert (value["text"], value["thought"]) == (answer.text, answer.thought)


def test_a_model_without_thoughts_cannot_be_asked_for_them(tmp_path: Path, model: Model) -> None:
    with pytest.raises(UsageError, match="thinking: it cannot be used with a raw prompt"):
        model.generate("the cat", thinking=True, raw=True)
    convert(ConvertRequest(EXAMPLE, tmp_path / "bundle", context=64, prefill_sizes=(8,), groups=("text",)), gate=None)
    with gemma_edge.load(tmp_path / "bundle", threads=1, weight_cache="memory") as other:
        assert other.generate("the cat", max_tokens=2).thought is None
        with pytest.raises(UsageError, match="does not read enable_thinking"):
            other.generate("the cat", thinking=True)
        with pytest.raises(UsageError, match="does not read enable_thinking"):
            other.chat(thinking=True)
