"""Reads the config of a Gemma 4 text model from Hugging Face's config.json, strictly.

Source: transformers 5.24 models/gemma4/configuration_gemma4.py; methods in comments are those of Gemma4TextConfig.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from converters.gemma.config import Attention, DecoderConfig, DecoderLayer, DecoderModel, Heads, layer_kv_sources
from converters.gemma.config_json import (
    LAYER_TYPE_NAMES,
    LAYER_TYPES,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    eos_source,
    eos_token_ids,
    layer_types,
    require_length,
    token_id,
)
from converters.gemma.model_classes import ModelClasses
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject

CONDITIONAL_GENERATION = "Gemma4ForConditionalGeneration"
CAUSAL_LM = "Gemma4ForCausalLM"

_log = logging.getLogger(__name__)

TEXT_MODEL_TYPE = "gemma4_text"
# Gemma 4 12B, known in order to be refused by name.
_UNIFIED = ("Gemma4UnifiedForConditionalGeneration", "Gemma4UnifiedForCausalLM")
_UNIFIED_TYPES = ("gemma4_unified", "gemma4_unified_text")
_SUPPORTED = "Gemma 4 E2B or E4B, whose per-layer embeddings can stay on flash"

# The defaults of Gemma4TextConfig; those of layer_types, rope_parameters and head sizes are rules, below.
TEXT: Mapping[str, object] = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "final_logit_softcapping": None,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}
_GLOBAL_HEAD_DIM = 512
_ROPE: Mapping[Attention, Mapping[str, object]] = {
    "sliding": {"rope_type": "default", "rope_theta": 10_000.0},
    "full": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}

# Keys that only the models without per-layer embeddings use, with the values that E2B and E4B have there.
OF_LARGER_MODELS: Mapping[str, tuple[object, ...]] = {
    "attention_k_eq_v": (False,),
    "enable_moe_block": (False,),
    "num_experts": (None,),
    "top_k_experts": (None,),
    "moe_intermediate_size": (None,),
    "expert_intermediate_size": (None,),
}

# Keys of the top level of config.json that concern images and sounds.
MULTIMODAL_KEYS = """
    audio_token_id boa_token_id boi_token_id eoa_token_id eoa_token_index eoi_token_id image_token_id video_token_id
    vision_soft_tokens_per_image
"""

_CLASSES = ModelClasses(
    "gemma4",
    CONDITIONAL_GENERATION,
    CAUSAL_LM,
    {"Gemma4Model": CONDITIONAL_GENERATION, "Gemma4TextModel": CAUSAL_LM},
    TEXT,
    MULTIMODAL_KEYS.split(),
)
ARCHITECTURES = (*_CLASSES.architectures, *_UNIFIED)
MODEL_TYPES = (*_CLASSES.model_types, *_UNIFIED_TYPES)


@dataclass(frozen=True, slots=True)
class TextConfig(DecoderConfig):
    """The config of Gemma 4's text decoder."""

    sliding_heads: Heads
    full_heads: Heads

    def heads(self, attention: Attention) -> Heads:
        """See `DecoderConfig`."""
        return self.full_heads if attention == "full" else self.sliding_heads


TextModel = DecoderModel[TextConfig]
"""A checkpoint of Gemma 4."""


def parse_config(config: object, generation: object | None, what: str) -> tuple[str, TextConfig]:
    """Parse the architecture and the text model's config from config.json and, if present, generation_config.json.

    Raises CheckpointError for a config that is not supported. If it is that of a Gemma 4 model without per-layer
    embeddings, the error names the model.
    """
    _refuse_unified(JsonObject(config, what, CheckpointError))
    sections = _CLASSES.read(config, what)
    _refuse_larger_models(sections.text)
    parsed = _text_config(sections.text, sections.top, eos_source(generation, sections.top, what))
    _CLASSES.finish(sections, read=("per_layer_config",))
    return sections.architecture, parsed


def to_hugging_face(config: TextConfig) -> dict[str, object]:
    """Write this text model's config.json as Gemma4ForCausalLM; `parse_config` of it returns an equal `config`."""
    shared = [layer.ffn_size for layer in config.layers if layer.kv_source is not None]
    width = config.layers[0].ffn_size
    return {
        "architectures": [CAUSAL_LM],
        "model_type": TEXT_MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "vocab_size_per_layer_input": config.ple_vocab_size,
        "hidden_size": config.hidden_size,
        "hidden_size_per_layer_input": config.ple_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": width,
        "use_double_wide_mlp": shared[:1] == [2 * width],
        "layer_types": [LAYER_TYPE_NAMES[layer.attention] for layer in config.layers],
        "num_kv_shared_layers": len(shared),
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.sliding_heads.dim,
        "global_head_dim": config.full_heads.dim,
        "sliding_window": config.sliding_window,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {LAYER_TYPE_NAMES[kind]: _rope_of(config.heads(kind)) for kind in LAYER_TYPE_NAMES},
        "final_logit_softcapping": config.final_logit_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
    }


def _rope_of(heads: Heads) -> dict[str, object]:
    share = heads.rotated / (heads.dim // 2)
    if share == 1.0:
        return {"rope_type": "default", "rope_theta": heads.rope_theta}
    return {"rope_type": "proportional", "rope_theta": heads.rope_theta, "partial_rotary_factor": share}


def _refuse_unified(top: JsonObject) -> None:
    """Raise CheckpointError for Gemma 4 12B, which has classes of its own."""
    for key, names in (("model_type", _UNIFIED_TYPES), ("architectures", _UNIFIED)):
        stated = top.value(key) if top.has(key) else None
        found = stated[0] if isinstance(stated, list) and stated else stated
        if found in names:
            _refuse_model(top, key, found, "12B")


def _refuse_larger_models(text: JsonObject) -> None:
    """Raise CheckpointError for the Gemma 4 models that this package does not convert."""
    if text.has("enable_moe_block") and text.value("enable_moe_block") is True:
        _refuse_model(text, "enable_moe_block", "true", "26B-A4B")
    if text.value("hidden_size_per_layer_input") in (0, None):
        width = text.value("hidden_size_per_layer_input")
        _refuse_model(text, "hidden_size_per_layer_input", width, "12B or 31B")
    for key, values in OF_LARGER_MODELS.items():
        text.expect(key, *values)


def _refuse_model(section: JsonObject, key: str, found: object, name: str) -> None:
    section.refuse(key, f"{found}, as Gemma 4 {name} has it", _SUPPORTED)


def _text_config(text: JsonObject, top: JsonObject, eos: JsonObject | None) -> TextConfig:
    vocab_size = text.integer("vocab_size", 1, MAX_VOCABULARY)
    # Unlike Gemma 3n's, this table has no row for ids beyond it: transformers fails for them.
    ple_vocab_size = text.integer("vocab_size_per_layer_input", vocab_size, MAX_VOCABULARY)
    num_kv_heads = text.integer("num_key_value_heads", 1, MAX_HEADS)
    num_heads = text.integer("num_attention_heads", 1, MAX_HEADS)
    if num_heads % num_kv_heads:
        text.refuse("num_attention_heads", num_heads, f"a multiple of num_key_value_heads, {num_kv_heads}")
    # It has no effect while keys and values are separate (attention_k_eq_v is false), but it marks another model.
    text.expect("num_global_key_value_heads", None, num_kv_heads)
    attention = attention_types(text)
    sliding, full = layer_heads(text, attention, num_kv_heads)
    softcap = text.number("final_logit_softcapping", 1e-3, 1e6) if text.has("final_logit_softcapping") else None
    return TextConfig(
        vocab_size=vocab_size,
        ple_vocab_size=ple_vocab_size,
        hidden_size=text.integer("hidden_size", 1, MAX_WIDTH),
        ple_size=text.integer("hidden_size_per_layer_input", 1, MAX_WIDTH),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        sliding_window=text.integer("sliding_window", 1, MAX_POSITIONS),
        max_positions=text.integer("max_position_embeddings", 1, MAX_POSITIONS),
        rms_norm_eps=text.number("rms_norm_eps", 1e-12, 1e-1),
        final_logit_softcap=softcap,
        layers=_layers(text, attention),
        bos_token_id=token_id("bos_token_id", 2, text, top, vocab_size),
        eos_token_ids=eos_token_ids(eos, text, vocab_size),
        pad_token_id=token_id("pad_token_id", 0, text, top, vocab_size),
        sliding_heads=sliding,
        full_heads=full,
    )


def _layers(text: JsonObject, attention: Sequence[Attention]) -> tuple[DecoderLayer, ...]:
    shared = text.integer("num_kv_shared_layers", 0, len(attention) - 1)
    if set(attention[: len(attention) - shared]) != set(attention):
        wanted = "an owner of each type before the shared layers"
        text.refuse("num_kv_shared_layers", shared, wanted)
    width = text.integer("intermediate_size", 1, MAX_WIDTH)
    # Gemma4TextMLP: layers that read another layer's cache have a feed-forward network twice as wide.
    wide = width * (2 if text.flag("use_double_wide_mlp") else 1)
    sources = layer_kv_sources(attention, shared)
    return tuple(
        DecoderLayer(kind, width if source is None else wide, source)
        for kind, source in zip(attention, sources, strict=True)
    )


def attention_types(text: JsonObject) -> tuple[Attention, ...]:
    """The type of each layer; as in transformers (__post_init__), the last one is full whatever the config says."""
    count = text.integer("num_hidden_layers", 1, MAX_LAYERS)
    if not text.has("layer_types"):
        types: tuple[Attention, ...] = tuple("sliding" if (i + 1) % 6 else "full" for i in range(count))
    else:
        types = layer_types(text)
        require_length(text, "layer_types", len(types), count)
        if types[-1] != "full":
            _log.warning("layer_types ends with sliding_attention: as in transformers, the last layer is full")
    return (*types[:-1], "full")


# --- heads -----------------------------------------------------------------------------------------------------------


def layer_heads(text: JsonObject, attention: Sequence[Attention], num_kv_heads: int) -> tuple[Heads, Heads]:
    """The heads of sliding layers, and of those with full attention."""
    sizes = _head_sizes(text, attention, num_kv_heads)
    sliding, full = _rope(text, "sliding", sizes["sliding"]), _rope(text, "full", sizes["full"])
    if text.has("rope_parameters"):
        _finish_rope(text)
    return sliding, full


def _head_sizes(text: JsonObject, attention: Sequence[Attention], num_kv_heads: int) -> dict[Attention, int]:
    """The head size of each type of layer, from global_head_dim (as published) or per_layer_config (as saved)."""
    usual = text.integer("head_dim", 2, MAX_WIDTH)
    stated = text.integer("global_head_dim", 2, MAX_WIDTH) if text.has("global_head_dim") else None
    sizes: dict[Attention, int] = {"sliding": usual, "full": _GLOBAL_HEAD_DIM if stated is None else stated}
    if "per_layer_config" in text.names():
        by_layer = _per_layer_sizes(text, len(attention), usual, num_kv_heads)
        for kind in sizes:
            found = {by_layer[i] for i, own in enumerate(attention) if own == kind}
            if len(found) > 1:
                text.refuse("per_layer_config", f"head_dim {sorted(found)}", f"one head_dim for all {kind} layers")
            sizes[kind] = next(iter(found), usual)
        if stated not in (None, sizes["full"]):
            text.refuse("global_head_dim", stated, f"{sizes['full']}, as per_layer_config says")
    for kind, size in sizes.items():
        if size % 2:
            text.refuse("head_dim", f"{size} in {kind} layers", "an even number, which rotary embeddings need")
    return sizes


def _per_layer_sizes(text: JsonObject, count: int, usual: int, num_kv_heads: int) -> list[int]:
    sizes = [usual] * count
    overrides = text.child("per_layer_config") if text.has("per_layer_config") else None
    for key in overrides.names() if overrides is not None else ():
        assert overrides is not None
        if not (key.isascii() and key.isdigit() and int(key) < count):
            overrides.refuse(key, "a layer", f"layer indices below {count}")
        layer = overrides.child(key)
        if layer.has("head_dim"):
            sizes[int(key)] = layer.integer("head_dim", 2, MAX_WIDTH)
        layer.expect("num_key_value_heads", num_kv_heads)
        layer.finish()
    return sizes


def _rope(text: JsonObject, kind: Attention, dim: int) -> Heads:
    """The heads of one type of layer, with their rotary embedding."""
    name = LAYER_TYPE_NAMES[kind]
    values = text.child("rope_parameters").value(name) if text.has("rope_parameters") else dict(_ROPE[kind])
    rope = JsonObject(values, text.file, CheckpointError, f"{text.place} {name}" if text.place else name)
    rope_type = rope.string("rope_type")
    rotated = dim // 2
    if rope_type == "proportional":
        share = rope.number("partial_rotary_factor", 0.0, 1.0) if rope.has("partial_rotary_factor") else 1.0
        rope.expect("factor", 1.0, 1)
        rotated = int(share * dim // 2)  # _compute_proportional_rope_parameters
    elif rope_type == "default":
        rope.expect("partial_rotary_factor", 1.0, 1)
    else:
        rope.refuse("rope_type", rope_type, "default or proportional")
    rope.expect("type", rope_type)
    theta = rope.number("rope_theta", 1.0, 1e12)
    rope.finish()
    return Heads(dim, theta, rotated)


def _finish_rope(text: JsonObject) -> None:
    parameters = text.child("rope_parameters")
    parameters.ignore(LAYER_TYPES)
    parameters.finish()
