"""Random tensors as checkpoints of `quant_method: gemma` have them, packed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

E2B_BITS: Mapping[str, Mapping[str, int]] = {
    "^lm_head$": {"num_bits": 2},
    r"audio_tower(?!.*lconv1d\.linear_start)": {"num_bits": 2},
    r"audio_tower\.layers\.\d+\.lconv1d\.linear_start\.": {"num_bits": 4},
    r"language_model\.embed_tokens$": {"num_bits": 2},
    r"language_model\.embed_tokens_per_layer$": {"num_bits": 4},
    r"language_model\.layers\.(\d|1[0-4])\.mlp\.": {"num_bits": 4},
    r"language_model\.layers\.\d+\.mlp\.": {"num_bits": 2},
    r"language_model\.layers\.\d+\.per_layer_input_gate$": {"num_bits": 8},
    r"language_model\.layers\.\d+\.per_layer_projection$": {"num_bits": 8},
    r"language_model\.layers\.\d+\.self_attn\.": {"num_bits": 4},
    "vision_tower": {"num_bits": 8},
}
"""The bits of modules in the published checkpoint of E2B."""

EXCLUDED = (
    "model.vision_tower.patch_embedder",
    "model.audio_tower.subsample_conv_projection",
    "model.audio_tower.output_proj",
    "relative_k_proj",
    "model.embed_audio",
    "model.embed_vision",
    "per_layer_model_projection",
)
"""The modules that published checkpoints do not convert."""


def quantization_config(**changes: object) -> dict[str, object]:
    """That of the published checkpoint of E2B, with changes."""
    return {
        "quant_method": "gemma",
        "num_bits": 4,
        "quantize_embeddings": True,
        "module_quant_configs": {pattern: dict(options) for pattern, options in E2B_BITS.items()},
        "modules_to_not_convert": list(EXCLUDED),
        **changes,
    }


def linear(module: str, shape: tuple[int, int], bits: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A quantised Linear, with scales of its activations."""
    return {
        f"{module}.weight": _codes(shape, bits, rng),
        f"{module}.weight_scale": rng.uniform(0.01, 0.1, (shape[0], 1)).astype(np.float32),
        f"{module}.input_activation_scale": np.array(rng.uniform(0.01, 0.1), np.float32),
        f"{module}.output_activation_scale": np.array(rng.uniform(0.01, 0.1), np.float32),
    }


def embedding(
    module: str, shape: tuple[int, int], bits: int, blocks: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """A quantised Embedding."""
    return {
        f"{module}.embedding_quantized": _codes(shape, bits, rng),
        f"{module}.embedding_scale": rng.uniform(0.01, 0.1, (shape[0], blocks)).astype(np.float32),
    }


def _codes(shape: tuple[int, int], bits: int, rng: np.random.Generator) -> NDArray[Any]:
    if bits == 8:
        return rng.integers(-128, 128, shape).astype(np.int8)
    codes = rng.integers(0, 1 << bits, (shape[0], shape[1] * bits // 8, 8 // bits))
    packed: NDArray[Any] = (codes << bits * np.arange(8 // bits)).sum(-1).astype(np.uint8)
    return packed
