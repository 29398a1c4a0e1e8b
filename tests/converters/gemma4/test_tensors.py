"""The tensors of a checkpoint, and mix-ups: most of Gemma 3n's tensors have the same names."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, random_tensors, safetensors_bytes, write_checkpoint
from gemma4_oracle import TINY as TINY_GEMMA4
from gemma4_oracle import make_checkpoint

from converters.gemma.tensors import unused_kv_tensors
from converters.gemma3n.family import open_gemma3n
from converters.gemma4.checkpoint import Gemma4Tensors
from converters.gemma4.config import parse_config
from converters.gemma4.tensors import text_tensors
from converters.huggingface.configs import read_configs
from toolkit.base.errors import CheckpointError

E2B = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
    "use_double_wide_mlp": True,
}
E4B = {
    **E2B,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 42,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 18,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 7,
    "use_double_wide_mlp": False,
}
GEMMA4 = {**TINY_GEMMA4, "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text"}


def opened(path: Path) -> Gemma4Tensors:
    return Gemma4Tensors(read_configs(path))


@pytest.mark.parametrize(
    ("stated", "parameters", "unused"),
    [(E2B, 4_628_569_379, 18_880_512), (E4B, 7_463_013_418, 55_055_616)],
    ids=["E2B", "E4B"],
)
def test_true_sizes_have_the_published_numbers_of_parameters(
    stated: dict[str, object], parameters: int, unused: int
) -> None:
    config = parse_config(stated, None, "config.json")[1]
    assert sum(map(math.prod, text_tensors(config).values())) == parameters
    assert sum(map(math.prod, unused_kv_tensors(config).values())) == unused


@pytest.mark.reference
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, seed=1)
    tensors = load(path)
    scalar, projection = "model.layers.2.layer_scalar", "model.layers.2.self_attn.q_proj.weight"
    faults = {
        "missing: layers.2.layer_scalar": {name: tensor for name, tensor in tensors.items() if name != scalar},
        "layers.2.layer_scalar [32] instead of [1]": {**tensors, scalar: tensors["model.norm.weight"]},
        "layers.2.self_attn.q_proj.weight [32, 32] instead of [64, 32]": {
            **tensors,
            projection: tensors["model.layers.1.self_attn.q_proj.weight"],
        },
        "unknown: model.layers.2.self_attn.v_norm.weight": {
            **tensors,
            "model.layers.2.self_attn.v_norm.weight": tensors["model.norm.weight"],
        },
    }
    for found, changed in faults.items():
        (path / "model.safetensors").write_bytes(safetensors_bytes(changed))
        with pytest.raises(CheckpointError, match="tensors") as caught:
            opened(path)
        assert found in str(caught.value)


def test_weights_of_gemma3n_with_a_config_of_gemma4_are_refused_by_name(tmp_path: Path) -> None:
    config = {**GEMMA4, "vocab_size_per_layer_input": 300, "global_head_dim": 8, "use_double_wide_mlp": False}
    shared = {"num_kv_shared_layers": TINY["num_kv_shared_layers"]}
    tensors = random_tensors({**TINY, "vocab_size_per_layer_input": 300})
    path = write_checkpoint(tmp_path, config | shared, tensors)
    with pytest.raises(CheckpointError, match=r"weights of Gemma 3n: use the config\.json that came with them"):
        opened(path)


def test_weights_of_gemma4_with_a_config_of_gemma3n_are_refused_by_name(tmp_path: Path) -> None:
    own = {
        name: tensor for name, tensor in random_tensors(TINY).items() if "altup" not in name and "laurel" not in name
    }
    scalars = {f"model.layers.{index}.layer_scalar": np.ones(1, np.float32) for index in range(7)}
    path = write_checkpoint(tmp_path, TINY, own | scalars)
    with pytest.raises(CheckpointError, match=r"weights of Gemma 4: use the config\.json that came with them"):
        open_gemma3n(path)


def load(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    tensors: dict[str, np.ndarray] = load_file(path / "model.safetensors")
    return tensors
