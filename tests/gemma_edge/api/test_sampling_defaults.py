"""A model samples as its checkpoint's generation_config.json says, and as the caller says before that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import gemma_edge
from converters.convert import convert
from converters.request import ConvertRequest


@pytest.fixture(scope="module")
def sampled_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """The random model, whose makers want a temperature of 5."""
    folder = tmp_path_factory.mktemp("sampled")
    checkpoint = shutil.copytree(random_checkpoint, folder / "checkpoint")
    stated = {"do_sample": True, "temperature": 5.0, "top_k": 0, "top_p": 1.0, "eos_token_id": 1}
    (checkpoint / "generation_config.json").write_text(json.dumps(stated))
    request = ConvertRequest(checkpoint, folder / "bundle", recipes={"text": "f32", "ple": "f32"}, context=40)
    convert(request, gate=None)
    return folder / "bundle"


def test_what_the_bundle_says_holds_where_the_caller_says_nothing(sampled_bundle: Path) -> None:
    with gemma_edge.load(sampled_bundle, weight_cache="memory") as model:
        texts = {seed: model.generate("the cat", raw=True, max_tokens=8, seed=seed).token_ids for seed in range(3)}
        greedy = {
            seed: model.generate("the cat", raw=True, max_tokens=8, seed=seed, temperature=0).token_ids
            for seed in range(3)
        }
    assert len(set(texts.values())) > 1
    assert len(set(greedy.values())) == 1


def test_a_bundle_that_says_nothing_answers_greedily(random_bundle: Path) -> None:
    with gemma_edge.load(random_bundle, weight_cache="memory") as model:
        texts = {model.generate("the cat", raw=True, max_tokens=8, seed=seed).token_ids for seed in range(3)}
    assert len(texts) == 1
