"""Reads adapters that mlx-lm saved: adapter_config.json and adapters.safetensors.

Source: mlx-lm 0.28 (tuner/lora.py, tuner/dora.py, tuner/utils.py): LoRALinear, LoRAEmbedding, DoRALinear,
DoRAEmbedding and full fine-tuning of layers. Linear factors are stored transposed: lora_a [in, rank], lora_b
[rank, out]. The factor is `scale` itself, not divided by the rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from converters.huggingface.adapters.adapter import AdapterSource, AdapterUpdates
from converters.huggingface.adapters.updates import ByMagnitude, Factor, LowRank, Replacement, Update
from converters.huggingface.safetensors import TensorInfo
from toolkit.base.strict_json import shorten

WEIGHTS = "adapters.safetensors"

_EMBEDDINGS = ("embed_tokens", "embed_tokens_per_layer", "embedding")
"""Modules whose factors are stored as they are: lora_a [tokens, rank], lora_b [rank, width]."""


def read_mlx(source: AdapterSource) -> AdapterUpdates:
    """The updates of an adapter; CheckpointError, which names the tensor, for a form that cannot be merged."""
    config = source.config
    kind = config.string("fine_tune_type") if config.has("fine_tune_type") else "lora"
    config.expect("fine_tune_type", "lora", "dora", "full", None)
    scale = 0.0
    if kind != "full":
        if not config.has("lora_parameters"):
            config.refuse("lora_parameters", "missing", "its scale, as mlx-lm writes it")
        scale = config.child("lora_parameters").number("scale", -1e6, 1e6)
    modules: dict[str, dict[str, TensorInfo]] = {}
    updates: dict[str, tuple[Update, ...]] = {}
    for name, info in source.file.tensors.items():
        module, _, part = name.rpartition(".")
        if kind != "full" and part in ("lora_a", "lora_b", "m"):
            modules.setdefault(module, {})[part] = info
        else:
            updates[name] = (Replacement(Factor(source.file, info), source.scale),)
    for module, parts in modules.items():
        updates[f"{module}.weight"] = (_low_rank(source, module, parts, scale, dora=kind == "dora"),)
    return AdapterUpdates(updates, frozenset(modules), embedding_is_head=True)


def _low_rank(
    source: AdapterSource, module: str, parts: Mapping[str, TensorInfo], scale: float, *, dora: bool
) -> Update:
    wanted = {"lora_a", "lora_b"} | ({"m"} if dora else set())
    if parts.keys() != wanted:
        found = f"{shorten(module)} with {', '.join(sorted(parts))}"
        raise source.refuse(found, ", ".join(sorted(wanted)), "the adapter was not saved completely: save it again")
    embedding = module.rpartition(".")[2] in _EMBEDDINGS
    a = Factor(source.file, parts["lora_a"], transposed=not embedding)
    b = Factor(source.file, parts["lora_b"], transposed=not embedding)
    left, right = (a, b) if embedding else (b, a)
    if not dora:
        return LowRank(left, right, scale * source.scale)
    return ByMagnitude(LowRank(left, right, scale), Factor(source.file, parts["m"]), source.scale)
