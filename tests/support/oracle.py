"""transformers as the oracle: random tiny Gemma 3n checkpoints, and what transformers makes of them in float32.

Needs torch and transformers; a test that calls into this module is skipped where they are missing. Every parameter is
random, also those that transformers starts at zero or one (`correct_output_scale`, norms, row 0 of the tables), since
a constant there hides a wrong graph. Checkpoints and results are cached for the life of the process.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
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
    write_safetensors,
)

if TYPE_CHECKING:
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

Naming = Literal["causal", "conditional", "conditional_old"]

PREFIXES: Mapping[Naming, str] = {
    "causal": "model.",
    "conditional": "model.language_model.",
    "conditional_old": "language_model.model.",
}
"""Where each class, and the releases of transformers before 4.57, keep the text tensors."""

S, F = "sliding_attention", "full_attention"

TINY: Mapping[str, object] = {
    "vocab_size": 300,
    "vocab_size_per_layer_input": 256,
    "hidden_size": 32,
    "intermediate_size": [96] * 7,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "max_position_embeddings": 256,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "num_kv_shared_layers": 2,
    "layer_types": [S, S, F, S, F, S, F],
    "activation_sparsity_pattern": [0.95, 0.95, 0.8, 0.0, 0.0, 0.0, 0.0],
}
"""What `make_checkpoint` writes without overrides; keys are those of transformers' Gemma3nTextConfig."""


def _layers(
    types: Sequence[str], ffn: int | Sequence[int], sparsity: Sequence[float], shared: int
) -> dict[str, object]:
    count = len(types)
    return {
        "num_hidden_layers": count,
        "layer_types": list(types),
        "intermediate_size": [ffn] * count if isinstance(ffn, int) else list(ffn),
        "activation_sparsity_pattern": [*sparsity, *[0.0] * (count - len(sparsity))],
        "num_kv_shared_layers": shared,
    }


CONFIGS: tuple[OracleConfig, ...] = (
    OracleConfig("shared_sparse", {}, random_prompt(21, 300, always=(0, 255, 256, 299)), seed=17),
    OracleConfig("unshared_dense", _layers([S, S, S, S, F], 48, [], 0), random_prompt(19, 300), seed=1),
    OracleConfig("unshared_sparse", _layers([S, F, S], 80, [0.95, 0.5, 0.9], 0), random_prompt(12, 300), seed=2),
    OracleConfig("shared_dense", _layers([S, S, F, S, F, S, S, F], 40, [], 3), random_prompt(17, 300), seed=26),
    OracleConfig(
        "odd_pattern",
        {
            **_layers([F, F, S, F, S, S], [88, 56, 104, 72, 40, 8], [0.9, 0.0, 0.95], 3),
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "sliding_window": 7,
            "laurel_rank": 5,
            "hidden_size_per_layer_input": 12,
        },
        random_prompt(33, 300),
        seed=13,
    ),
    OracleConfig("one_full_layer", _layers([F], 96, [0.95], 0), random_prompt(9, 300), seed=3),
    OracleConfig("one_sliding_layer", _layers([S], 48, [], 0), random_prompt(11, 300), seed=17),
    OracleConfig("one_token", {}, (2,), seed=15),
    OracleConfig(
        "large_vocabulary",
        {"vocab_size": 1280, "vocab_size_per_layer_input": 1024, **_layers([S, F, S, F], 96, [0.95], 2)},
        random_prompt(25, 1280, always=(0, 1023, 1024, 1279)),
        seed=20,
    ),
    OracleConfig(
        "long_prompt",
        {**_layers([S, S, F, S, F], 96, [0.95], 2), "sliding_window": 16, "max_position_embeddings": 512},
        random_prompt(150, 300),
        seed=0,
    ),
    OracleConfig(
        "blocks_of_32",
        {
            **_layers([S, F, S, F], [96, 64, 96, 128], [0.95], 2),
            "hidden_size": 64,
            "head_dim": 16,
            "hidden_size_per_layer_input": 32,
            "laurel_rank": 32,
            "sliding_window": 8,
        },
        random_prompt(24, 300),
        seed=12,
    ),
    OracleConfig(
        "blocks_of_128",
        {
            **_layers([S, F, S, F], [256, 256, 128, 256], [0.95], 2),
            "hidden_size": 128,
            "head_dim": 32,
            "hidden_size_per_layer_input": 128,
            "laurel_rank": 128,
            "sliding_window": 8,
        },
        random_prompt(20, 300),
        seed=18,
    ),
    OracleConfig(
        "unusual",
        {
            **_layers([S, F, S, F], 96, [0.95], 1),
            "num_key_value_heads": 1,
            "altup_num_inputs": 3,
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "rms_norm_eps": 1e-5,
            "final_logit_softcapping": 12.0,
            "rope_parameters": {
                F: {"rope_type": "default", "rope_theta": 5e5},
                S: {"rope_type": "default", "rope_theta": 2e3},
            },
        },
        random_prompt(16, 300),
        seed=29,
    ),
)
"""Small enough for a forward in milliseconds; together they cover what can differ between text models.

The seeds were chosen so that 64 greedy steps visit many tokens and the best logit always leads by over 0.008: rounding
cannot change a token.
"""


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

    overrides: keys of Gemma3nTextConfig that differ from `TINY`. A tensor depends on seed, name and shape only.
    unused_kv: also write k_proj, v_proj and k_norm of the layers that share K/V, as Google's checkpoints do.
    """
    config = _text_config({**TINY, **overrides})
    shapes = _tensor_shapes(config, unused_kv=unused_kv)
    tensors = random_tensors(shapes, random_tensor, seed, prefix=PREFIXES[naming], dtype=dtype)
    multimodal = naming != "causal"
    return write_checkpoint(
        directory, config, tensors, family="Gemma3n", multimodal=multimodal, dtype=dtype, shards=shards
    )


@functools.cache
def checkpoint_of(config: OracleConfig) -> Path:
    """The checkpoint of one of `CONFIGS`, written once per process; treat it as read-only."""
    return make_checkpoint(scratch_folder() / config.name, seed=config.seed, **config.overrides)  # type: ignore[arg-type]


def faint_checkpoint(directory: Path) -> Path:
    """A large epsilon in every norm, and AltUp's projections so small that their floor shows."""
    from safetensors.torch import load_file

    make_checkpoint(directory, seed=4, rms_norm_eps=0.02)
    tensors = load_file(directory / "model.safetensors")
    faint = {name: tensor * 1e-3 if "_projections." in name else tensor for name, tensor in tensors.items()}
    write_safetensors(directory, faint)
    return directory


def hf_logits(directory: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits of transformers for one sequence: f32[T, V]; eager attention, no cache; do not write into the result."""
    return _hf_logits(str(directory), tuple(int(token) for token in ids))


def hf_greedy(directory: Path, ids: Sequence[int], n: int) -> list[int]:
    """The n tokens that follow by argmax, each from a full forward without a cache; stop tokens do not stop it."""
    return list(_hf_greedy(str(directory), tuple(int(token) for token in ids), n))


def hf_model(directory: Path) -> Gemma3nForCausalLM:
    """The text model of a checkpoint, in float32; all namings, single and sharded files."""
    return _hf_model(str(directory))


@functools.cache
def _hf_logits(directory: str, ids: tuple[int, ...]) -> NDArray[np.float32]:
    result = logits_of(_hf_model(directory), ids)
    result.flags.writeable = False
    return result


@functools.cache
def _hf_greedy(directory: str, ids: tuple[int, ...], n: int) -> tuple[int, ...]:
    return tuple(greedy_tokens(_hf_model(directory), ids, n))


@functools.lru_cache(maxsize=8)
def _hf_model(directory: str) -> Gemma3nForCausalLM:
    import_torch()
    from transformers import Gemma3nForCausalLM

    model = Gemma3nForCausalLM(_text_config(text_keys(Path(directory))))
    load_weights(model, Path(directory), sorted(PREFIXES.values(), key=len, reverse=True))
    return model


def _text_config(keys: Mapping[str, object]) -> Gemma3nTextConfig:
    import_torch()
    from transformers import Gemma3nTextConfig

    config: Gemma3nTextConfig = Gemma3nTextConfig.from_dict(dict(keys))
    config._attn_implementation = "eager"
    return config


def _tensor_shapes(config: Gemma3nTextConfig, *, unused_kv: bool) -> dict[str, tuple[int, ...]]:
    torch = import_torch()
    from transformers import Gemma3nTextModel

    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Gemma3nTextModel(config).state_dict().items()}
    if unused_kv:
        key_rows = config.num_key_value_heads * config.head_dim
        for layer in range(config.num_hidden_layers - config.num_kv_shared_layers, config.num_hidden_layers):
            attention = f"layers.{layer}.self_attn"
            shapes[f"{attention}.k_proj.weight"] = (key_rows, config.hidden_size)
            shapes[f"{attention}.v_proj.weight"] = (key_rows, config.hidden_size)
            shapes[f"{attention}.k_norm.weight"] = (config.head_dim,)
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Scales at which activations stay near one through the layers and logits near three."""
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind in ("q_norm", "k_norm"):
        # Scores are not divided by sqrt(head_dim): weights of one would make every softmax one-hot.
        tensor = (1 + 0.2 * noise) * shape[0] ** -0.25
    elif kind.endswith("norm") or kind == "norm":
        tensor = 1 + 0.2 * noise
    elif kind == "correct_output_scale":
        tensor = 1 + 0.4 * noise
    elif kind in ("prediction_coefs", "correction_coefs"):
        tensor = 0.1 * noise  # larger ones compound over the layers until rounding shows in the logits
    elif kind == "modality_router":
        tensor = noise * shape[1] ** 0.5  # its input is divided by hidden_size
    elif kind == "embed_tokens":
        tensor = noise * 3 * shape[1] ** -0.5
    elif kind == "embed_tokens_per_layer":
        tensor = noise * 0.3
    else:
        tensor = noise * shape[1] ** -0.5
    return np.asarray(tensor, dtype=np.float32)
