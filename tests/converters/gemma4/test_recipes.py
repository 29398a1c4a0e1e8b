"""Every way of storing a random Gemma 4, and fine-tunes of it, against the numbers that these are to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_tokenizer
from gemma4_models import write_random_model
from gemma4_oracle import hf_logits, make_checkpoint
from gemma4_rounded import STORED, Rounded, scheme_of
from numpy.typing import NDArray
from peft_adapters import load_model, logits_of, make_adapter, merge

from converters.calibration.text import CalibrationText
from converters.convert import convert
from converters.families import open_checkpoint
from converters.gemma4.family import Gemma4Checkpoint
from converters.gemma4.reference import hidden_states
from converters.huggingface.adapters.choice import AdapterChoice
from converters.request import ConvertRequest
from toolkit.bundle.check import check_directory
from toolkit.quant.uniform import dequantize_rows, quantize_rows
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

pytestmark = [pytest.mark.reference, pytest.mark.full]

SETTINGS = SessionSettings(threads=1, weight_cache="memory")
IDS = [2, *np.random.default_rng(3).integers(3, 300, 24).tolist()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With matrices that blocks of 128 divide."""
    path = make_checkpoint(
        tmp_path_factory.mktemp("gemma4") / "checkpoint", seed=9, hidden_size=128, intermediate_size=128,
        head_dim=32, global_head_dim=64, hidden_size_per_layer_input=128,
    )  # fmt: skip
    write_tokenizer(path)
    return path


def request(checkpoint: Path, output: Path, **more: Any) -> ConvertRequest:
    return ConvertRequest(checkpoint, output, context=256, prefill_sizes=(4, 16, 64), **more)


def logits(bundle: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Those of every token, decoded one by one."""
    with Session(Bundle(bundle), SETTINGS) as session:
        return np.stack([session.decode(token) for token in ids])


@pytest.mark.parametrize("name", STORED)
def test_a_bundle_computes_with_the_numbers_of_its_recipe(checkpoint: Path, tmp_path: Path, name: str) -> None:
    recipe = STORED[name]
    result = convert(request(checkpoint, tmp_path / "bundle", recipes={"text": recipe}), gate=None)
    assert check_directory(tmp_path / "bundle") == []
    found = logits(tmp_path / "bundle", IDS)
    with open_checkpoint(checkpoint) as opened:
        assert isinstance(opened, Gemma4Checkpoint)
        model = Rounded(opened, recipe, result.manifest.quant["ple"].rules[0].dtype)
        wanted = reference_logits(model)
    bound = 1e-5 if name == "f32" else 0.05
    assert np.abs(found - wanted).max() < bound * np.abs(wanted).max()


def reference_logits(model: Rounded) -> NDArray[np.float32]:
    """NumPy's forward pass; the output matrix has a rule of its own."""
    hidden = hidden_states(model, [np.array(IDS, np.int32)])[0]
    head = model.model.read("embed_tokens.weight")
    scheme = scheme_of(model.recipe, "lm_head.weight")
    head = dequantize_rows(quantize_rows(head, scheme)) if scheme.quantised else head
    cap = model.config.final_logit_softcap
    assert cap is not None
    found: NDArray[np.float32] = np.tanh(hidden @ head.T / cap) * np.float32(cap)
    return found


# --- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_brings_int4_nearer_to_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = write_random_model(tmp_path / "checkpoint")
    random = np.random.default_rng(1)
    words = ["the", "cat", "that", "sat", "at", "a", "mat", "ate", "the", "rat", "and", "then", "the", "hat"]
    text = CalibrationText(" ".join(random.choice(words, 1200)))
    tokens: list[int] = []
    errors = []
    for name, calibration in (("plain", None), ("calibrated", text)):
        wanted = request(checkpoint, tmp_path / name, recipes={"text": "int4-channel"}, calibration=calibration)
        convert(replace(wanted, context=128), gate=None)
        tokens = tokens or [2, *Bundle(tmp_path / name).tokenizer().encode(text.text[-200:], special=False)][:100]
        error = logits(tmp_path / name, tokens) - hf_logits(checkpoint, tokens)
        errors.append(float(np.square(error).mean()))
    assert errors[1] < 0.8 * errors[0], errors


# --- fine-tunes ------------------------------------------------------------------------------------------------------

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all matrices of layers": {"target_modules": [*LINEAR, "per_layer_input_gate", "per_layer_projection"]},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "rank-stabilised, with patterns": {
        "target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 5},
    },
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "per_layer_projection"]},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9, 200]},
    "the common projection": {"target_modules": ["per_layer_model_projection", "up_proj"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_checkpoint(tmp_path_factory.mktemp("gemma4") / "small", seed=12)
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_merged_as_peft_merges_it(small: Path, tmp_path: Path, name: str) -> None:
    adapter = make_adapter(small, tmp_path / "adapter", **ADAPTERS[name])
    wanted = logits_of(merge(small, adapter), tuple(IDS))
    assert np.abs(wanted - hf_logits(small, IDS)).max() > 0.05
    adapters = (AdapterChoice(str(adapter)),)
    convert(request(small, tmp_path / "bundle", recipes={"text": "f32"}, adapters=adapters), gate=None)
    assert np.abs(logits(tmp_path / "bundle", IDS) - wanted).max() < 5e-4


def test_a_fine_tune_that_transformers_saved_is_converted(small: Path, tmp_path: Path) -> None:
    import torch

    model = load_model(small)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    write_tokenizer(tmp_path / "tuned")
    convert(request(tmp_path / "tuned", tmp_path / "bundle", recipes={"text": "f32"}), gate=None)
    wanted = logits_of(model, tuple(IDS))
    assert np.abs(logits(tmp_path / "bundle", IDS) - wanted).max() < 2e-4


# --- forms of checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", ["causal", "conditional"])
def test_a_checkpoint_in_bfloat16_gives_the_logits_of_its_numbers(tmp_path: Path, naming: Any) -> None:
    path = make_checkpoint(tmp_path / "bf16", seed=4, naming=naming, dtype="bf16", shards=2, unused_kv=True)
    write_tokenizer(path)
    convert(request(path, tmp_path / "bundle", recipes={"text": "f32"}, groups=("text",)), gate=None)
    assert np.abs(logits(tmp_path / "bundle", IDS) - hf_logits(path, IDS)).max() < 2e-4
