"""Writes a LoRA adapter with random weights for a checkpoint, in PEFT's form, as large as a real one of its rank."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from converters.huggingface.safetensors import open_safetensors
from toolkit.base.files import atomic_directory

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers that trainers usually name."""
_DEVIATION = 0.01  # so small that the merged model is still one


def write_adapter(checkpoint: Path, output: Path, rank: int, *, seed: int = 0) -> int:
    """Write the directory `output` atomically; return the bytes of its weights.

    It has factors for every text layer of `TARGETS` in the checkpoint: f32[rank, inputs] and f32[outputs, rank].
    """
    shapes: dict[str, tuple[int, int]] = {}
    for file in open_safetensors(checkpoint):
        for name, info in file.tensors.items():
            module = name.removesuffix(".weight")
            if ".layers." in module and module.endswith(TARGETS):
                rows, columns = info.shape
                shapes[f"base_model.model.{module}.lora_A.weight"] = (rank, columns)
                shapes[f"base_model.model.{module}.lora_B.weight"] = (rows, rank)
        file.close()
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in sorted(shapes.items()):
        start, end = end, end + 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [start, end]}
    packed = json.dumps(header).encode()
    packed = packed.ljust(-(-len(packed) // 8) * 8)
    random = np.random.default_rng(seed)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(TARGETS)}
    with atomic_directory(output) as directory:
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        with open(directory / "adapter_model.safetensors", "wb") as weights:
            weights.write(struct.pack("<Q", len(packed)) + packed)
            for _, shape in sorted(shapes.items()):
                weights.write((random.standard_normal(shape, dtype=np.float32) * np.float32(_DEVIATION)).data)
    return end
