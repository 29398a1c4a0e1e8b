"""`gemma-edge demo --model gemma4`, and what the tiny Gemma 4 says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from litert_lm_engine import open_engine
from paths import GEMMA_4_EXAMPLE

import gemma_edge
from gemma_edge.cli import main
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.tokenizer import Tokenizer

QUESTION, COLOUR = "What colour is the sky?", "The sky is blue."
STORY = "Once upon a time"


@pytest.fixture(autouse=True)
def _weight_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "weight-cache"))


@pytest.mark.slow
def test_the_tiny_gemma_4_goes_the_whole_way_and_thinks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "tiny"
    assert main(["demo", "--model", "gemma4", "-o", str(bundle), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(GEMMA_4_EXAMPLE)
    assert result["verify"]["passed"] is True and result["check"] == {"ok": True}
    assert list(result["answers"]) == ["full"] and result["media"] == {}
    assert result["litertlm_bytes"] > 10_000_000
    said = {turn["user"]: turn["text"] for turn in result["chat"]}
    assert "Ruth" in said["What is your name?"]
    who, fell = said["Who fell?"].removesuffix(".").split()
    assert fell == "fell" and who in said["Tell me a story about a race."]
    assert len(said) == 4 and all(turn["thought"] for turn in result["chat"])
    with gemma_edge.load(bundle, weight_cache="memory") as model:
        assert model.generate(QUESTION, temperature=0).text == COLOUR


@pytest.mark.slow
def test_an_older_bundle_stays_if_the_new_one_fails_its_gate(
    random_checkpoint: Path, random_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = Path(shutil.copytree(random_bundle, tmp_path / "b"))
    assert main(["demo", "--checkpoint", str(random_checkpoint), "-o", str(older)]) == 1
    assert "choose a more precise --quant" in capsys.readouterr().err
    assert read_manifest(older) == read_manifest(random_bundle)
    assert {path.name for path in tmp_path.iterdir()} <= {"weight-cache", "b"}


def test_a_model_or_a_checkpoint_can_be_chosen_but_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", "gemma4", "--checkpoint", "x"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert main(["demo", "--model", "gemma5"]) == 2
    assert "gemma3n, gemma4" in capsys.readouterr().err.replace("'", "")


@pytest.mark.full
@pytest.mark.reference
@pytest.mark.lm
def test_its_story_is_the_one_of_transformers_here_and_in_the_engine(tmp_path: Path) -> None:
    from gemma4_oracle import hf_greedy

    bundle = tmp_path / "b"
    gemma_edge.convert(GEMMA_4_EXAMPLE, bundle, quant="f32", context=512, verify=False)
    with gemma_edge.load(bundle, weight_cache="memory") as model:
        answer = model.generate(STORY, raw=True, max_tokens=60, temperature=0, ignore_eos=True)
    prompt = Tokenizer(GEMMA_4_EXAMPLE / "tokenizer.json").encode(STORY, special=True)
    assert list(answer.token_ids) == hf_greedy(GEMMA_4_EXAMPLE, prompt, 60)
    gemma_edge.export(bundle, tmp_path / "b.litertlm")
    with open_engine(tmp_path / "b.litertlm") as engine:
        assert engine.chat(QUESTION, 40) == COLOUR
        assert answer.text.startswith("".join(engine.greedy(STORY, 40)))
