"""Adapters of PEFT and mlx-lm, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import raw_bytes, safetensors_bytes
from numpy.typing import NDArray

F32 = NDArray[np.float32]

PEFT: Mapping[str, object] = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}


def noise(*shape: int, seed: int = 0) -> F32:
    """Normal numbers, the same for the same shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def write_adapter(
    directory: Path, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, object] = PEFT, *, mlx: bool = False
) -> Path:
    """Write both files of an adapter into a new directory; mlx writes null as the metadata of its own."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    file = "adapters.safetensors" if mlx else "adapter_model.safetensors"
    data = safetensors_bytes(dict(tensors))
    if mlx:
        end = 8 + int.from_bytes(data[:8], "little")
        data = raw_bytes(json.dumps({"__metadata__": None, **json.loads(data[8:end])}), data[end:])
    (directory / file).write_bytes(data)
    return directory
