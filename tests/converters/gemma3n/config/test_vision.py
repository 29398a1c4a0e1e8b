"""Block tables and tensors of vision towers, from names and from config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from timm_oracle import decoded_blocks, import_timm
from towers import TINY_TOWER, TOWERS, Tower, block_json, vision_json

from converters.gemma3n.config.text import TextConfig, parse_config
from converters.gemma3n.config.vision import TOWER, VisionConfig, parse_vision_config, vision_tensors
from converters.gemma3n.config.vision_blocks import STAGES, EdgeResidual, decode_block, parse_stages
from toolkit.base.errors import CheckpointError, UsageError

REAL = Tower("real", None, 768, 64)


def text_config() -> TextConfig:
    return parse_config(vision_json(), None, "config.json")[1]


def parsed(config: dict[str, object]) -> VisionConfig:
    return parse_vision_config(config, text_config(), "config.json")


def tower_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """The tower's tensors under timm's names."""
    return {k.removeprefix(f"{TOWER}."): s for k, s in vision_tensors(config).items() if k.startswith(TOWER)}


def test_the_real_tower_has_as_many_parameters_as_the_published_checkpoint() -> None:
    shapes = tower_shapes(REAL.config())
    assert len(shapes) == 548
    assert sum(math.prod(shape) for shape in shapes.values()) == 294_126_912
    stages = [sum(math.prod(s) for n, s in shapes.items() if n.startswith(f"blocks.{i}.")) for i in range(4)]
    assert stages == [1_492_608, 2_439_168, 63_407_744, 211_540_480]


@pytest.mark.reference
@pytest.mark.parametrize("tower", [REAL, *TOWERS], ids=str)
def test_tensors_are_those_that_timm_makes(tower: Tower) -> None:
    blocks = {} if tower.architecture is None else {"block_args": decoded_blocks(tower.architecture)}
    arguments = {**tower.model_args, **blocks, "device": "meta"}
    made = import_timm().create_model("mobilenetv5_300m_enc", pretrained=False, **arguments)
    assert tower_shapes(tower.config()) == {name: tuple(t.shape) for name, t in made.state_dict().items()}


@pytest.mark.reference
def test_arch_strings_mean_what_timm_decodes_them_to() -> None:
    for stage in STAGES:
        for text in stage:
            [[*theirs]] = decoded_blocks(((text,),))
            ours = decode_block(text)
            assert len(ours) == len(theirs)
            assert all(theirs[0][key] == value for key, value in ours[0].items())


@pytest.mark.reference
def test_blocks_written_by_hand_are_timms() -> None:
    assert TINY_TOWER.architecture is not None
    assert block_json() == decoded_blocks(TINY_TOWER.architecture)


def test_decoded_blocks_and_arch_strings_give_one_table() -> None:
    config = parsed(vision_json(model_args={"block_args": block_json(), **TINY_TOWER.model_args}))
    assert config == TINY_TOWER.config()


def test_the_published_config_gives_the_real_tower() -> None:
    config = parsed({**vision_json(), "vision_soft_tokens_per_image": 256})
    assert config.stages == REAL.config().stages
    assert (config.stem_channels, config.soft_tokens, config.fused_channels) == (64, 256, (640, 1280))
    silent = {k: v for k, v in vision_json().items() if k != "vision_soft_tokens_per_image"}
    assert parsed(silent).soft_tokens == 256


def test_only_the_first_block_of_a_stage_has_a_stride() -> None:
    stages = parse_stages([["er_r2_k3_s2_e4_c16"], ["er_r1_k3_s2_e1_c16"]], 8)
    assert [block.stride for block in stages[0] if isinstance(block, EdgeResidual)] == [2, 1]


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("cn_r1_k3_s1_c16", "the kind 'cn'"),
        ("uir_r1_a3_k5_s2_e6", "no c"),
        ("uir_a3_k5_s2_e6_c16", "found r,"),
        ("uir_r0_a3_k5_s2_e6_c16", "found r0"),
        ("uir_r1_a3_k5_s2_e6_c16_se0.25", "'se0.25'"),
        ("uir_r1_a3_k5_s2_e6_c16_c24", "'c24'"),
        ("er_r1_k3_s2_e4_c16_noskip", "'noskip'"),
        ("er_r1_k3_s2_e4_c16_h4", "'h4'"),
        ("uir_r1_a4_k5_s2_e6_c16", "dw_kernel_size_start: found 4"),
        ("uir_r1_a3_k5_s3_e6_c16", "stride: found 3"),
        ("uir_r1_a0_k0_s2_e6_c16", "without a depthwise convolution"),
        ("uir_r1_a3_k5_p3_s2_e6_c16", "dw_kernel_size_end"),
        ("er_r1_k3_p3_s2_e4_c16", "pw_kernel_size"),
        ("er_r1_k2.5_s2_e4_c16", "exp_kernel_size"),
        ("mqa_r1_k3_h4_s2_d8_c8", "stride 2"),
        ("mqa_r1_k3_h4_v3_s1_d8_c8", "kv_stride: found 3"),
    ],
)
def test_a_block_that_is_not_understood_is_an_error(block: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        parse_stages([[block], ["er_r1_k3_s2_e4_c16"]], 8)


@pytest.mark.parametrize(
    "table", [[], [["er_r1_k3_s2_e1_c8"]], [["er_r1_k3_s2_e1_c8"]] * 5, [["er_r1_k3_s2_e1_c8"], []]]
)
def test_a_tower_has_two_to_four_stages_with_blocks(table: list[list[str]]) -> None:
    with pytest.raises(CheckpointError, match="2 to 4 stages"):
        parse_stages(table, 8)


Change = Callable[[Any], None]

BROKEN: dict[str, tuple[Change, str]] = {
    "another tower": (lambda c: c["vision_config"].update(architecture="vit_large"), "architecture: found vit_large"),
    "another model": (lambda c: c["vision_config"].update(model_type="gemma3_vision"), "gemma3n_vision"),
    "an unknown key": (lambda c: c["vision_config"].update(depth=3), "unknown key depth"),
    "another width": (lambda c: c["vision_config"].update(hidden_size=1024), "hidden_size: found 1024"),
    "an unknown argument": (
        lambda c: c["vision_config"]["model_args"].update(depth=3),
        "model_args: unknown key",
    ),
    "another padding": (lambda c: c["vision_config"]["model_args"].update(pad_type=""), "pad_type"),
    "other scales": (lambda c: c["vision_config"]["model_args"].update(msfa_indices=[-3, -1]), "msfa_indices"),
    "no layer scales": (lambda c: c["vision_config"]["model_args"].update(layer_scale_init_value=None), "layer scales"),
    "a flat table": (lambda c: c["vision_config"]["model_args"].update(block_args=block_json()[0]), "a list of stages"),
    "too many tokens": (
        lambda c: c.update(vision_soft_tokens_per_image=256),
        "16, which follows from msfa_output_resolution",
    ),
    "an end of image without a row": (lambda c: c.update(eoi_token_id=264), "eoi_token_id: found 264"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_config_that_is_not_understood_is_an_error(fault: str) -> None:
    change, says = BROKEN[fault]
    config: dict[str, object] = vision_json(model_args={"block_args": block_json(), **TINY_TOWER.model_args})
    change(config)
    with pytest.raises(CheckpointError, match=says):
        parsed(config)


def test_a_block_with_another_activation_is_an_error() -> None:
    blocks = block_json()
    blocks[1][1]["act_layer"] = "relu"
    with pytest.raises(CheckpointError, match=r"block_args\[1\]\[1\] act_layer"):
        parsed(vision_json(model_args={"block_args": blocks, **TINY_TOWER.model_args}))


@pytest.mark.parametrize("size", [0, 16, 32, 100, 127])
def test_images_that_leave_half_a_position_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="multiple of 64"):
        TINY_TOWER.config().check_image_size(size)


def test_the_real_tower_takes_the_sizes_that_it_was_trained_at() -> None:
    for size in (256, 512, 768):
        REAL.config().check_image_size(size)


@pytest.mark.reference
def test_the_config_that_transformers_writes_is_read() -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle needs torch and transformers")
    written = json.loads(json.dumps(transformers.Gemma3nConfig().to_dict()))
    written["architectures"] = ["Gemma3nForConditionalGeneration"]
    config = parse_vision_config(written, parse_config(written, None, "config.json")[1], "config.json")
    assert config.stages == REAL.config().stages
    assert (config.vocab_offset, config.end_token_id, config.soft_tokens) == (262_144, 262_144, 256)
