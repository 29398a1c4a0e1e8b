"""A model samples as its checkpoint's generation_config.json says, and as the caller says before that."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import gemma_edge
from converters.convert import convert
from converters.huggingface.sampling import read_sampling
from converters.request import ConvertRequest
from toolkit.bundle.manifest_json import encode_manifest


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


@pytest.mark.parametrize(
    ("stated", "same"),
    [
        ({"repetition_penalty": 0.02}, {"repeat_penalty": 0.02}),
        ({"do_sample": True, "temperature": 5.0, "top_k": 0, "min_p": 1.0}, {"min_p": 1.0, "temperature": 5.0}),
    ],
)
def test_min_p_and_the_penalty_hold_unless_the_caller_says_otherwise(
    sampled_bundle: Path, random_bundle: Path, tmp_path: Path, stated: dict[str, object], same: dict[str, float]
) -> None:
    """Each is compared with the same given as an argument, and with none."""
    bundle = shutil.copytree(sampled_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "generation_config.json").write_text(json.dumps(stated))
    record = read_sampling(checkpoint)
    assert record is not None
    manifest["groups"]["text"]["runtime"]["sampling"] = dataclasses.asdict(record)
    (bundle / "manifest.json").write_bytes(encode_manifest({k: v for k, v in manifest.items() if k != "sha256"}))

    def answer(path: Path, **settings: float) -> tuple[int, ...]:
        with gemma_edge.load(path, weight_cache="memory") as model:
            return model.generate("the cat the cat", raw=True, max_tokens=8, seed=1, **settings).token_ids  # type: ignore[arg-type]

    held = answer(bundle)
    assert held == answer(random_bundle, **({"top_k": 0, "top_p": 1.0} | same))
    assert held != answer(bundle, repeat_penalty=1.0, min_p=0.0)
