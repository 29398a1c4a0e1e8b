"""Reads the config of a Gemma 3n text model from Hugging Face's config.json, strictly.

Every key that transformers knows is used, checked to have the only supported value, or listed as having no effect; any
other key is an error. Source: transformers 5.23 models/gemma3n/configuration_gemma3n.py, and 4.53 for old checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from converters.gemma.config import Attention, DecoderConfig, DecoderLayer, DecoderModel, Heads, layer_kv_sources
from converters.gemma.config_json import (
    LAYER_TYPE_NAMES,
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
from converters.gemma3n.config import defaults
from toolkit.base.strict_json import JsonObject

CONDITIONAL_GENERATION = "Gemma3nForConditionalGeneration"
CAUSAL_LM = "Gemma3nForCausalLM"

_log = logging.getLogger(__name__)

_MAX_SPARSITY = 0.999999  # at 1.0 the threshold is infinite

# Training settings of Gemma 3n, which have no effect here.
_WITHOUT_EFFECT = ("altup_coef_clip", "altup_lr_multiplier")

# Keys of the top level of config.json that concern images and sounds.
_MULTIMODAL_KEYS = """
    audio_soft_tokens_per_image vision_soft_tokens_per_image audio_token_id boa_token_id boi_token_id eoa_token_id
    eoi_token_id image_token_id
"""

_CLASSES = ModelClasses(
    "gemma3n",
    CONDITIONAL_GENERATION,
    CAUSAL_LM,
    {"Gemma3nModel": CONDITIONAL_GENERATION, "Gemma3nTextModel": CAUSAL_LM},
    defaults.TEXT,
    _MULTIMODAL_KEYS.split(),
)
ARCHITECTURES = _CLASSES.architectures
MODEL_TYPES = _CLASSES.model_types


@dataclass(frozen=True, slots=True)
class LayerConfig(DecoderLayer):
    """One decoder layer of Gemma 3n."""

    sparsity: float
    """The fraction of the gate that is set to zero, e.g. 0.95; 0.0 is dense."""


@dataclass(frozen=True, slots=True)
class TextConfig(DecoderConfig):
    """The config of Gemma 3n's text decoder."""

    layers: tuple[LayerConfig, ...]
    head_dim: int
    rope_theta_full: float
    rope_theta_sliding: float
    laurel_rank: int
    altup_num_inputs: int
    altup_active_index: int
    altup_correct_scale: bool

    def heads(self, attention: Attention) -> Heads:
        """See `DecoderConfig`; all layers have heads of one size, in which every pair rotates."""
        theta = self.rope_theta_full if attention == "full" else self.rope_theta_sliding
        return Heads(self.head_dim, theta, self.head_dim // 2)

    @property
    def layer_kinds(self) -> Mapping[str, tuple[int, ...]]:
        """Those of `DecoderConfig`, and `sparse`: the layers that set most of the gate to zero."""
        sparse = tuple(index for index, layer in enumerate(self.layers) if layer.sparsity > 0)
        return {**super(TextConfig, self).layer_kinds, "sparse": sparse}


TextModel = DecoderModel[TextConfig]
"""A checkpoint of Gemma 3n, or a slice of one."""


def parse_config(config: object, generation: object | None, what: str) -> tuple[str, TextConfig]:
    """Parse the architecture and the text model's config from config.json and, if present, generation_config.json."""
    sections = _CLASSES.read(config, what)
    parsed = _text_config(sections.text, sections.top, eos_source(generation, sections.top, what))
    for part in (sections.text, sections.top):
        part.ignore(_WITHOUT_EFFECT)
    _CLASSES.finish(sections)
    return sections.architecture, parsed


def to_hugging_face(config: TextConfig) -> dict[str, object]:
    """Write this text model's config.json as Gemma3nForCausalLM; `parse_config` of it returns an equal `config`."""
    return {
        "architectures": [CAUSAL_LM],
        "model_type": "gemma3n_text",
        "vocab_size": config.vocab_size,
        "vocab_size_per_layer_input": config.ple_vocab_size,
        "hidden_size": config.hidden_size,
        "hidden_size_per_layer_input": config.ple_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": [layer.ffn_size for layer in config.layers],
        "layer_types": [LAYER_TYPE_NAMES[layer.attention] for layer in config.layers],
        "activation_sparsity_pattern": [layer.sparsity for layer in config.layers],
        "num_kv_shared_layers": config.num_layers - len(config.kv_layers),
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "sliding_window": config.sliding_window,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta_full},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta_sliding},
        },
        "laurel_rank": config.laurel_rank,
        "altup_num_inputs": config.altup_num_inputs,
        "altup_active_idx": config.altup_active_index,
        "altup_correct_scale": config.altup_correct_scale,
        "final_logit_softcapping": config.final_logit_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
    }


def _text_config(text: JsonObject, top: JsonObject, eos: JsonObject | None) -> TextConfig:
    vocab_size = text.integer("vocab_size", 1, MAX_VOCABULARY)
    theta_full, theta_sliding = _rope_thetas(text)
    num_kv_heads = text.integer("num_key_value_heads", 1, MAX_HEADS)
    num_heads = text.integer("num_attention_heads", 1, MAX_HEADS)
    if num_heads % num_kv_heads:
        text.refuse("num_attention_heads", num_heads, f"a multiple of num_key_value_heads, {num_kv_heads}")
    head_dim = text.integer("head_dim", 2, MAX_WIDTH)
    if head_dim % 2:
        text.refuse("head_dim", head_dim, "an even number, which rotary embeddings need")
    altup_num_inputs = text.integer("altup_num_inputs", 2, 64)  # a single stream has no others to predict
    softcap = text.number("final_logit_softcapping", 1e-3, 1e6) if text.has("final_logit_softcapping") else None
    text.value("final_logit_softcapping")
    return TextConfig(
        vocab_size=vocab_size,
        ple_vocab_size=text.integer("vocab_size_per_layer_input", 1, MAX_VOCABULARY),
        hidden_size=text.integer("hidden_size", 1, MAX_WIDTH),
        ple_size=text.integer("hidden_size_per_layer_input", 1, MAX_WIDTH),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        sliding_window=text.integer("sliding_window", 1, MAX_POSITIONS),
        max_positions=text.integer("max_position_embeddings", 1, MAX_POSITIONS),
        rms_norm_eps=text.number("rms_norm_eps", 1e-12, 1e-1),
        rope_theta_full=theta_full,
        rope_theta_sliding=theta_sliding,
        laurel_rank=text.integer("laurel_rank", 1, MAX_WIDTH),
        altup_num_inputs=altup_num_inputs,
        altup_active_index=text.integer("altup_active_idx", 0, altup_num_inputs - 1),
        altup_correct_scale=text.flag("altup_correct_scale"),
        final_logit_softcap=softcap,
        layers=_layers(text),
        bos_token_id=token_id("bos_token_id", 2, text, top, vocab_size),
        eos_token_ids=eos_token_ids(eos, text, vocab_size),
        pad_token_id=token_id("pad_token_id", 0, text, top, vocab_size),
    )


def _layers(text: JsonObject) -> tuple[LayerConfig, ...]:
    count = text.integer("num_hidden_layers", 1, MAX_LAYERS)
    attention = _layer_types(text, count)
    sizes = _per_layer_sizes(text, count)
    sparsity = _sparsity_pattern(text, count)
    shared = text.integer("num_kv_shared_layers", 0, count - 1)
    try:
        sources = layer_kv_sources(attention, shared)
    except ValueError as error:
        text.refuse("num_kv_shared_layers", f"{shared}: {error}", "an owner of each type before the shared layers")
    return tuple(LayerConfig(*layer) for layer in zip(attention, sizes, sources, sparsity, strict=True))


def _layer_types(text: JsonObject, count: int) -> tuple[Attention, ...]:
    if not text.has("layer_types"):
        # Gemma3nTextConfig.__post_init__: every fifth layer is global.
        return tuple("full" if (index + 1) % 5 == 0 else "sliding" for index in range(count))
    types = layer_types(text)
    if len(types) > count:
        # MatFormer Lab keeps the full model's list in the config of a slice; transformers 4.53 used the first entries.
        _log.warning("layer_types has %d entries for %d layers: the first ones are used", len(types), count)
        types = types[:count]
    require_length(text, "layer_types", len(types), count)
    return types


def _per_layer_sizes(text: JsonObject, count: int) -> tuple[int, ...]:
    if not isinstance(text.value("intermediate_size"), list):
        return (text.integer("intermediate_size", 1, MAX_WIDTH),) * count
    sizes = text.integers("intermediate_size", 1, MAX_WIDTH)
    require_length(text, "intermediate_size", len(sizes), count)
    return sizes


def _sparsity_pattern(text: JsonObject, count: int) -> tuple[float, ...]:
    if not text.has("activation_sparsity_pattern"):
        # Gemma3nTextConfig.__post_init__: ten sparse layers, none in models of at most ten.
        sparse = 10 if count > 10 else 0
        return (0.95,) * sparse + (0.0,) * (count - sparse)
    if not isinstance(text.value("activation_sparsity_pattern"), list):
        return (text.number("activation_sparsity_pattern", 0.0, _MAX_SPARSITY),) * count
    pattern = text.numbers("activation_sparsity_pattern", 0.0, _MAX_SPARSITY)
    require_length(text, "activation_sparsity_pattern", len(pattern), count)
    return pattern


def _rope_thetas(text: JsonObject) -> tuple[float, float]:
    """The RoPE bases of full and sliding layers; old and new keys may both be present if they agree."""
    parameters = text.child("rope_parameters") if text.has("rope_parameters") else None
    full = _rope_theta(text, "rope_theta", parameters, "full_attention", defaults.ROPE_THETA_FULL)
    sliding = _rope_theta(text, "rope_local_base_freq", parameters, "sliding_attention", defaults.ROPE_THETA_SLIDING)
    if parameters is not None:
        parameters.finish()
    return full, sliding


def _rope_theta(text: JsonObject, old_key: str, parameters: JsonObject | None, kind: str, default: float) -> float:
    """The RoPE base in rope_parameters, else that of the old key, else transformers' default."""
    old = text.number(old_key, 1.0, 1e12) if text.has(old_key) else None
    if parameters is None or not parameters.has(kind):
        return default if old is None else old
    rope = parameters.child(kind)
    rope.expect("rope_type", "default")
    rope.expect("type", "default")
    rope.expect("partial_rotary_factor", 1.0, 1)
    new = rope.number("rope_theta", 1.0, 1e12) if rope.has("rope_theta") else None
    rope.finish()
    if old is not None and new is not None and old != new:
        text.refuse(old_key, old, f"{new}, as rope_parameters says")
    return next((theta for theta in (new, old) if theta is not None), default)
