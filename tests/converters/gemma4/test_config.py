from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from converters.gemma.config import DecoderLayer, Heads
from converters.gemma4.config import TEXT, TextConfig, parse_config, to_hugging_face
from toolkit.base.errors import CheckpointError

S, F = "sliding_attention", "full_attention"

# Keys that transformers 5 writes into every section.
GENERIC: Mapping[str, object] = {
    "_name_or_path": "",
    "architectures": None,
    "chunk_size_feed_forward": 0,
    "dtype": "bfloat16",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "output_attentions": False,
    "output_hidden_states": False,
    "problem_type": None,
    "return_dict": True,
}

# E2B's as published.
TEXT_SECTION: Mapping[str, object] = {
    **GENERIC,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "bos_token_id": 2,
    "enable_moe_block": False,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1536,
    "hidden_size_per_layer_input": 256,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "layer_types": [S, S, S, S, F] * 7,
    "max_position_embeddings": 131072,
    "model_type": "gemma4_text",
    "moe_intermediate_size": None,
    "num_attention_heads": 8,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "num_hidden_layers": 35,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        F: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        S: {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_cache": True,
    "use_double_wide_mlp": True,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
}
PUBLISHED: Mapping[str, object] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "audio_config": {**GENERIC, "model_type": "gemma4_audio", "hidden_size": 1024, "use_clipped_linears": True},
    "audio_token_id": 258881,
    "boa_token_id": 256000,
    "boi_token_id": 255999,
    "dtype": "bfloat16",
    "eoa_token_id": 258883,
    "eoa_token_index": 258883,
    "eoi_token_id": 258882,
    "image_token_id": 258880,
    "initializer_range": 0.02,
    "model_type": "gemma4",
    "text_config": TEXT_SECTION,
    "tie_word_embeddings": True,
    "transformers_version": "5.5.0.dev0",
    "video_token_id": 258884,
    "vision_config": {**GENERIC, "model_type": "gemma4_vision", "hidden_size": 768, "patch_size": 16},
    "vision_soft_tokens_per_image": 280,
}
CAUSAL: Mapping[str, object] = {**TEXT_SECTION, "architectures": ["Gemma4ForCausalLM"]}


def parse(config: object, generation: object = None) -> TextConfig:
    # Through JSON, as from a file.
    return parse_config(json.loads(json.dumps(config)), generation, "config.json")[1]


def changed(**keys: object) -> dict[str, object]:
    return {**CAUSAL, **keys}


def refused(config: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(config)
    return str(caught.value)


def test_the_published_config_of_e2b() -> None:
    config = parse(PUBLISHED, {"eos_token_id": [1, 106, 50]})
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (35, 1536, 8, 1)
    assert config.heads("sliding") == Heads(256, 1e4, 128)
    assert config.heads("full") == Heads(512, 1e6, 64)
    assert config.layers[0] == DecoderLayer("sliding", 6144, None)
    assert config.layers[14] == DecoderLayer("full", 6144, None)
    assert config.layers[15] == DecoderLayer("sliding", 12288, 13)
    assert config.layers[34] == DecoderLayer("full", 12288, 14)
    assert config.kv_layers == tuple(range(15))
    assert config.eos_token_ids == (1, 106, 50)
    assert parse(CAUSAL) == parse(PUBLISHED)


def test_the_form_that_transformers_saves_says_the_same() -> None:
    saved = {
        key: value for key, value in CAUSAL.items() if key not in ("global_head_dim", "num_global_key_value_heads")
    }
    full = [index for index in range(35) if index % 5 == 4]
    assert parse({**saved, "per_layer_config": {f"{i:02}": {"head_dim": 512} for i in full}}) == parse(CAUSAL)
    every = {str(i): {"head_dim": 512 if i in full else 256, "num_key_value_heads": 1} for i in range(35)}
    assert parse({**saved, "per_layer_config": every}) == parse(CAUSAL)


@pytest.mark.reference
def test_transformers_reads_and_writes_what_is_read_here() -> None:
    transformers = pytest.importorskip("transformers")
    config = parse(CAUSAL)
    theirs = transformers.Gemma4TextConfig(**to_hugging_face(config))
    assert parse({**theirs.to_dict(), "architectures": ["Gemma4ForCausalLM"]}) == config
    defaults = transformers.Gemma4TextConfig()
    assert {key: getattr(defaults, key) for key in TEXT if key != "head_dim"} == {
        key: value for key, value in TEXT.items() if key != "head_dim"
    }
    own = {"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text"}
    assert parse(own) == parse({**defaults.to_dict(), **own})


def test_a_config_that_is_written_is_read_again() -> None:
    config = parse(CAUSAL)
    assert parse(to_hugging_face(config)) == config


def test_a_last_layer_with_a_window_is_full_as_in_transformers(caplog: pytest.LogCaptureFixture) -> None:
    config = parse(changed(num_hidden_layers=6, num_kv_shared_layers=0, layer_types=[S, F, S, F, F, S]))
    assert [layer.attention for layer in config.layers] == ["sliding", "full", "sliding", "full", "full", "full"]
    assert "the last layer is full" in caplog.text


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"hidden_size_per_layer_input": 0}, "12B or 31B"),
        ({"hidden_size_per_layer_input": None}, "12B or 31B"),
        ({"enable_moe_block": True, "num_experts": 128, "hidden_size_per_layer_input": 0}, "26B-A4B"),
        ({"architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified"}, "12B"),
    ],
    ids=str,
)
def test_models_without_per_layer_embeddings_are_refused_by_name(keys: dict[str, object], name: str) -> None:
    text = refused(changed(**keys))
    assert f"Gemma 4 {name}" in text
    assert "E2B or E4B" in text


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"attention_k_eq_v": True}, "attention_k_eq_v"),
        ({"num_global_key_value_heads": 4}, "num_global_key_value_heads"),
        ({"use_bidirectional_attention": "vision"}, "use_bidirectional_attention"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"vocab_size_per_layer_input": 262_143}, "vocab_size_per_layer_input"),
        ({"intermediate_size": [6144] * 35}, "intermediate_size"),
        ({"num_kv_shared_layers": 34}, "an owner of each type"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "multiple"),
        ({"layer_types": [S, F]}, "2 entries"),
        ({"global_head_dim": 511}, "even number"),
        ({"per_layer_config": {"4": {"head_dim": 512}}}, "one head_dim for all full layers"),
        ({"per_layer_config": {"35": {"head_dim": 512}}}, "layer indices below 35"),
        ({"per_layer_config": {"4": {"sliding_window": 2}}}, "sliding_window"),
        ({"rope_parameters": {S: {"rope_type": "default", "rope_theta": 1e4}}}, "full_attention"),
        ({"rope_parameters": {S: {"rope_type": "yarn", "rope_theta": 1e4}, F: {}}}, "yarn"),
        ({"rope_parameters": {"factor": 2, **TEXT_SECTION["rope_parameters"]}}, "factor"),  # type: ignore[dict-item]
        ({"laurel_rank": 64}, "laurel_rank"),
        ({"altup_num_inputs": 4}, "altup_num_inputs"),
        ({"model_type": "gemma3n_text"}, "gemma4_text"),
        ({"architectures": ["Gemma4ForSequenceClassification"]}, "Gemma4ForConditionalGeneration"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_graphs_would_get_wrong_is_refused(keys: dict[str, object], found: str) -> None:
    assert found in refused(changed(**keys))


def test_towers_of_another_model_are_refused() -> None:
    assert "gemma4_vision" in refused({**PUBLISHED, "vision_config": {"model_type": "gemma3n_vision"}})
