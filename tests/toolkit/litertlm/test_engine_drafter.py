"""An export with a drafter in Google's own engine: with drafts it says what it says without.

With drafts, the engine may pass the wanted number of tokens by the drafts of its last step.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from litert_lm_engine import LmEngine, open_engine
from paths import EXAMPLE

import gemma_edge
from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.bundle.lock import DrafterSettings
from toolkit.drafting.make import Drafting
from toolkit.litertlm.export import export_litertlm
from toolkit.runtime.session import SessionSettings

pytestmark = pytest.mark.lm

TEXT = "the old man said that he had seen a ship on the sea and it was red in the morning when the rain came"
WORDS = TEXT.split()
PROMPTS = [" ".join(WORDS[first : first + 1 + first % 7]) for first in range(len(WORDS))]
PROMPTS += [f"Tell me about {word}" for word in WORDS] + [f"{word} {word} {word}" for word in WORDS]
TOKENS = 32


def export(folder: Path, tokens: int) -> Path:
    """The example in float32, with a drafter fitted to so many of its tokens, however good it is."""
    request = ConvertRequest(
        EXAMPLE,
        folder / "bundle",
        {"text": "f32", "ple": "f32"},
        groups=("text",),
        context=256,
        prefill_sizes=(8, 64),
        drafter=DrafterSettings(tokens=tokens, hidden_units=64),
    )
    drafting = Drafting(SessionSettings(threads=2, weight_cache="memory"), least_accepted=0.0)
    convert(request, gate=None, drafting=drafting)
    export_litertlm(folder / "bundle", folder / "model.litertlm")
    return folder / "model.litertlm"


def texts(engine: LmEngine, prompts: list[str]) -> list[str]:
    return ["".join(engine.greedy(prompt, TOKENS)) for prompt in prompts]


def require_same(file: Path, prompts: list[str]) -> None:
    with open_engine(file) as engine:
        plain = texts(engine, prompts)
    with open_engine(file, drafts=True) as engine:
        drafted = texts(engine, prompts)
    assert [text[: len(other)] for text, other in zip(drafted, plain, strict=True)] == plain
    assert len(set(plain)) > len(prompts) // 2


@pytest.mark.slow
def test_drafts_that_are_mostly_wrong_change_no_text(tmp_path: Path) -> None:
    file = export(tmp_path, 600)
    require_same(file, PROMPTS[4:8])


@pytest.mark.full
def test_fifty_prompts_have_the_same_text_with_drafts(tmp_path: Path) -> None:
    file = export(tmp_path, 4096)
    require_same(file, PROMPTS[:50])
    with gemma_edge.load(tmp_path / "bundle", threads=2, weight_cache="memory") as model:
        for prompt in PROMPTS[:50]:
            plain = model.generate(prompt, max_tokens=TOKENS, temperature=0.0)
            drafted = model.generate(prompt, max_tokens=TOKENS, temperature=0.0, speculative=True)
            assert drafted.text == plain.text
