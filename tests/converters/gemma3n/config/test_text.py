from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from checkpoints import TINY, TINY_MULTIMODAL, F, S
from hypothesis import given
from hypothesis import strategies as st

from converters.gemma3n.config import defaults
from converters.gemma3n.config.text import LayerConfig, TextConfig, parse_config, to_hugging_face
from toolkit.base.errors import CheckpointError

# The published gemma-3n-E4B-it as transformers 4.53 wrote it: every key that is there, and none of today's.
PUBLISHED: dict[str, object] = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "audio_config": {"model_type": "gemma3n_audio", "hidden_size": 1536, "torch_dtype": "bfloat16"},
    "audio_soft_tokens_per_image": 188,
    "audio_token_id": 262273,
    "boa_token_id": 256000,
    "boi_token_id": 255999,
    "eoa_token_id": 262272,
    "eoi_token_id": 262144,
    "eos_token_id": [1, 106],
    "image_token_id": 262145,
    "initializer_range": 0.02,
    "model_type": "gemma3n",
    "text_config": {
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25,
        "altup_active_idx": 0,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_lr_multiplier": 1.0,
        "altup_num_inputs": 4,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2048,
        "hidden_size_per_layer_input": 256,
        "initializer_range": 0.02,
        "intermediate_size": [16384] * 35,
        "laurel_rank": 64,
        "layer_types": [S, S, S, S, F] * 7,
        "max_position_embeddings": 32768,
        "model_type": "gemma3n_text",
        "num_attention_heads": 8,
        "num_hidden_layers": 35,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 15,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.53.0.dev0",
    "vision_config": {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc", "hidden_size": 2048},
    "vision_soft_tokens_per_image": 256,
}


def parse(config: object, generation: object = None) -> TextConfig:
    # Through JSON, as from a file.
    return parse_config(json.loads(json.dumps(config)), generation, "config.json")[1]


def changed(**keys: object) -> dict[str, object]:
    return {**TINY, **keys}


def without(*names: str, **keys: object) -> dict[str, object]:
    return {key: value for key, value in {**TINY, **keys}.items() if key not in names}


def test_the_published_config_reads_as_documented() -> None:
    architecture, config = parse_config(PUBLISHED, None, "config.json")
    assert architecture == "Gemma3nForConditionalGeneration"
    assert (config.vocab_size, config.ple_vocab_size, config.hidden_size, config.ple_size) == (
        262400,
        262144,
        2048,
        256,
    )
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 2, 256)
    assert (config.sliding_window, config.max_positions, config.rms_norm_eps) == (512, 32768, 1e-6)
    assert (config.rope_theta_full, config.rope_theta_sliding) == (1e6, 1e4)
    assert (config.laurel_rank, config.altup_num_inputs, config.altup_active_index) == (64, 4, 0)
    assert (config.altup_correct_scale, config.final_logit_softcap) == (True, 30.0)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (2, (1, 106), 0)
    assert config.num_layers == 35
    assert config.kv_layers == tuple(range(20))
    assert [i for i, layer in enumerate(config.layers) if layer.attention == "full"] == [4, 9, 14, 19, 24, 29, 34]
    assert {layer.kv_source for layer in config.layers[20:] if layer.attention == "sliding"} == {18}
    assert {layer.kv_source for layer in config.layers[20:] if layer.attention == "full"} == {19}


def test_each_layer_is_described() -> None:
    config = parse(changed(intermediate_size=[10, 20, 30, 40, 50, 60, 70]))
    assert config.layers == (
        LayerConfig("sliding", 10, None, 0.95),
        LayerConfig("sliding", 20, None, 0.95),
        LayerConfig("full", 30, None, 0.8),
        LayerConfig("sliding", 40, None, 0.0),
        LayerConfig("full", 50, None, 0.0),
        LayerConfig("sliding", 60, 3, 0.0),
        LayerConfig("full", 70, 4, 0.0),
    )
    assert config.kv_layers == (0, 1, 2, 3, 4)


def test_a_config_written_back_reads_the_same() -> None:
    for source in (TINY, TINY_MULTIMODAL, PUBLISHED, changed(num_kv_shared_layers=0, final_logit_softcapping=None)):
        config = parse(source)
        assert parse(to_hugging_face(config)) == config


def test_old_and_new_rope_keys_read_the_same() -> None:
    new = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
    }
    old_keys = ("rope_theta", "rope_local_base_freq", "rope_scaling")
    assert parse(without(*old_keys, rope_parameters=new)) == parse(TINY)
    assert parse(changed(rope_parameters=new)) == parse(TINY)
    with pytest.raises(CheckpointError, match=r"rope_theta: found 500000.0, wanted 1000000.0, as rope_parameters says"):
        parse(changed(rope_parameters=new, rope_theta=5e5))


@pytest.mark.parametrize(
    "rope",
    [
        [],
        {"rope_type": "default", "rope_theta": 1e6},
        {"full_attention": {"rope_theta": 1e6, "rope_type": "yarn"}, "sliding_attention": {"rope_theta": 1e4}},
        {"full_attention": {"rope_theta": 1e6, "factor": 8}, "sliding_attention": {"rope_theta": 1e4}},
        {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}, "chunked_attention": {}},
        {"full_attention": {"rope_theta": 0.5}, "sliding_attention": {"rope_theta": 1e4}},
    ],
    ids=repr,
)
def test_other_rope_is_refused(rope: object) -> None:
    with pytest.raises(CheckpointError):
        parse(without("rope_theta", "rope_local_base_freq", rope_parameters=rope))


def test_one_ffn_width_stands_for_all_layers() -> None:
    assert parse(changed(intermediate_size=48)) == parse(TINY)


@pytest.mark.parametrize("layers", [5, 12])
def test_absent_layer_lists_follow_transformers_rule(layers: int) -> None:
    names = ("layer_types", "activation_sparsity_pattern")
    absent = parse(without(*names, num_hidden_layers=layers, intermediate_size=48, num_kv_shared_layers=0))
    assert (
        parse(changed(**dict.fromkeys(names), num_hidden_layers=layers, intermediate_size=48, num_kv_shared_layers=0))
        == absent
    )
    assert [layer.attention for layer in absent.layers] == [
        ("sliding", "full")[(i + 1) % 5 == 0] for i in range(layers)
    ]
    assert [layer.sparsity for layer in absent.layers] == (
        [0.95] * 10 + [0.0] * (layers - 10) if layers > 10 else [0.0] * layers
    )


def test_one_sparsity_stands_for_all_layers() -> None:
    assert {layer.sparsity for layer in parse(changed(activation_sparsity_pattern=0.5)).layers} == {0.5}


def test_no_soft_cap_is_none() -> None:
    assert parse(changed(final_logit_softcapping=None)).final_logit_softcap is None


def test_without_sharing_every_layer_owns_a_cache() -> None:
    config = parse(changed(num_kv_shared_layers=0))
    assert config.kv_layers == tuple(range(7))


def test_stop_tokens_may_be_a_number_or_a_list() -> None:
    assert parse(changed(eos_token_id=7)).eos_token_ids == (7,)
    assert parse(changed(eos_token_id=[1, 7])).eos_token_ids == (1, 7)
    assert parse(changed(eos_token_id=7), {"eos_token_id": 9, "anything": {}}).eos_token_ids == (9,)
    assert parse(changed(eos_token_id=7), {"eos_token_id": None}).eos_token_ids == (7,)
    assert parse(changed(eos_token_id=7), {}).eos_token_ids == (7,)
    text = {**TINY, "eos_token_id": 5}
    assert parse({**TINY_MULTIMODAL, "text_config": text}).eos_token_ids == (1, 106)
    assert parse({**TINY_MULTIMODAL, "text_config": text, "eos_token_id": None}).eos_token_ids == (5,)


@pytest.mark.parametrize("ids", [[], [300], [-1], [True], [1.0], "1", {}, 300, -1, True], ids=repr)
def test_stop_tokens_are_in_the_vocabulary(ids: object) -> None:
    with pytest.raises(CheckpointError, match=r"eos_token_id"):
        parse(changed(eos_token_id=ids))
    with pytest.raises(CheckpointError, match=r"generation_config.json beside config.json"):
        parse(TINY, {"eos_token_id": ids})


def test_a_config_may_leave_out_all_that_equals_transformers_defaults() -> None:
    published = {key: value for key, value in PUBLISHED.items() if key not in ("text_config", "eos_token_id")}
    for text in ({}, {"text_config": None}, {"text_config": {"model_type": "gemma3n_text"}}):
        assert replace(parse({**published, **text}), eos_token_ids=(1, 106)) == parse(PUBLISHED)
    alone = {"architectures": ["Gemma3nForCausalLM"], "model_type": "gemma3n_text"}
    assert replace(parse(alone), eos_token_ids=(1, 106)) == parse(PUBLISHED)


@pytest.mark.parametrize("rope", [None, {}, {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}])
def test_absent_bases_are_those_of_transformers(rope: object) -> None:
    assert parse(without("rope_theta", "rope_local_base_freq", rope_parameters=rope)) == parse(TINY)


def test_an_old_key_stands_for_a_base_that_the_new_ones_leave_out() -> None:
    rope = {"full_attention": {"rope_type": "default"}}
    assert parse(changed(rope_parameters=rope, rope_theta=5e5)).rope_theta_full == 5e5


def test_of_too_many_layer_types_the_first_are_used(caplog: pytest.LogCaptureFixture) -> None:
    types = TINY["layer_types"]
    assert isinstance(types, list)
    assert parse(changed(layer_types=[*types, S, F])) == parse(TINY)
    assert "layer_types has 9 entries for 7 layers" in caplog.text


@pytest.mark.parametrize("stated", [{}, {"architectures": None}, {"architectures": ["Gemma3nTextModel"]}])
def test_a_text_model_without_a_head_is_the_same_model(stated: dict[str, object]) -> None:
    assert parse_config({**without("architectures"), **stated}, None, "config.json") == parse_config(
        TINY, None, "config.json"
    )


@pytest.mark.parametrize("stated", [{}, {"architectures": ["Gemma3nModel"]}])
def test_a_multimodal_model_without_a_head_is_the_same_model(stated: dict[str, object]) -> None:
    config = {key: value for key, value in TINY_MULTIMODAL.items() if key != "architectures"}
    assert parse_config({**config, **stated}, None, "")[0] == "Gemma3nForConditionalGeneration"


def test_numbers_of_the_text_may_be_repeated_at_the_top() -> None:
    repeated = {"hidden_size": 32, "vocab_size": 300, "rms_norm_eps": 1e-6, "ignore_index": -100, "auto_map": {}}
    assert parse({**TINY_MULTIMODAL, **repeated}) == parse(TINY_MULTIMODAL)
    with pytest.raises(CheckpointError, match="vocab_size: found 301, wanted 300"):
        parse({**TINY_MULTIMODAL, "vocab_size": 301})


@pytest.mark.reference
def test_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    text = transformers.Gemma3nTextConfig()
    assert {key: getattr(text, key) for key in defaults.TEXT} == {
        **defaults.TEXT,
        "intermediate_size": [defaults.TEXT["intermediate_size"]] * 35,
    }
    thetas = [text.rope_parameters[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")]
    assert thetas == [defaults.ROPE_THETA_FULL, defaults.ROPE_THETA_SLIDING]
    for stated, name in ((defaults.AUDIO, "Audio"), (defaults.VISION, "Vision"), (defaults.MULTIMODAL, "")):
        config = getattr(transformers, f"Gemma3n{name}Config")()
        found = {key: getattr(config, key) for key in stated}
        assert {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()} == stated


@pytest.mark.parametrize("nested", [False, True])
def test_unknown_keys_are_named(nested: bool) -> None:
    extra = {"moe_experts": 8, "sliding_window_pattern": 6}
    config = {**TINY_MULTIMODAL, "text_config": {**TINY, **extra}} if nested else changed(**extra)
    with pytest.raises(CheckpointError, match=r"unknown keys moe_experts, sliding_window_pattern"):
        parse(config)
    with pytest.raises(CheckpointError, match=r"unknown key moe_experts"):
        parse({**TINY_MULTIMODAL, "moe_experts": 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_activation", "silu"),
        ("attention_bias", True),
        ("rope_scaling", {"rope_type": "linear", "factor": 8.0}),
        ("attn_logit_softcapping", 50.0),
        ("use_bidirectional_attention", True),
        ("per_layer_config", {"0": {}}),
        ("is_encoder_decoder", True),
    ],
)
def test_mathematics_that_is_not_written_is_refused(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{key}: found"):
        parse(changed(**{key: value}))
    with pytest.raises(CheckpointError, match=f"{key}: found"):
        parse({**TINY_MULTIMODAL, key: value})


INTEGERS = [key for key, value in TINY.items() if isinstance(value, int) and not isinstance(value, bool)]


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("value", [-1, True, 2.0, "2", None, [2], 2**62, 10**12], ids=repr)
def test_absurd_integers_are_refused(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        parse(changed(**{key: value}))


@pytest.mark.parametrize("key", [key for key in INTEGERS if key not in ("altup_active_idx", "num_kv_shared_layers")])
def test_nothing_has_size_zero(key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        parse(changed(**{key: 0}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", 1.0),
        ("rms_norm_eps", True),
        ("rope_theta", 0),
        ("rope_theta", 1e300),
        ("final_logit_softcapping", 0.0),
        ("final_logit_softcapping", "30"),
        ("altup_correct_scale", 1),
        ("altup_active_idx", 4),
        ("head_dim", 7),
        ("altup_num_inputs", 1),
        ("num_attention_heads", 3),
        ("intermediate_size", [48] * 6),
        ("intermediate_size", [48] * 6 + [0]),
        ("intermediate_size", [48] * 6 + [True]),
        ("intermediate_size", [48] * 6 + [2**30]),
        ("intermediate_size", []),
        ("layer_types", [S] * 6),
        ("layer_types", [S] * 6 + ["chunked_attention"]),
        ("layer_types", [S] * 6 + [1]),
        ("layer_types", [S] * 6 + [[S]]),
        ("layer_types", "sliding_attention"),
        ("activation_sparsity_pattern", [0.95] * 6),
        ("activation_sparsity_pattern", [0.95] * 6 + [1.0]),
        ("activation_sparsity_pattern", [0.95] * 6 + [-0.1]),
        ("activation_sparsity_pattern", 1.0),
        ("num_kv_shared_layers", 7),
        ("num_kv_shared_layers", 5),  # of layers 0 and 1, none has full attention
        ("architectures", []),
        ("architectures", ["Gemma3nForCausalLM", "Gemma3nForCausalLM"]),
        ("architectures", ["Gemma3ForCausalLM"]),
        ("architectures", [["Gemma3nForCausalLM"]]),
        ("architectures", "Gemma3nForCausalLM"),
        ("model_type", "gemma3n"),
        ("bos_token_id", 300),
    ],
    ids=repr,
)
def test_impossible_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        parse(changed(**{key: value}))


def test_gemma_3_is_told_from_gemma_3n() -> None:
    with pytest.raises(CheckpointError, match=r"wanted Gemma3nForConditionalGeneration or Gemma3nForCausalLM"):
        parse({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"})


@pytest.mark.parametrize("key", ["text_config", "vision_config", "audio_config"])
def test_a_section_of_another_model_is_refused(key: str) -> None:
    sections = {"text_config": TINY, "vision_config": {}, "audio_config": {}}
    wrong: tuple[object, ...] = ({**sections[key], "model_type": "gemma4"}, [], 5)
    for section in wrong:
        with pytest.raises(CheckpointError, match=key):
            parse({**TINY_MULTIMODAL, key: section})


def test_the_towers_need_not_be_there() -> None:
    parse({key: value for key, value in TINY_MULTIMODAL.items() if key not in ("vision_config", "audio_config")})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.slow
@given(config=JSON_VALUES, key=st.sampled_from(sorted(TINY)), value=JSON_VALUES)
def test_any_json_raises_only_checkpoint_errors(config: object, key: str, value: object) -> None:
    candidates: list[Mapping[str, object] | object] = [config, changed(**{key: value})]
    candidates.append({**TINY_MULTIMODAL, "text_config": changed(**{key: value})})
    for candidate in candidates:
        try:
            parse_config(candidate, None, "config.json")
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.reference
def test_every_key_that_transformers_knows_is_known() -> None:
    transformers = pytest.importorskip("transformers")
    saved = transformers.Gemma3nTextConfig(
        **{key: value for key, value in TINY.items() if key not in ("architectures", "model_type")}
    ).to_dict()
    generation = transformers.GenerationConfig._get_default_generation_params()
    everything = {
        **transformers.PretrainedConfig().to_dict(),
        **generation,
        **saved,
        "architectures": TINY["architectures"],
    }
    assert parse(everything) == parse(TINY)


@pytest.mark.reference
def test_transformers_reads_what_is_written_back() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3nTextConfig(**to_hugging_face(parse(TINY)))
    again = {**config.to_dict(), "architectures": TINY["architectures"]}
    assert parse(again) == parse(TINY)
    assert config.kv_sharing_modes == [None, None, None, "store", "store", "reuse", "reuse"]
