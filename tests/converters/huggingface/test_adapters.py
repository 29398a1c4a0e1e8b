"""Adapters are merged as PEFT's merge_and_unload merges them, and refused by name where that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from peft_adapters import adapted, load_model, logits_of, make_adapter, merge

from converters.families import open_checkpoint
from converters.huggingface.adapters.choice import AdapterChoice
from toolkit.base.errors import CheckpointError

pytestmark = pytest.mark.reference

IDS = oracle.CONFIGS[0].ids

FORMS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "regex": {"target_modules": r".*layers\.[024]\.(self_attn\.o_proj|mlp\.up_proj|laurel\.linear_left)"},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["k_proj", "gate_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "o_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.[1-3]\.mlp\.up_proj": 7},
        "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 32, "o_proj": 3.5},
    },
    "rslora-patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "use_rslora": True,
        "rank_pattern": {"up_proj": 9},
        "alpha_pattern": {"up_proj": 5},
    },
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "fan-in-fan-out": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers"},
    "exclude": {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.0\..*"},
    "modules-to-save": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "laurel", "down_proj"]},
    "modules-to-save-tied": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [0, 7, 299]},
    "tokens-of-both": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [5, 3], "embed_tokens_per_layer": [255, 0]},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "per-layer-embedding": {"target_modules": ["embed_tokens_per_layer", "per_layer_model_projection"]},
    "dora-embeddings": {"target_modules": ["embed_tokens_per_layer", "embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "o_proj"]},
    "no-init": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "bias": "all", "lora_dropout": 0.1},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.make_checkpoint(tmp_path_factory.mktemp("base") / "base", seed=oracle.CONFIGS[0].seed)


def logits(base: Path, *choices: AdapterChoice) -> np.ndarray[Any, np.dtype[np.float32]]:
    with open_checkpoint(base, adapters=choices) as checkpoint:
        model = checkpoint.reference(checkpoint.default_slice)
        (hidden,) = model.hidden_states([np.array(IDS, np.int32)])
        return model.logits(hidden)


IN_CI = {"regex", "patterns", "rslora", "dora", "layers", "modules-to-save-tied", "tokens", "embedding", "head"}
"""All forms run in `full`."""


@pytest.mark.parametrize(
    "form", [form if form in IN_CI else pytest.param(form, marks=pytest.mark.full) for form in FORMS]
)
def test_logits_are_those_of_merge_and_unload(base: Path, tmp_path: Path, form: str) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **FORMS[form])
    wanted = logits_of(merge(base, adapter), IDS)
    assert np.abs(wanted - logits_of(load_model(base), IDS)).max() > 0.05
    np.testing.assert_allclose(logits(base, AdapterChoice(adapter)), wanted, atol=1e-3)


def test_a_tied_embedding_is_changed_once(base: Path, tmp_path: Path) -> None:
    """The logits of the trained model: merge_and_unload of peft 0.21 adds the change of a shared matrix twice."""
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    wanted = logits_of(adapted(base, adapter), IDS)
    np.testing.assert_allclose(logits(base, AdapterChoice(adapter)), wanted, atol=1e-3)


def test_an_embedding_trained_without_the_output_matrix_is_merged_with_a_warning(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, module, other in (("one", "token embedding", "output matrix"), ("two", "output matrix", "token embed")):
        target = "embed_tokens" if module == "token embedding" else "lm_head"
        adapter = make_adapter(base, tmp_path / name, target_modules=[target])
        logits(base, AdapterChoice(adapter))
        assert f"was trained on the {module} alone; merged, it changes the {other}" in caplog.text


def test_an_embedding_and_an_output_matrix_trained_apart_are_refused(base: Path, tmp_path: Path) -> None:
    apart = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "lm_head"])
    with pytest.raises(CheckpointError, match="different updates of the token embedding and of the output matrix"):
        logits(base, AdapterChoice(apart))


def test_adapters_are_merged_one_after_the_other_as_by_peft(base: Path, tmp_path: Path) -> None:
    first = make_adapter(base, tmp_path / "one", target_modules=["q_proj"])
    second = make_adapter(base, tmp_path / "two", seed=1, target_modules=["q_proj", "o_proj"], use_dora=True)
    wanted = logits_of(merge(base, first, second), IDS)
    np.testing.assert_allclose(logits(base, AdapterChoice(first), AdapterChoice(second)), wanted, atol=1e-3)
