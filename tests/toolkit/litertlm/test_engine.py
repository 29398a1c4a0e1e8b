"""Exports in Google's own engine: what it says is what transformers and our session say."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
from litert_lm_engine import LmEngine, open_engine
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.bundle.chat import Message
from toolkit.check import check
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

pytestmark = pytest.mark.lm

CHECKPOINT = EXAMPLE
CONTEXT, PREFILLS = 512, (8, 64)
NEW_TOKENS = 48

TEXT = (
    "It was a bright cold day in April, and the old man who kept the lighthouse had gone down to the harbour to look "
    "for his boat. The children followed him along the wall, for they had heard that he would tell a story to anyone "
    "who carried his nets. He did not speak until they had passed the last of the houses. Then he sat down upon a "
    "stone, lit his pipe, and looked at the sea for a long time. When I was a boy, he said, there was no light upon "
    "this coast, and every winter the ships were broken on the rocks. My father was a fisherman, and his father before "
    "him, and neither of them could read or write; but they knew the wind and the water as other men know their own "
    "hands. One night in the year of the great storm a ship came in from the north, and there was nobody to warn her. "
    "We stood upon the beach with our lanterns, and we shouted until our voices were gone, but the wind took every "
    "word. In the morning there was nothing left of her but timber, and one small dog that lay upon the sand."
)
WORD_COUNTS = (1, 2, 4, 8, 16, 32, 60, 100, 140, 185)


@functools.cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="gemma-edge-lm-"))


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    shutil.rmtree(scratch(), ignore_errors=True)
    scratch.cache_clear()


@functools.cache
def bundle_of(quant: str) -> Path:
    """A bundle of the tiny model in its largest and its smallest size."""
    path = scratch() / quant
    request = ConvertRequest(
        CHECKPOINT,
        path,
        {"text": quant, "ple": "f32" if quant == "f32" else "int8"},
        groups=("text",),
        sizes=("large", "small"),
        context=CONTEXT,
        prefill_sizes=PREFILLS,
    )
    convert(request, gate=None)
    return path


@functools.cache
def export_of(quant: str, size: str) -> Path:
    path = scratch() / f"{quant}-{size}.litertlm"
    export_litertlm(bundle_of(quant), path, ExportOptions(size))
    return path


@pytest.fixture(scope="module")
def large() -> Iterator[LmEngine]:
    with open_engine(export_of("f32", "large")) as engine:
        yield engine


def prompt(words: int) -> str:
    return " ".join(TEXT.split()[:words])


def prompt_ids(text: str) -> list[int]:
    bundle = Bundle(bundle_of("f32"))
    return [bundle.manifest.text.bos_token_id, *bundle.tokenizer().encode(text, special=False)]


def transformers_greedy(ids: list[int], count: int) -> list[int]:
    """What transformers goes on with in float32, without the stop token that may end it."""
    torch = pytest.importorskip("torch")
    model = oracle.hf_model(CHECKPOINT)
    stops = [1, 5]
    with torch.no_grad():
        output = model.generate(
            torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=stops, pad_token_id=0
        )
    answer: list[int] = output[0, len(ids) :].tolist()
    return answer[:-1] if answer[-1] in stops else answer


def session_greedy(bundle: Path, size: str, ids: list[int], count: int) -> list[int]:
    answer: list[int] = []
    with Session(Bundle(bundle), SessionSettings(size=size, threads=1, weight_cache="memory")) as session:
        stops = session.text.stop_token_ids
        logits = session.feed(ids)
        while len(answer) < count and (token := int(np.argmax(logits))) not in stops:
            answer.append(token)
            logits = session.decode(token)
    return answer


def test_the_prompts_reach_past_the_window_and_past_the_largest_prefill(large: LmEngine) -> None:
    lengths = [len(prompt_ids(prompt(words))) for words in WORD_COUNTS]
    assert lengths == sorted(set(lengths))
    assert lengths[0] < PREFILLS[0]
    assert lengths[-1] > 3 * PREFILLS[-1]
    assert lengths[-1] + NEW_TOKENS < CONTEXT


@pytest.mark.full
def test_an_export_of_each_recipe_and_size_has_no_fault() -> None:
    for quant in ("f32", "int8", "int4"):
        for size in ("large", "small"):
            assert check(export_of(quant, size)) == []


def test_the_engine_knows_the_models_start_and_stop_tokens(large: LmEngine) -> None:
    assert large.engine.bos_token_id == 2
    assert large.engine.eos_token_ids == [[1], [5]]


@pytest.mark.parametrize("words", WORD_COUNTS)
def test_the_engine_makes_the_same_tokens_of_a_text(large: LmEngine, words: int) -> None:
    assert [2, *large.engine.tokenize(prompt(words))] == prompt_ids(prompt(words))


@pytest.mark.reference
@pytest.mark.parametrize("words", WORD_COUNTS)
def test_the_engine_goes_on_as_transformers_does(large: LmEngine, words: int) -> None:
    expected = transformers_greedy(prompt_ids(prompt(words)), NEW_TOKENS)
    assert large.greedy(prompt(words), NEW_TOKENS) == large.pieces(expected)


@pytest.mark.reference
def test_the_engine_answers_in_the_models_chat_template(large: LmEngine) -> None:
    bundle = Bundle(bundle_of("f32"))
    tokenizer = bundle.tokenizer()
    message = "Tell me of the sea."
    text = bundle.chat_template(tokenizer).render([Message("user", message)])
    expected = transformers_greedy(tokenizer.encode(text, special=False), NEW_TOKENS)
    assert large.chat(message, NEW_TOKENS) == "".join(large.pieces(expected))


@pytest.mark.parametrize("words", [2, 100])
def test_a_smaller_size_is_exported_as_our_session_runs_it(words: int) -> None:
    expected = session_greedy(bundle_of("f32"), "small", prompt_ids(prompt(words)), NEW_TOKENS)
    with open_engine(export_of("f32", "small")) as small:
        assert small.greedy(prompt(words), NEW_TOKENS) == small.pieces(expected)


@pytest.mark.full
@pytest.mark.parametrize(
    ("size", "quant"),
    [
        ("large", "int4"),
        ("small", "int8"),
        pytest.param("large", "int8", marks=pytest.mark.full),
        pytest.param("small", "int4", marks=pytest.mark.full),
    ],
)
def test_a_quantised_export_generates_text(quant: str, size: str) -> None:
    with open_engine(export_of(quant, size)) as engine:
        assert "".join(engine.greedy(prompt(32), NEW_TOKENS)).strip()


def test_a_prompt_may_fill_the_context_but_for_one_position(large: LmEngine) -> None:
    ids = large.engine.tokenize(" ".join([TEXT] * 4))[: CONTEXT - 2]
    text = large.engine.detokenize(ids)
    assert len(prompt_ids(text)) == CONTEXT - 1
    assert len(large.greedy(text, NEW_TOKENS)) == 1


@pytest.mark.full
def test_the_engine_runs_a_file_with_hashes_of_its_chunks(monkeypatch: pytest.MonkeyPatch, large: LmEngine) -> None:
    """Files of 32 MiB and more have a section that the engine knows nothing of."""
    path = scratch() / "hashed.litertlm"
    monkeypatch.setattr("toolkit.base.files.CHUNK_BYTES", 1 << 20)
    export_litertlm(bundle_of("f32"), path, ExportOptions("large"))
    assert path.stat().st_size > export_of("f32", "large").stat().st_size
    assert check(path) == []
    text = prompt(WORD_COUNTS[3])
    with open_engine(path) as engine:
        assert engine.greedy(text, NEW_TOKENS) == large.greedy(text, NEW_TOKENS)
