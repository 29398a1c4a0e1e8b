"""From a checkpoint to the two files of the vision group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from checkpoints import TINY, random_tensors, write_checkpoint
from timm_oracle import decoded_blocks, let_transformers_use_timm
from towers import HIDDEN, TINY_TOWER, tower_tensors, write_vision_checkpoint

from converters.gemma3n.config.vision import STEM_BIAS
from converters.gemma3n.family import open_gemma3n
from converters.gemma3n.plan.vision import (
    open_vision,
    read_vision_config,
    vision_layouts,
)
from converters.gemma3n.recipes import built_in
from toolkit.base.errors import CheckpointError, RecipeError
from toolkit.bundle.manifest import VISION_ADAPTER, VISION_ENCODER
from toolkit.tflite.reader import read_tflite

BLOCK = "vision_tower.timm_model.blocks.2.2"


def embeddings(directory: Path, image: np.ndarray) -> np.ndarray:
    encode = Interpreter(str(directory / VISION_ENCODER)).get_signature_runner("encode")
    adapt = Interpreter(str(directory / VISION_ADAPTER)).get_signature_runner("adapt")
    result: np.ndarray = adapt(features=encode(images=image)["features"])["embeddings"]
    return result


@pytest.mark.reference
def test_an_image_becomes_transformers_embeddings(tmp_path: Path) -> None:
    let_transformers_use_timm()
    import torch
    from transformers import Gemma3nAudioConfig, Gemma3nConfig, Gemma3nModel, Gemma3nTextConfig, Gemma3nVisionConfig

    with open_gemma3n(write_vision_checkpoint(tmp_path, without=())) as checkpoint:
        tower = open_vision(checkpoint, built_in("f32"), 128)
        tower.files.write(tmp_path)
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors if "vision" in name}
    assert TINY_TOWER.architecture is not None
    blocks = decoded_blocks(TINY_TOWER.architecture)
    vision = Gemma3nVisionConfig(
        model_args={"block_args": blocks, **TINY_TOWER.model_args}, vocab_size=8, vocab_offset=256
    )
    small = {"vocab_size": 272, "hidden_size": HIDDEN, "num_hidden_layers": 1, "intermediate_size": 8}
    text = Gemma3nTextConfig(**small, layer_types=["full_attention"], num_kv_shared_layers=0, laurel_rank=2)
    audio = Gemma3nAudioConfig(hidden_size=16, conf_num_hidden_layers=1, conf_num_attention_heads=2)
    model = Gemma3nModel(
        Gemma3nConfig(text_config=text, vision_config=vision, audio_config=audio, vision_soft_tokens_per_image=16)
    )
    model.train(False)
    loaded = model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
    assert not loaded.unexpected_keys
    assert not [name for name in loaded.missing_keys if "vision" in name and "post_projection" not in name]
    image = np.random.default_rng(0).random((1, 128, 128, 3), np.float32)
    with torch.inference_mode():
        soft = model.get_image_features(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).pooler_output
        end = model.embed_vision(input_ids=torch.tensor([[tower.record.end_token_id]]))
    want = torch.cat([soft, end], 1).numpy()
    np.testing.assert_allclose(embeddings(tmp_path, image), want, atol=1e-4)


def test_the_first_release_without_a_stem_bias_converts(tmp_path: Path) -> None:
    with open_gemma3n(write_vision_checkpoint(tmp_path)) as checkpoint:
        assert not read_vision_config(checkpoint).stem_bias
        open_vision(checkpoint, built_in("vision-int8"), 128).files.write(tmp_path)
    got = embeddings(tmp_path, np.random.default_rng(0).random((1, 128, 128, 3), np.float32))
    assert got.shape == (1, 17, HIDDEN) and np.isfinite(got).all()


def test_files_hold_the_documented_signatures(tmp_path: Path) -> None:
    with open_gemma3n(write_vision_checkpoint(tmp_path)) as checkpoint:
        open_vision(checkpoint, built_in("vision-f16"), 128).files.write(tmp_path)
    encoder, adapter = read_tflite(tmp_path / VISION_ENCODER), read_tflite(tmp_path / VISION_ADAPTER)
    assert encoder.model.signatures == ("encode",)
    assert adapter.model.signatures == ("adapt", "embed_1")
    shapes = {
        name: [graph.tensors[i].shape for i in (*graph.inputs.values(), *graph.outputs.values())]
        for content in (encoder, adapter)
        for name, graph in zip(content.model.signatures, content.model.subgraphs, strict=True)
    }
    assert shapes == {
        "encode": [(1, 128, 128, 3), (1, 16, 2048)],
        "adapt": [(1, 16, 2048), (1, 17, HIDDEN)],
        "embed_1": [(1, 1), (1, 1, HIDDEN)],
    }


def test_int8_takes_a_quarter_of_float_and_depthwise_kernels_stay_float16() -> None:
    config = TINY_TOWER.config()
    sizes = {
        name: sum(file.weight_bytes for file in vision_layouts(config, built_in(name), 128).values())
        for name in ("f32", "vision-f16", "vision-int8")
    }
    assert sizes["vision-f16"] < 0.6 * sizes["f32"]
    assert sizes["vision-int8"] < 0.35 * sizes["f32"]
    encoder = vision_layouts(config, built_in("vision-int8"), 128)[VISION_ENCODER]
    stored = {p.weight.name: p.scheme.dtype for p in encoder.placements}
    kernels = ("dw_start.conv.weight", "dw_mid.conv.weight", "down_conv.weight", "conv_stem.conv.weight")
    assert {dtype for name, dtype in stored.items() if name.endswith(kernels)} == {"f16"}
    assert {d for n, d in stored.items() if "norm" in n or ".bn" in n or "gamma" in n} == {"f32"}
    assert {stored[f"{BLOCK}.attn.{part}.proj.weight"] for part in ("query", "key", "value", "output")} == {"int8"}


def test_every_fault_of_the_tensors_is_named_at_once(tmp_path: Path) -> None:
    values = tower_tensors(TINY_TOWER.config())["embed_vision.embedding.weight"]
    extra = {
        "model.vision_tower.timm_model.head.weight": np.zeros((3, 3), np.float32),
        "model.embed_vision.embedding.weight": values[:, :7].copy(),
    }
    path = write_vision_checkpoint(tmp_path, without=(STEM_BIAS, f"{BLOCK}.norm.weight"), extra=extra)
    with open_gemma3n(path) as checkpoint, pytest.raises(CheckpointError) as caught:
        read_vision_config(checkpoint)
    for part in (
        f"no {BLOCK}.norm.weight",
        "unknown model.vision_tower.timm_model.head.weight",
        "embed_vision.embedding.weight [8, 7] instead of [8, 2048]",
    ):
        assert part in str(caught.value)


def test_integers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    extra = {"model.embed_vision.soft_embedding_norm.weight": np.zeros(2048, np.int64)}
    with (
        open_gemma3n(write_vision_checkpoint(tmp_path, extra=extra)) as checkpoint,
        pytest.raises(CheckpointError, match=r"soft_embedding_norm\.weight of I64"),
    ):
        read_vision_config(checkpoint)


def test_a_text_checkpoint_has_no_vision_to_convert(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, TINY, random_tensors(TINY))
    with (
        open_gemma3n(path) as checkpoint,
        pytest.raises(CheckpointError, match="Gemma3nForCausalLM without vision tensors"),
    ):
        read_vision_config(checkpoint)


def test_a_recipe_for_text_does_not_fit_the_tower() -> None:
    with pytest.raises(RecipeError, match="recipe int8: no rule for weight"):
        vision_layouts(TINY_TOWER.config(), built_in("int8"), 128)


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    with open_gemma3n(write_vision_checkpoint(tmp_path)) as checkpoint:
        for workers in (1, 3):
            (tmp_path / str(workers)).mkdir()
            open_vision(checkpoint, built_in("vision-int8"), 128).files.write(tmp_path / str(workers), workers=workers)
    for name in (VISION_ENCODER, VISION_ADAPTER):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
