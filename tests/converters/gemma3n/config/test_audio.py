"""The audio tower's config and tensors, and the files made from them; without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import PROCESSOR, Arrays, random_tensors, write_checkpoint
from checkpoints import TINY as TINY_TEXT
from numpy.typing import NDArray

from converters.gemma3n.config.audio import AudioConfig, audio_tensors, parse_audio_config
from converters.gemma3n.config.text import parse_config
from converters.gemma3n.family import open_gemma3n
from converters.gemma3n.plan.audio import (
    audio_signatures,
    default_lengths,
    frame_lengths,
    open_audio,
    read_audio_config,
)
from converters.gemma3n.plan.audio_source import AudioSource, position_keys, query_scale
from converters.gemma3n.recipes import built_in
from toolkit.base.errors import CheckpointError, UsageError
from toolkit.bundle.manifest import AUDIO_ADAPTER, AUDIO_ENCODER
from toolkit.tflite.reader import read_tflite

F32 = NDArray[np.float32]

# google/gemma-3n-E4B-it, config.json, audio_config
PUBLISHED: Mapping[str, object] = {
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_conv_kernel_size": 5,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_positional_bias_size": 256,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "gradient_clipping": 10000000000.0,
    "hidden_size": 1536,
    "input_feat_size": 128,
    "model_type": "gemma3n_audio",
    "rms_norm_eps": 1e-06,
    "sscp_conv_channel_size": [128, 32],
    "sscp_conv_eps": 0.001,
    "sscp_conv_group_norm_eps": 0.001,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
    "torch_dtype": "bfloat16",
    "vocab_offset": 262272,
    "vocab_size": 128,
}
PUBLISHED_TOP: Mapping[str, object] = {
    "audio_soft_tokens_per_image": 188,
    "audio_token_id": 262273,
    "boa_token_id": 256000,
    "eoa_token_id": 262272,
}
TINY: Mapping[str, object] = {
    **PUBLISHED,
    "hidden_size": 32,
    "input_feat_size": 16,
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 2,
    "sscp_conv_channel_size": [8, 4],
    "vocab_offset": 290,
    "vocab_size": 10,
}
TINY_TOP = {"audio_soft_tokens_per_image": 20, "audio_token_id": 291, "boa_token_id": 251, "eoa_token_id": 290}


def parse_published(**changes: object) -> AudioConfig:
    text = replace(parse_config(TINY_TEXT, None, "text")[1], vocab_size=262_400, hidden_size=2048)
    audio = {key: value for key, value in {**PUBLISHED, **changes}.items() if value is not None}
    return parse_audio_config({**PUBLISHED_TOP, "audio_config": audio}, text, "config.json")


def multimodal(audio: Mapping[str, object] = TINY) -> dict[str, object]:
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "text_config": {**TINY_TEXT, "architectures": None},
        "audio_config": dict(audio),
        **TINY_TOP,
    }


def tower_tensors() -> dict[str, NDArray[np.generic]]:
    """Text and audio tensors of `multimodal()`, under the names that transformers stores."""
    text = parse_config(multimodal(), None, "config.json")[1]
    shapes = audio_tensors(parse_audio_config(multimodal(), text, "config.json"))
    rng = np.random.default_rng(0)
    tensors = random_tensors(TINY_TEXT, prefix="model.language_model.")
    return tensors | {f"model.{name}": rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def write_tower(directory: Path, tensors: Arrays | None = None) -> Path:
    write_checkpoint(directory, multimodal(), tower_tensors() if tensors is None else tensors)
    (directory / "preprocessor_config.json").write_text(
        json.dumps({**PROCESSOR, "feature_size": TINY["input_feat_size"]})
    )
    return directory


def test_the_published_config_gives_the_published_tower() -> None:
    config = parse_published()
    assert (config.head_dim, config.subsampled_bins, config.frames_per_token) == (192, 32, 16)
    assert [config.tokens(frames) for frames in (1, 97, 997, 2997, 3008)] == [1, 7, 63, 188, 188]
    sizes = {name: math.prod(shape) for name, shape in audio_tensors(config).items()}
    assert sum(n for name, n in sizes.items() if name.startswith("audio_tower.")) == 681_348_640
    assert sum(n for name, n in sizes.items() if name.startswith("embed_audio.")) == 3_345_408


def test_the_default_lengths_are_1_5_10_and_30_seconds_in_whole_tokens() -> None:
    assert default_lengths(parse_published()) == (112, 512, 1008, 3008)
    assert default_lengths(replace(parse_published(), soft_tokens=20)) == (112, 320)


@pytest.mark.parametrize("lengths", [(), (0,), (64, 32), (32, 32), (3009,)])
def test_lengths_that_cannot_be_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="from 1 to 3008"):
        audio_signatures(parse_published(), lengths)


def test_lengths_in_seconds_become_whole_tokens() -> None:
    assert frame_lengths(parse_published(), (30, 0.5, 1, 5, 10, 0.51)) == (64, 112, 512, 1008, 3008)
    assert frame_lengths(parse_published(), (30.08,)) == (3008,)


@pytest.mark.parametrize("seconds", [(0.0,), (30.09,), (-1.0, 5.0)])
def test_seconds_that_the_tower_does_not_hear_are_refused(seconds: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"up to 30\.08"):
        frame_lengths(parse_published(), seconds)


@pytest.mark.parametrize("left_out", [("sscp_conv_group_norm_eps",), ("sscp_conv_group_norm_eps", "vocab_offset")])
def test_the_first_release_reads_as_transformers_reads_it(left_out: tuple[str, ...]) -> None:
    assert parse_published(**dict.fromkeys(left_out)) == parse_published()


def test_a_config_may_leave_out_what_equals_transformers_defaults() -> None:
    text = replace(parse_config(TINY_TEXT, None, "text")[1], vocab_size=262_400, hidden_size=2048)
    configs: tuple[dict[str, object], ...] = ({}, {"audio_config": None}, {"audio_config": {}})
    for config in configs:
        assert parse_audio_config(config, text, "config.json") == parse_published()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conf_new": 1}, "conf_new"),
        ({"model_type": "gemma4_audio"}, "gemma3n_audio"),
        ({"hidden_size": 1540}, "even multiple of conf_num_attention_heads, 8"),
        ({"hidden_size": 27, "conf_num_attention_heads": 3}, "even multiple"),
        ({"conf_attention_context_right": 1}, "conf_attention_context_right"),
        ({"conf_attention_context_left": 0}, "conf_attention_context_left"),
        ({"gradient_clipping": 10.0}, "gradient_clipping"),
        ({"sscp_conv_stride_size": [[2, 2], [1, 1]]}, "sscp_conv_stride_size"),
        ({"sscp_conv_kernel_size": [[5, 5], [3, 3]]}, "sscp_conv_kernel_size"),
        ({"sscp_conv_channel_size": [128]}, "two numbers"),
        ({"vocab_offset": 262_271}, "from 262272 to 262399"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(changes: Mapping[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        parse_published(**changes)


def test_a_checkpoint_without_the_tower_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY_TEXT, random_tensors(TINY_TEXT))
    with pytest.raises(CheckpointError, match="Gemma3nForCausalLM without audio tensors"):
        read_audio_config(open_gemma3n(tmp_path))


BLOCK = "model.audio_tower.conformer.1."


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        (f"{BLOCK}norm.weight", None, f"no {BLOCK}norm.weight".replace("model.", "", 1)),
        (f"{BLOCK}attention.attn.per_dim_scale", np.zeros(32, np.float32), r"per_dim_scale \[32\] instead of \[8\]"),
        (f"{BLOCK}norm.weight", np.zeros(32, np.int64), "of I64"),
        ("model.audio_tower.conformer.2.norm.weight", np.zeros(32, np.float32), r"unknown .*conformer\.2\.norm"),
    ],
)
def test_every_tensor_of_the_tower_is_checked(
    tmp_path: Path, name: str, tensor: NDArray[np.generic] | None, says: str
) -> None:
    tensors = {key: value for key, value in {**tower_tensors(), name: tensor}.items() if value is not None}
    with pytest.raises(CheckpointError, match=says):
        read_audio_config(open_gemma3n(write_tower(tmp_path, tensors)))


@pytest.mark.parametrize("recipe", ["f32", "audio-int8", "audio-int4"])
def test_a_tower_becomes_two_files_whose_bytes_depend_on_it_alone(tmp_path: Path, recipe: str) -> None:
    checkpoint = open_gemma3n(write_tower(tmp_path / "checkpoint"))
    written: list[int] = []
    for workers in (1, 2):
        directory = tmp_path / str(workers)
        directory.mkdir()
        tower = open_audio(checkpoint, built_in(recipe))
        tower.files.write(directory, workers=workers, progress=written.append)
    assert sum(written) > 0
    for name in (AUDIO_ENCODER, AUDIO_ADAPTER):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    lengths = tower.record.frame_lengths
    names = [f"encode_{n}" for n in lengths]
    assert list(read_tflite(tmp_path / "1" / AUDIO_ENCODER).model.signatures) == names
    names = [*(f"adapt_{n}" for n in lengths), "embed_1", "end_of_audio"]
    assert list(read_tflite(tmp_path / "1" / AUDIO_ADAPTER).model.signatures) == names


def test_derived_tensors_are_what_transformers_computes_at_every_call(tmp_path: Path) -> None:
    checkpoint = open_gemma3n(write_tower(tmp_path))
    config = read_audio_config(checkpoint)
    attention = "audio_tower.conformer.1.attention.attn."
    source = AudioSource(checkpoint, config)
    scales = checkpoint.read(f"{attention}per_dim_scale").astype(np.float64)
    want = np.log1p(np.exp(scales)) / np.log(2) * 8**-0.5 / 50
    np.testing.assert_allclose(source.read(f"{attention}query_scale"), want, rtol=1e-6)
    projection = checkpoint.read(f"{attention}relative_position_embedding.pos_proj.weight").astype(np.float64)
    angles = np.arange(12, -1, -1)[:, None] * 1e4 ** (-np.arange(16) / 15)
    keys = np.concatenate([np.sin(angles), np.cos(angles)], 1) @ projection.T
    got = source.read(f"{attention}position_keys")
    np.testing.assert_allclose(got[0].transpose(1, 0, 2).reshape(13, 32), keys, rtol=1e-5, atol=1e-6)


def test_a_source_reads_derived_tensors_in_ranges_and_passes_others_on(tmp_path: Path) -> None:
    checkpoint = open_gemma3n(write_tower(tmp_path))
    source = AudioSource(checkpoint, read_audio_config(checkpoint))
    attention = "audio_tower.conformer.0.attention.attn."
    for tensor in ("query_scale", "position_keys"):
        whole = source.read(attention + tensor)
        assert whole.shape == source.shape(attention + tensor) and whole.dtype == np.float32
    whole = source.read(f"{attention}query_scale")
    np.testing.assert_array_equal(source.read(f"{attention}query_scale", (3, 7)), whole[3:7])
    whole = source.read(f"{attention}position_keys")
    np.testing.assert_array_equal(source.read(f"{attention}position_keys", (0, 1), (2, 5)), whole[..., 2:5])
    name = f"{attention}q_proj.weight"
    np.testing.assert_array_equal(source.read(name, (1, 3), (2, 5)), checkpoint.read(name, (1, 3), (2, 5)))
    assert source.shape(name) == (32, 32)


def test_large_scales_of_a_query_do_not_overflow() -> None:
    config = parse_published()
    scale = query_scale(np.array([800.0, -800.0] * 96, np.float32), config)
    assert np.isfinite(scale).all() and scale[1] == 0
    assert scale[0] == pytest.approx(800 / math.log(2) * 192**-0.5 / 50)


def test_position_keys_lead_from_the_farthest_step_to_the_query_itself() -> None:
    config = replace(parse_published(), hidden_size=8, num_heads=1)
    keys = position_keys(np.eye(8, dtype=np.float32), config)
    assert keys.shape == (1, 1, 13, 8)
    np.testing.assert_array_equal(keys[0, 0, -1], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(keys[0, 0, 0, [0, 4]], [math.sin(12), math.cos(12)], rtol=1e-6)
