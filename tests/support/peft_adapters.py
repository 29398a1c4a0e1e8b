"""Adapters made with PEFT on random Gemma 3n models, and what its `merge_and_unload` makes of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def make_adapter(checkpoint: Path, directory: Path, *, seed: int = 0, model: Any = None, **settings: Any) -> Path:
    """Save an adapter of the checkpoint's text model (or of `model`) with random numbers, as if it were trained.

    settings: those of peft's LoraConfig.
    """
    peft = pytest.importorskip("peft")
    import torch

    base = load_model(checkpoint) if model is None else model
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    _train(name, parameter)
        adapted.save_pretrained(directory)
    return directory


def _train(name: str, parameter: Any) -> None:
    """Change a parameter by a fifth or so of its size; factors become as large as those of a linear layer."""
    import torch

    noise = torch.randn_like(parameter)
    if "lora_" in name and "magnitude" not in name:
        parameter.copy_(noise * 0.3)
    else:
        parameter.add_(noise * parameter.abs().mean() * 0.2)


def load_model(checkpoint: Path) -> Any:
    """The text model in float32, not shared with any other test."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32").eval()


def adapted(checkpoint: Path, adapter: Path) -> Any:
    """The model as it was trained, with the adapter beside its weights."""
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(load_model(checkpoint), adapter).eval()


def merge(checkpoint: Path, *adapters: Path, model: Any = None) -> Any:
    """The model with the adapters merged by peft, one after the other."""
    peft = pytest.importorskip("peft")
    merged = load_model(checkpoint) if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter in adapters:
            merged = peft.PeftModel.from_pretrained(merged, adapter).merge_and_unload()
    return merged.eval()


def logits_of(model: Any, ids: tuple[int, ...]) -> F32:
    """Logits for one sequence: f32[tokens, vocabulary]."""
    import torch

    with torch.no_grad():
        values: F32 = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return values
