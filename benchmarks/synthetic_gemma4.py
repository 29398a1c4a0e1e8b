"""Writes Gemma 4 checkpoints of any size with random weights, in bfloat16 or in the codes of Google's QAT checkpoints.

Weights in bfloat16 are as in `benchmarks.synthetic`. In codes (`quant_method: gemma`), every code occurs and their mean
is 0, scales give matrices the same variance, and the steps that activations are rounded to are wide enough for such a
model.
The same preset, form and seed give the same bytes; it needs a few tens of MB of memory.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic import (
    SHARD_BYTES,
    TOKENIZER_FILES,
    TOKENIZER_SOURCE,
    bfloat16_tensor,
)
from benchmarks.synthetic_files import Noise, Shape, Stored, write_json, write_weights
from converters.gemma.config import Attention, DecoderLayer, Heads, layer_kv_sources
from converters.gemma.tensors import PER_LAYER_EMBEDDING, TOKEN_EMBEDDING, unused_kv_tensors
from converters.gemma4.config import CONDITIONAL_GENERATION, TextConfig, to_hugging_face
from converters.gemma4.tensors import LAYER_SCALAR, text_tensors
from converters.huggingface.gemma_quant.config import parse_gemma_quant
from toolkit.base.files import atomic_directory

Form = Literal["bf16", "qat"]

PREFIX = "model.language_model."
EXCLUDED = (
    "model.vision_tower.patch_embedder",
    "model.audio_tower.subsample_conv_projection",
    "model.audio_tower.output_proj",
    "relative_k_proj",
    "model.embed_audio",
    "model.embed_vision",
    "per_layer_model_projection",
)
# Equally likely draws of a code, whose mean is 0: a mean of -0.5, as of all codes, drives every product of E2B's width
# to the end of its range, so that all logits are the same.
_DRAWS: Mapping[int, Sequence[int]] = {2: (-2, -1, 0, 0, 0, 1, 1, 1), 4: (*range(-8, 8), *range(-6, 8), 0, 1)}
DEVIATION = {2: 1.0, 4: 18**0.5, 8: 73.9}  # of these, and of equally likely bytes
_ACTIVATION_SCALE = 0.04  # 128 such steps span five standard deviations of a normed vector


def text_config(
    *,
    hidden: int,
    layers: int,
    ffn: int,
    vocabulary: int,
    ple: int,
    heads: tuple[int, int],
    head_dims: tuple[int, int],
    every: int,
    shared: int,
    wide: bool,
    window: int = 512,
) -> TextConfig:
    """A config with Gemma 4's pattern: one layer in `every` is full, the last `shared` layers read others' caches.

    `heads`: of queries, and of keys and values; `head_dims`: of sliding and of full layers; `wide`: whether the
    feed-forward networks of the shared layers are twice as wide.
    """
    attention: list[Attention] = ["full" if (index + 1) % every == 0 else "sliding" for index in range(layers)]
    sources = layer_kv_sources(attention, shared)
    return TextConfig(
        vocab_size=vocabulary,
        ple_vocab_size=vocabulary,
        hidden_size=hidden,
        ple_size=ple,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        sliding_window=window,
        max_positions=131_072,
        rms_norm_eps=1e-6,
        final_logit_softcap=30.0,
        layers=tuple(
            DecoderLayer(kind, ffn * (2 if wide and source is not None else 1), source)
            for kind, source in zip(attention, sources, strict=True)
        ),
        bos_token_id=2,
        eos_token_ids=(1, 5),  # <eos> and <end_of_turn> of the tokenizer that is copied
        pad_token_id=0,
        sliding_heads=Heads(head_dims[0], 1e4, head_dims[0] // 2),
        full_heads=Heads(head_dims[1], 1e6, head_dims[1] // 8),
    )


PRESETS: Mapping[str, TextConfig] = {
    "tiny": text_config(
        hidden=64, layers=10, ffn=128, vocabulary=3328, ple=32, heads=(4, 1), head_dims=(16, 32), every=5, shared=5,
        wide=True, window=16,
    ),
    # google/gemma-4-E2B and E4B, config.json
    "e2b": text_config(
        hidden=1536, layers=35, ffn=6144, vocabulary=262_144, ple=256, heads=(8, 1), head_dims=(256, 512), every=5,
        shared=20, wide=True,
    ),
    "e4b": text_config(
        hidden=2560, layers=42, ffn=10_240, vocabulary=262_144, ple=256, heads=(8, 2), head_dims=(256, 512), every=6,
        shared=18, wide=False,
    ),
}  # fmt: skip
PUBLISHED = ("e2b", "e4b")  # with the K/V weights that shared layers do not use, and in shards if they are large

_LAYERS = r"language_model\.layers\.\d+\."
_BITS: Mapping[str, int] = {
    r"^lm_head$": 2,
    r"language_model\.embed_tokens$": 2,
    _LAYERS + "per_layer_input_gate$": 8,
    _LAYERS + "per_layer_projection$": 8,
    _LAYERS + r"self_attn\.": 4,
}
_E2B_BITS: Mapping[str, int] = {
    r"language_model\.embed_tokens_per_layer$": 4,
    r"language_model\.layers\.(\d|1[0-4])\.mlp\.": 4,
    _LAYERS + r"mlp\.": 2,
}
BITS: Mapping[str, Mapping[str, int]] = {
    "tiny": {**_BITS, **_E2B_BITS, r"language_model\.layers\.(\d|1[0-4])\.mlp\.": 2},
    "e2b": {**_BITS, **_E2B_BITS},
    "e4b": {**_BITS, r"language_model\.embed_tokens_per_layer$": 2, _LAYERS + r"mlp\.": 4},
}
"""The bits of modules in google/gemma-4-E2B-it-qat-mobile-transformers and its E4B, quantization_config."""


def write_synthetic(output: Path, preset: str, form: Form = "bf16", *, seed: int = 0) -> int:
    """Write the checkpoint directory `output` atomically; return the bytes of its weights."""
    config, noise = PRESETS[preset], Noise(seed)
    shapes = text_tensors(config) | (unused_kv_tensors(config) if preset in PUBLISHED else {})
    written = config_json(preset, form)
    tensors: dict[str, Stored] = {}
    modules = {f"{PREFIX}{name}".removesuffix(".weight"): shape for name, shape in shapes.items()}
    bits: Mapping[str, int | None] = {}
    if form == "qat":
        bits = parse_gemma_quant(written, "config.json").bits_of([*modules, "lm_head"])
        embedding = config.vocab_size, config.hidden_size
        tensors |= _linear(noise, "lm_head", embedding, bits["lm_head"] or 8)
    for name, shape in shapes.items():
        module = f"{PREFIX}{name}".removesuffix(".weight")
        own = bits.get(module) if len(shape) == 2 else None
        if own is None:
            tensors[PREFIX + name] = stored_float(noise, name, shape, config.ple_size)
        elif name == TOKEN_EMBEDDING:  # the same bytes as the output matrix, as published
            tensors[f"{module}.embedding_quantized"] = tensors["lm_head.weight"]
            tensors[f"{module}.embedding_scale"] = tensors["lm_head.weight_scale"]
        elif name == PER_LAYER_EMBEDDING:
            tensors |= _table(noise, module, shape, own, config.num_layers)
        else:
            tensors |= _linear(noise, module, shape, own)
    with atomic_directory(output) as directory:
        size = write_weights(directory, tensors, SHARD_BYTES if preset in PUBLISHED else None)
        write_json(directory / "config.json", written)
        for name in TOKENIZER_FILES:
            shutil.copyfile(TOKENIZER_SOURCE / name, directory / name)
    return size


def config_json(preset: str, form: Form) -> dict[str, object]:
    """config.json as published, but without towers."""
    text = {key: value for key, value in to_hugging_face(PRESETS[preset]).items() if key != "architectures"}
    tied = form == "bf16"
    top: dict[str, object] = {
        "architectures": [CONDITIONAL_GENERATION],
        "model_type": "gemma4",
        "dtype": "bfloat16",
        "text_config": {**text, "tie_word_embeddings": tied},
        **{key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tie_word_embeddings": tied,
    }
    if form == "qat":
        top["quantization_config"] = {
            "quant_method": "gemma",
            "num_bits": 4,
            "quantize_embeddings": True,
            "module_quant_configs": {pattern: {"num_bits": bits} for pattern, bits in BITS[preset].items()},
            "modules_to_not_convert": list(EXCLUDED),
        }
    return top


def stored_float(noise: Noise, name: str, shape: Shape, ple_size: int) -> Stored:
    """Like Gemma 3n's, but rounding errors must stay small through the layers, or no bundle passes the quality gate.

    The residual stream keeps most of the embedding (0.98 ** 35 is 0.5), and the scores of attention, which Gemma 4 does
    not scale, have deviation 1 instead of 16, at which softmax picks one token and a small error picks another.
    """
    if name.endswith(LAYER_SCALAR):
        return Stored("BF16", shape, partial(noise.bfloat16, math.prod(shape), 0.98, 0.005))
    if name.endswith("q_norm.weight"):
        mean = shape[0] ** -0.5
        return Stored("BF16", shape, partial(noise.bfloat16, math.prod(shape), mean, 0.02 * mean))
    return bfloat16_tensor(noise, name, shape, ple_size)


def _linear(noise: Noise, module: str, shape: Shape, bits: int) -> dict[str, Stored]:
    activation = partial(_constant, _ACTIVATION_SCALE)
    return {
        f"{module}.weight": _codes(noise, module, shape, bits),
        f"{module}.weight_scale": _scales(noise, module, (shape[0], 1), shape[1], bits),
        f"{module}.input_activation_scale": Stored("F32", (), activation),
        f"{module}.output_activation_scale": Stored("F32", (), activation),
    }


def _table(noise: Noise, module: str, shape: Shape, bits: int, layers: int) -> dict[str, Stored]:
    return {
        f"{module}.embedding_quantized": _codes(noise, module, shape, bits),
        f"{module}.embedding_scale": _scales(noise, module, (shape[0], layers), shape[1] // layers, bits),
    }


def _codes(noise: Noise, module: str, shape: Shape, bits: int) -> Stored:
    """Random codes; those of one module are always the same, because the output matrix is stored twice."""
    columns = shape[1] * bits // 8
    count, table = shape[0] * columns, None if bits == 8 else packed_draws(bits)
    return Stored("I8" if bits == 8 else "U8", (shape[0], columns), lambda: noise.of(module).bytes(count, table))


def packed_draws(bits: int) -> NDArray[np.uint8]:
    """65,536 bytes of packed codes, the first code in the lowest bits, by the draws' indices: uint8[65536].

    >>> codes = (packed_draws(2)[:, None] >> np.array([0, 2, 4, 6]) & 3) - 2
    >>> np.unique(codes).tolist(), float(codes.mean()), float(codes.var())
    ([-2, -1, 0, 1], 0.0, 1.0)
    """
    draws = np.array(_DRAWS[bits]) + (1 << bits - 1)  # as published: the lowest code is stored as 0
    width, index = len(draws).bit_length() - 1, np.arange(1 << 16)
    packed = np.zeros(index.shape, np.uint8)
    for n in range(8 // bits):
        packed |= (draws[index >> width * n & len(draws) - 1] << bits * n).astype(np.uint8)
    return packed


def _scales(noise: Noise, module: str, shape: Shape, fan_in: int, bits: int) -> Stored:
    mean = fan_in**-0.5 / DEVIATION[bits]
    return Stored("F32", shape, lambda: noise.of(f"{module} scales").scales(math.prod(shape), mean))


def _constant(value: float) -> Iterator[np.ndarray]:
    yield np.array([value], np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic_gemma4", description=__doc__)
    parser.add_argument("output", type=Path, help="the directory to make")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="dimensions (default: %(default)s)")
    parser.add_argument("--form", choices=("bf16", "qat"), default="bf16", help="of the weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    options = parser.parse_args(arguments)
    size = write_synthetic(options.output, options.preset, options.form, seed=options.seed)
    print(f"{options.output}: {options.preset} {options.form}, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
