"""Reads the config of a Gemma 4 drafter from Hugging Face's config.json, strictly.

Source: transformers 5.24 models/gemma4_assistant/configuration_gemma4_assistant.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from converters.gemma.config import DecoderLayer
from converters.gemma.config_json import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    finish_section,
    section,
)
from converters.gemma4.config import (
    MULTIMODAL_KEYS,
    OF_LARGER_MODELS,
    TEXT_MODEL_TYPE,
    TextConfig,
    attention_types,
    layer_heads,
)
from converters.gemma4.config import TEXT as TEXT_DEFAULTS
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject

ARCHITECTURE = "Gemma4AssistantForCausalLM"
MODEL_TYPE = "gemma4_assistant"

# The defaults of Gemma4AssistantConfig, and those of its text model that its checks replace.
_TOP: Mapping[str, object] = {
    "backbone_hidden_size": 1536,
    "use_ordered_embeddings": False,
    "num_centroids": 2048,
    "centroid_intermediate_top_k": 32,
}
_TEXT: Mapping[str, object] = {
    **TEXT_DEFAULTS,
    "vocab_size_per_layer_input": 0,
    "hidden_size_per_layer_input": 0,
}


@dataclass(frozen=True, slots=True)
class AssistantConfig:
    """The config of a drafter."""

    decoder: TextConfig
    """Its layers, all of which read caches of the model that it drafts for; it has no per-layer embeddings."""
    target_hidden_size: int
    """The hidden size of that model."""
    num_centroids: int | None
    """The clusters of its vocabulary, by which transformers leaves out tokens; None without."""


def parse_assistant_config(config: object, what: str) -> AssistantConfig:
    """Parse config.json; CheckpointError for a key that is unknown, or a value that is not supported."""
    top = JsonObject({**_TOP, **config} if isinstance(config, dict) else config, what, CheckpointError)
    top.expect("model_type", MODEL_TYPE)
    if top.has("architectures") and top.value("architectures") != [ARCHITECTURE]:
        top.refuse("architectures", top.value("architectures"), ARCHITECTURE)
    for key in ("quantization_config", "quantization"):
        if top.has(key):
            top.refuse(key, "quantised weights", "a drafter in 16 or 32 bits: a bundle quantises it")
    text = section(top, "text_config", _TEXT)
    text.expect("model_type", TEXT_MODEL_TYPE)
    decoder = _decoder(text)
    finish_section(text, read=("per_layer_config",))
    clusters = top.integer("num_centroids", 1, MAX_VOCABULARY) if top.flag("use_ordered_embeddings") else None
    if clusters is not None and decoder.vocab_size % clusters:
        top.refuse("num_centroids", clusters, f"a divisor of vocab_size, {decoder.vocab_size}")
    top.ignore(("num_centroids", "centroid_intermediate_top_k", *MULTIMODAL_KEYS.split()))
    top.ignore(("bos_token_id", "eos_token_id", "pad_token_id"))
    hidden = top.integer("backbone_hidden_size", 1, MAX_WIDTH)
    finish_section(top)
    return AssistantConfig(decoder, hidden, clusters)


def _decoder(text: JsonObject) -> TextConfig:
    for key, values in OF_LARGER_MODELS.items():
        text.expect(key, *values)
    text.expect("use_double_wide_mlp", False)
    for key in ("hidden_size_per_layer_input", "vocab_size_per_layer_input"):
        text.expect(key, 0)
    text.ignore(("bos_token_id", "eos_token_id", "pad_token_id", "final_logit_softcapping"))
    attention = attention_types(text)
    count = len(attention)
    # As in transformers, 0 stands for all.
    if text.integer("num_kv_shared_layers", 0, MAX_LAYERS) not in (0, count):
        text.refuse("num_kv_shared_layers", text.value("num_kv_shared_layers"), f"{count}, all layers of a drafter")
    vocab_size = text.integer("vocab_size", 1, MAX_VOCABULARY)
    num_heads = text.integer("num_attention_heads", 1, MAX_HEADS)
    num_kv_heads = text.integer("num_key_value_heads", 1, MAX_HEADS)
    if num_heads % num_kv_heads:
        text.refuse("num_attention_heads", num_heads, f"a multiple of num_key_value_heads, {num_kv_heads}")
    text.expect("num_global_key_value_heads", None, num_kv_heads)
    width = text.integer("intermediate_size", 1, MAX_WIDTH)
    sliding, full = layer_heads(text, attention, num_kv_heads)
    return TextConfig(
        vocab_size=vocab_size,
        ple_vocab_size=0,
        hidden_size=text.integer("hidden_size", 1, MAX_WIDTH),
        ple_size=0,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        sliding_window=text.integer("sliding_window", 1, MAX_POSITIONS),
        max_positions=text.integer("max_position_embeddings", 1, MAX_POSITIONS),
        rms_norm_eps=text.number("rms_norm_eps", 1e-12, 1e-1),
        # The order of logits, which is all that a draft needs, does not depend on it.
        final_logit_softcap=None,
        # Each reads the cache of the target's last owner of its type, which is no layer of its own.
        layers=tuple(DecoderLayer(kind, width, index) for index, kind in enumerate(attention)),
        bos_token_id=0,
        eos_token_ids=(0,),
        pad_token_id=0,
        sliding_heads=sliding,
        full_heads=full,
    )
