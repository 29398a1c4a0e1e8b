"""Adapters of the towers are merged as PEFT's merge_and_unload merges them: linear layers, convolutions, norms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import multimodal_oracle
import numpy as np
import pytest
from peft_adapters import make_adapter, merge

from converters.families import open_checkpoint
from converters.gemma3n.family import Gemma3nCheckpoint
from converters.huggingface.adapters.choice import AdapterChoice
from toolkit.base.errors import CheckpointError

pytestmark = [pytest.mark.reference, pytest.mark.slow]

FORMS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*(language_model.*q_proj|audio_tower.*ffw_layer_1|embedding_projection)"},
    "convolutions": {"target_modules": r".*(conv_pw\.conv|conv_exp|conv_stem\.conv|linear_start|subsample.*conv)"},
    "dora": {"target_modules": r".*(conv_exp|linear_start|embed_audio\.embedding)", "use_dora": True},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["depthwise_conv1d", "hard_embedding_norm"]},
    "lora-bias": {"target_modules": r".*conv_stem\.conv", "lora_bias": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return multimodal_oracle.make_checkpoint(tmp_path_factory.mktemp("towers") / "base", seed=3)


def model_of(base: Path) -> Any:
    return copy.deepcopy(multimodal_oracle.hf_model(base))


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_is_that_of_merge_and_unload(base: Path, tmp_path: Path, form: str) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", model=model_of(base), **FORMS[form])
    before = {name: tensor.numpy() for name, tensor in model_of(base).state_dict().items()}
    merged = merge(base, adapter, model=model_of(base)).state_dict()
    changed = set()
    with open_checkpoint(base, adapters=[AdapterChoice(adapter)]) as checkpoint:
        assert isinstance(checkpoint, Gemma3nCheckpoint)
        for name, info in checkpoint.tensors.items():
            np.testing.assert_allclose(checkpoint.read(name), merged[info.name].numpy(), atol=2e-5, rtol=1e-4)
            if not np.array_equal(before[info.name], merged[info.name].numpy()):
                changed.add(info.name)
    assert changed and (form == "whole" or any("tower" in name or "embed_" in name for name in changed))


def test_an_adapter_of_the_towers_is_refused_for_a_text_model(base: Path, tmp_path: Path) -> None:
    import oracle

    text = oracle.make_checkpoint(tmp_path / "text", seed=1)
    adapter = make_adapter(base, tmp_path / "adapter", model=model_of(base), target_modules=r".*audio_tower.*q_proj")
    with pytest.raises(CheckpointError, match=r"audio_tower\..*q_proj.weight, which the checkpoint does not have"):
        open_checkpoint(text, adapters=[AdapterChoice(adapter)])
