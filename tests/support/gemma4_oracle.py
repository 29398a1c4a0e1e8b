"""transformers as the oracle for Gemma 4: random tiny checkpoints, and what transformers makes of them in float32.

As in `oracle`, every parameter is random, and every buffer too: a layer_scalar or norm of one would hide a wrong graph.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from oracle import random_tensor
from oracle_models import (
    DType,
    OracleConfig,
    greedy_tokens,
    import_torch,
    load_weights,
    logits_of,
    random_prompt,
    random_tensors,
    scratch_folder,
    text_keys,
    write_checkpoint,
)

if TYPE_CHECKING:
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

Naming = Literal["causal", "conditional"]

PREFIXES: Mapping[Naming, str] = {"causal": "model.", "conditional": "model.language_model."}

S, F = "sliding_attention", "full_attention"

TINY: Mapping[str, object] = {
    "vocab_size": 300,
    "vocab_size_per_layer_input": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 4,
    "max_position_embeddings": 256,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 3,
    "layer_types": [S, S, F, S, F, S, F],
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 30.0,
}
"""What `make_checkpoint` writes without overrides; keys are those of transformers' Gemma4TextConfig."""


def _layers(types: Sequence[str], shared: int, ffn: int = 48) -> dict[str, object]:
    return {
        "num_hidden_layers": len(types),
        "layer_types": list(types),
        "intermediate_size": ffn,
        "num_kv_shared_layers": shared,
    }


CONFIGS: tuple[OracleConfig, ...] = (
    OracleConfig("two_kv_heads_past_the_window", {}, random_prompt(21, 300), seed=0),
    OracleConfig(
        "one_kv_head",
        {**_layers([S, S, S, S, F] * 2, 5), "num_key_value_heads": 1, "num_attention_heads": 8, "sliding_window": 8},
        random_prompt(40, 300),
        seed=1,
    ),
    OracleConfig(
        "odd_pattern",
        {
            **_layers([F, F, S, F, S, S, F], 3, 40),
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "global_head_dim": 14,
            "sliding_window": 7,
            "hidden_size_per_layer_input": 12,
            "final_logit_softcapping": None,
        },
        random_prompt(33, 300),
        seed=2,
    ),
    OracleConfig("nothing_shared", _layers([S, F, S, S, F], 0), random_prompt(19, 300), seed=3),
    OracleConfig("one_layer", _layers([F], 0), random_prompt(9, 300), seed=4),
    OracleConfig("single_width", {"use_double_wide_mlp": False}, random_prompt(12, 300), seed=5),
    OracleConfig(
        "other_ropes",
        {
            "rope_parameters": {
                F: {"rope_type": "proportional", "partial_rotary_factor": 0.6, "rope_theta": 5e5},
                S: {"rope_type": "default", "rope_theta": 2e3},
            },
            "rms_norm_eps": 1e-5,
        },
        random_prompt(25, 300),
        seed=6,
    ),
    OracleConfig(
        "long_prompt",
        {**_layers([S, S, F, S, F], 2), "sliding_window": 16, "max_position_embeddings": 512},
        random_prompt(150, 300),
        seed=7,
    ),
    OracleConfig(
        "blocks_of_32",
        {
            **_layers([S, F, S, F], 2, 96),
            "hidden_size": 64,
            "head_dim": 16,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 32,
            "sliding_window": 8,
        },
        random_prompt(24, 300),
        seed=8,
    ),
    OracleConfig(
        "layers_of_E2B",
        {
            **_layers([S, S, S, S, F] * 7, 20),
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "sliding_window": 8,
        },
        random_prompt(30, 300),
        seed=9,
    ),
    OracleConfig(
        "layers_of_E4B",
        {
            **_layers([*[S] * 5, F] * 7, 18),
            "num_attention_heads": 8,
            "use_double_wide_mlp": False,
            "sliding_window": 8,
        },
        random_prompt(31, 300),
        seed=10,
    ),
)
"""Small enough for a forward in milliseconds; together they cover what can differ between text models."""

QUICK = ("two_kv_heads_past_the_window", "one_kv_head", "odd_pattern")
"""Those that are tried in every run of the tests, by name."""


def make_checkpoint(
    directory: Path,
    *,
    seed: int,
    naming: Naming = "causal",
    dtype: DType = "f32",
    shards: int = 1,
    unused_kv: bool = False,
    **overrides: object,
) -> Path:
    """Write a random checkpoint (config.json and safetensors) into `directory` and return it.

    overrides: keys of Gemma4TextConfig that differ from `TINY`. A tensor depends on seed, name and shape only.
    unused_kv: also write k_proj, v_proj and k_norm of the layers that share K/V, as Google's checkpoints do.
    """
    config = _text_config({**TINY, **overrides})
    shapes = _tensor_shapes(config, unused_kv=unused_kv)
    tensors = random_tensors(shapes, random_weight, seed, prefix=PREFIXES[naming], dtype=dtype)
    multimodal = naming != "causal"
    return write_checkpoint(
        directory, config, tensors, family="Gemma4", multimodal=multimodal, dtype=dtype, shards=shards
    )


@functools.cache
def checkpoint_of(config: OracleConfig) -> Path:
    """The checkpoint of one of `CONFIGS`, written once per process; treat it as read-only."""
    return make_checkpoint(scratch_folder() / f"gemma4_{config.name}", seed=config.seed, **config.overrides)  # type: ignore[arg-type]


def hf_logits(directory: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits of transformers for one sequence: f32[T, V]; eager attention, no cache."""
    return logits_of(hf_model(directory), ids)


def hf_greedy(directory: Path, ids: Sequence[int], n: int) -> list[int]:
    """The n tokens that follow by argmax, each from a full forward without a cache; stop tokens do not stop it."""
    return greedy_tokens(hf_model(directory), ids, n)


@functools.lru_cache(maxsize=8)
def hf_model(directory: Path) -> Gemma4ForCausalLM:
    """The text model of a checkpoint, in float32, whichever class wrote it."""
    import_torch()
    from transformers import Gemma4ForCausalLM

    model = Gemma4ForCausalLM(_text_config(text_keys(directory)))
    load_weights(model, directory, sorted(PREFIXES.values(), key=len, reverse=True))
    return model


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """As `oracle.random_tensor`, and factors of the residual stream around one."""
    if name.endswith("layer_scalar"):
        return np.random.default_rng([seed, zlib.crc32(name.encode())]).uniform(0.5, 1.5, shape).astype(np.float32)
    return random_tensor(name, shape, seed)


def _text_config(keys: Mapping[str, object]) -> Gemma4TextConfig:
    import_torch()
    from transformers import Gemma4TextConfig

    config: Gemma4TextConfig = Gemma4TextConfig.from_dict(dict(keys))
    config._attn_implementation = "eager"
    return config


def _tensor_shapes(config: Gemma4TextConfig, *, unused_kv: bool) -> dict[str, tuple[int, ...]]:
    torch = import_torch()
    from transformers import Gemma4TextModel

    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Gemma4TextModel(config).state_dict().items()}
    if unused_kv:
        for index in range(config.num_hidden_layers - config.num_kv_shared_layers, config.num_hidden_layers):
            attention, layer = f"layers.{index}.self_attn", config.per_layer_config[index]
            rows = config.num_key_value_heads * layer.head_dim
            shapes[f"{attention}.k_proj.weight"] = (rows, config.hidden_size)
            shapes[f"{attention}.v_proj.weight"] = (rows, config.hidden_size)
            shapes[f"{attention}.k_norm.weight"] = (layer.head_dim,)
    return shapes
