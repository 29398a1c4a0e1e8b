"""Checkpoints written by hand, without torch and without the code under test: to open, to break and to slice."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converters.huggingface.safetensors import SafetensorsFile

DTYPE_NAMES = {"uint16": "BF16", "float16": "F16", "float32": "F32", "int64": "I64", "uint8": "U8", "int8": "I8"}
"""Bits of bf16 are kept as uint16: NumPy has no such type."""

Arrays = Mapping[str, NDArray[Any]]

S, F = "sliding_attention", "full_attention"

TINY: dict[str, object] = {
    "architectures": ["Gemma3nForCausalLM"],
    "model_type": "gemma3n_text",
    "vocab_size": 300,
    "vocab_size_per_layer_input": 256,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": 7,
    "intermediate_size": [48] * 7,
    "layer_types": [S, S, F, S, F, S, F],
    "activation_sparsity_pattern": [0.95, 0.95, 0.8, 0.0, 0.0, 0.0, 0.0],
    "num_kv_shared_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": None,
    "laurel_rank": 4,
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
}

TINY_MULTIMODAL: dict[str, object] = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "model_type": "gemma3n",
    "text_config": {**TINY, "architectures": None},
    "vision_config": {"model_type": "gemma3n_vision", "hidden_size": 2048},
    "audio_config": {"model_type": "gemma3n_audio", "hidden_size": 1536},
    "eos_token_id": [1, 106],
    "image_token_id": 262145,
    "tie_word_embeddings": True,
}


PROCESSOR: dict[str, object] = {
    "image_processor_type": "SiglipImageProcessorFast",
    "do_resize": True,
    "size": {"height": 768, "width": 768},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": False,
    "do_center_crop": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_seq_length": 256,
    "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
    "feature_size": 128,
    "sampling_rate": 16000,
    "frame_length": 512,
    "hop_length": 160,
    "fft_length": 1024,
    "fft_overdrive": True,
    "min_frequency": 125.0,
    "max_frequency": 7600.0,
    "preemphasis": 0.97,
    "preemphasis_htk_flavor": True,
    "dither": 0.0,
    "input_scale_factor": 1.0,
    "mel_floor": 1e-05,
    "per_bin_mean": None,
    "per_bin_stddev": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "processor_class": "Gemma3nProcessor",
}
"""The keys of a published preprocessor_config.json that mean something, and some that do not."""


@dataclass(frozen=True)
class Entry:
    """A tensor's line in a header, right or wrong."""

    dtype: object
    shape: object
    data_offsets: object


def safetensors_bytes(tensors: Arrays, metadata: object = None) -> bytes:
    """A valid file."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    return raw_bytes(json.dumps(header), data)


def raw_bytes(header: str | bytes, data: bytes = b"") -> bytes:
    """A file with any header at all."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def entry_bytes(entries: Mapping[str, Entry], data: bytes) -> bytes:
    """A file whose header says what `entries` say."""
    return raw_bytes(json.dumps({name: vars(entry) for name, entry in entries.items()}), data)


def write_checkpoint(
    directory: Path, config: Mapping[str, object], tensors: Arrays, *, shards: Sequence[Sequence[str]] = ()
) -> Path:
    """config.json and model.safetensors, or with `shards` (the names in each) the shards and their index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if not shards:
        (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return directory
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (directory / file).write_bytes(safetensors_bytes({name: tensors[name] for name in names}))
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def random_tensors(
    config: Mapping[str, object],
    *,
    prefix: str = "model.",
    dtype: str = "uint16",
    unused_kv: bool = False,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """Every text tensor of a config in the style of `TINY`, with random finite numbers; shapes as in transformers."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in tensor_shapes(config, unused_kv=unused_kv).items():
        values = rng.standard_normal(shape).astype(np.float32)
        # The upper half of a float32 is a bf16.
        upper_half = (values.view(np.uint32) >> 16).astype(np.uint16)
        tensors[prefix + name] = upper_half if dtype == "uint16" else values.astype(dtype)
    return tensors


def tensor_shapes(config: Mapping[str, object], *, unused_kv: bool = False) -> dict[str, tuple[int, ...]]:
    """Read off Gemma3nTextModel, on purpose a second time and in other words than in converters/gemma/tensors.py."""
    number = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, ple, streams = number["hidden_size"], number["hidden_size_per_layer_input"], number["altup_num_inputs"]
    layers, laurel, head = number["num_hidden_layers"], number["laurel_rank"], number["head_dim"]
    query, key = number["num_attention_heads"] * head, number["num_key_value_heads"] * head
    sizes = config["intermediate_size"]
    assert isinstance(sizes, list)
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens": (number["vocab_size"], hidden),
        "embed_tokens_per_layer": (number["vocab_size_per_layer_input"], layers * ple),
        "per_layer_model_projection": (layers * ple, hidden),
        "per_layer_projection_norm": (ple,),
        "norm": (hidden,),
    }
    for stream in range(streams - 1):
        shapes[f"altup_projections.{stream}"] = shapes[f"altup_unembed_projections.{stream}"] = (hidden, hidden)
    for index, ffn in enumerate(sizes):
        layer: dict[str, tuple[int, ...]] = {
            **{f"mlp.{name}_proj": (ffn, hidden) for name in ("gate", "up")},
            "mlp.down_proj": (hidden, ffn),
            "self_attn.q_proj": (query, hidden),
            "self_attn.q_norm": (head,),
            "self_attn.o_proj": (hidden, query),
            "laurel.linear_left": (laurel, hidden),
            "laurel.linear_right": (hidden, laurel),
            "altup.correction_coefs": (streams, streams),
            "altup.prediction_coefs": (streams**2, streams),
            "altup.modality_router": (streams, hidden),
            "per_layer_input_gate": (ple, hidden),
            "per_layer_projection": (hidden, ple),
        }
        norms = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"
        for name in (*norms.split(), "post_per_layer_input_norm", "laurel.post_laurel_norm", "altup.router_norm"):
            layer[name] = (hidden,)
        if unused_kv or index < layers - number["num_kv_shared_layers"]:
            layer |= {"self_attn.k_proj": (key, hidden), "self_attn.v_proj": (key, hidden), "self_attn.k_norm": (head,)}
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    scales = {f"layers.{index}.altup.correct_output_scale": (hidden,) for index in range(layers)}
    return {f"{name}.weight": shape for name, shape in shapes.items()} | scales


def write_tokenizer(directory: Path) -> None:
    """A tokenizer of one word, which fits every vocabulary, for tests that give ids."""
    model = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    (directory / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def count_bytes_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From now on: the bytes that readers fetched from all checkpoints' files, headers left out."""
    counts: list[int] = []
    read_into = SafetensorsFile.read_into

    def counted(file: SafetensorsFile, buffer: NDArray[np.generic], offset: int) -> None:
        counts.append(buffer.nbytes)
        read_into(file, buffer, offset)

    monkeypatch.setattr(SafetensorsFile, "read_into", counted)
    return lambda: sum(counts)


def as_float32(tensor: NDArray[np.generic]) -> NDArray[np.float32]:
    """What a stored tensor is worth; uint16 holds bf16."""
    if tensor.dtype == np.uint16:
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float32)
