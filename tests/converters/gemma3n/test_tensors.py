from __future__ import annotations

import math

import pytest
from checkpoints import TINY, tensor_shapes

from converters.gemma.tensors import canonical_names, group_of, unused_kv_tensors
from converters.gemma3n.config.text import TextConfig, parse_config
from converters.gemma3n.tensors import text_tensors
from toolkit.base.errors import CheckpointError

# Parameters of the released models, without the towers (docs/gemma3n.md).
RELEASED = {(35, 16384, 15): 6_866_696_688, (30, 8192, 10): 4_456_156_768}


def released(layers: int, ffn: int, shared: int) -> TextConfig:
    keys = {
        **TINY,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
        "hidden_size": 2048,
        "hidden_size_per_layer_input": 256,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "layer_types": None,
        "activation_sparsity_pattern": None,
        "num_kv_shared_layers": shared,
        "num_attention_heads": 8,
        "head_dim": 256,
        "sliding_window": 512,
        "laurel_rank": 64,
    }
    return parse_config(keys, None, "config.json")[1]


def tiny(**keys: object) -> TextConfig:
    return parse_config({**TINY, **keys}, None, "config.json")[1]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"num_kv_shared_layers": 0},
        {"altup_num_inputs": 2},
        {"intermediate_size": [8, 16, 24, 32, 40, 48, 56]},
        {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "laurel_rank": 5},
    ],
    ids=repr,
)
def test_names_and_shapes_are_those_of_the_checkpoint(keys: dict[str, object]) -> None:
    config = tiny(**keys)
    assert text_tensors(config) == tensor_shapes({**TINY, **keys})
    both = {**text_tensors(config), **unused_kv_tensors(config)}
    assert both == tensor_shapes({**TINY, **keys}, unused_kv=True)


@pytest.mark.parametrize("dimensions", RELEASED)
def test_parameters_add_up_to_those_of_the_released_models(dimensions: tuple[int, int, int]) -> None:
    config = released(*dimensions)
    shapes = {**text_tensors(config), **unused_kv_tensors(config)}
    assert sum(map(math.prod, shapes.values())) == RELEASED[dimensions]
    table = math.prod(shapes["embed_tokens_per_layer.weight"])
    assert table == 262144 * 256 * config.num_layers


def test_each_name_has_one_group() -> None:
    assert group_of("embed_tokens.weight") == "token_embedding"
    assert group_of("embed_tokens_per_layer.weight") == "per_layer_embedding"
    assert group_of("per_layer_model_projection.weight") == "text"
    assert group_of("layers.3.altup.correct_output_scale") == "text"
    assert group_of("vision_tower.timm_model.msfa.norm.weight") == group_of("embed_vision.embedding.weight") == "vision"
    assert group_of("audio_tower.conformer.0.norm.weight") == group_of("embed_audio.embedding.weight") == "audio"


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_the_text_prefix_is_found_and_stripped(prefix: str) -> None:
    names = canonical_names([f"{prefix}embed_tokens.weight", f"{prefix}norm.weight"], multimodal=True, what="test")
    assert names.stored == {
        "embed_tokens.weight": f"{prefix}embed_tokens.weight",
        "norm.weight": f"{prefix}norm.weight",
    }
    assert names.unknown == () and names.head is None


def test_names_under_another_prefix_are_unknown() -> None:
    stored = ["model.language_model.embed_tokens.weight", "norm.weight", "model.norm.weight", "vision_towers.x", "x"]
    names = canonical_names(stored, multimodal=True, what="test")
    assert names.unknown == ("model.norm.weight", "norm.weight", "vision_towers.x", "x")


def test_two_output_matrices_are_refused() -> None:
    stored = ["model.embed_tokens.weight", "lm_head.weight", "model.lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"found lm_head.weight and model.lm_head.weight, wanted one of them"):
        canonical_names(stored, multimodal=False, what="test")


def test_a_tensor_under_the_names_of_two_releases_is_refused() -> None:
    stored = ["model.embed_tokens.weight", "model.vision_tower.x", "vision_tower.x"]
    with pytest.raises(CheckpointError, match=r"found model.vision_tower.x and vision_tower.x, wanted one of them"):
        canonical_names(stored, multimodal=True, what="test")


@pytest.mark.reference
def test_names_and_shapes_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    keys = {key: value for key, value in TINY.items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        model = transformers.Gemma3nTextModel(transformers.Gemma3nTextConfig(**keys))
    assert text_tensors(tiny()) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
