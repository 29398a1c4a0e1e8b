"""Reads strictly what the config.json files of Gemma models have in common.

Every key that transformers knows is used, checked to have the only supported value, or listed as having no effect; any
other key is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from converters.gemma.config import Attention
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject

LAYER_TYPES: Mapping[str, Attention] = {"sliding_attention": "sliding", "full_attention": "full"}
LAYER_TYPE_NAMES: Mapping[Attention, str] = {attention: name for name, attention in LAYER_TYPES.items()}

# Bounds far above any Gemma, and low enough not to exhaust memory before a shape is compared with a file.
MAX_VOCABULARY = 1 << 24
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 10
MAX_HEADS = 1 << 12
MAX_POSITIONS = 1 << 31

# Training, bookkeeping and generation settings: they do not affect the forward pass.
_WITHOUT_EFFECT = """
    _attn_implementation_autoset _commit_hash _name_or_path architectures auto_map attention_dropout attn_implementation
    cache_implementation dtype finetuning_task id2label initializer_range label2id ignore_index name_or_path
    output_attentions output_hidden_states prefix problem_type query_pre_attn_scalar return_dict task_specific_params
    tokenizer_class torch_dtype torchscript transformers_version unsloth_fixed unsloth_version use_cache
"""
# GenerationConfig, which transformers 4 allowed in config.json.
_GENERATION = """
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id suppress_tokens
    temperature top_k top_p typical_p assistant_confidence_threshold assistant_lookbehind encoder_repetition_penalty
    epsilon_cutoff eta_cutoff num_assistant_tokens num_assistant_tokens_schedule target_lookbehind
"""

# The only values that the forward pass supports; others would need other math.
_ONLY_VALUES: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("gelu_pytorch_tanh",),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "per_layer_config": (None,),
    "pruned_heads": ({}, None),
    "rope_scaling": (None,),
    "tf_legacy_loss": (False,),
    "tie_encoder_decoder": (False,),
    "use_bfloat16": (False,),
    "use_bidirectional_attention": (False, None),
}

# checkpoint.py compares these with the tensors: whether they are quantised, and whether there is an output matrix.
_ABOUT_TENSORS = ("quantization_config", "quantization", "tie_word_embeddings")


def with_defaults(values: object, defaults: Mapping[str, object]) -> object:
    """Add the defaults of the keys that an object does not have.

    >>> with_defaults({"a": 1}, {"a": 2, "b": 3})
    {'a': 1, 'b': 3}
    """
    return {**defaults, **values} if isinstance(values, dict) else values


def section(top: JsonObject, key: str, missing: Mapping[str, object]) -> JsonObject:
    """A section of config.json, with defaults for missing keys; the whole section may be missing."""
    values = with_defaults(top.value(key) if top.has(key) else {}, missing)
    return JsonObject(values, top.file, CheckpointError, key)


def finish_section(section: JsonObject, read: Collection[str] = ()) -> None:
    """Check the keys that every section may have, except those that were `read`, and refuse unknown keys."""
    for key, values in _ONLY_VALUES.items():
        if key not in read:
            section.expect(key, *values)
    section.ignore(_WITHOUT_EFFECT.split())
    section.ignore(_GENERATION.split())
    section.ignore(_ABOUT_TENSORS)
    section.finish()


def ignore_repeated(top: JsonObject, text: JsonObject, keys: Mapping[str, object]) -> None:
    """Skip copies of the text model's numbers, which trainers put at the top level; CheckpointError if one differs."""
    for key in keys:
        top.expect(key, text.value(key))


def layer_types(text: JsonObject) -> tuple[Attention, ...]:
    """The types of attention that `layer_types` lists."""
    types: list[Attention] = []
    for name in text.array("layer_types"):
        if not isinstance(name, str) or name not in LAYER_TYPES:
            text.refuse("layer_types", name, " or ".join(LAYER_TYPES))
        types.append(LAYER_TYPES[name])
    return tuple(types)


def require_length(text: JsonObject, key: str, found: int, wanted: int) -> None:
    """Raise CheckpointError unless a list has one entry for each layer."""
    if found != wanted:
        text.refuse(key, f"{found} entries", f"{wanted}, one for each of num_hidden_layers")


def token_id(key: str, default: int, text: JsonObject, top: JsonObject, vocab_size: int) -> int:
    """A token id: from the top level, else from the text model's section, else the default of transformers' class."""
    found = [section for section in (top, text) if section.has(key)]
    ids = [section.integer(key, 0, vocab_size - 1) for section in found]
    return ids[0] if ids else default


def eos_source(generation: object | None, top: JsonObject, what: str) -> JsonObject | None:
    """The file that states the stop tokens: generation_config.json takes precedence, as in transformers."""
    top_has = top.has("eos_token_id")
    if generation is not None:
        stated = JsonObject(generation, f"generation_config.json beside {what}", CheckpointError)
        if stated.has("eos_token_id"):
            return stated
    return top if top_has else None


def eos_token_ids(source: JsonObject | None, text: JsonObject, vocab_size: int) -> tuple[int, ...]:
    stated = source if source is not None else text
    in_text = text.has("eos_token_id")
    if source is None and not in_text:
        return (1,)
    if not isinstance(stated.value("eos_token_id"), list):
        return (stated.integer("eos_token_id", 0, vocab_size - 1),)
    ids = stated.integers("eos_token_id", 0, vocab_size - 1)
    if not ids:
        stated.refuse("eos_token_id", [], "at least one stop token")
    return ids
