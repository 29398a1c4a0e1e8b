"""The vision encoder's graph against timm, on random weights."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from timm_oracle import decoded_blocks, random_tower
from towers import TINY_TOWER, TOWERS, Arrays, Tower, tower_tensors

from converters.gemma3n.config.vision import VisionConfig
from converters.gemma3n.config.vision_blocks import STAGES
from converters.gemma3n.graphs.vision.encoder import vision_encoder_graph
from converters.gemma3n.plan.vision import vision_signatures
from converters.gemma3n.recipes import built_in
from toolkit.base.errors import UsageError
from toolkit.tflite.graph import Signature
from toolkit.tflite.writer import distinct_weights, layout_tflite, write_tflite

F32 = NDArray[np.float32]


def image(size: int) -> F32:
    """Smooth shapes with noise over them: f32[1, size, size, 3] in [0, 1]."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(2 * np.pi * (rng.uniform(0.5, 4) * x + rng.uniform(0.5, 4) * y + c / 3)) for c in range(3)]
    noisy = 0.5 + 0.35 * np.stack(waves, -1) + 0.1 * rng.standard_normal((size, size, 3))
    return np.clip(noisy, 0, 1).astype(np.float32)[None]


@functools.cache
def timm_features(tower: Tower) -> F32:
    """f32[tokens, 2048]."""
    import torch

    arguments = dict(tower.model_args)
    if tower.architecture is not None:
        arguments["block_args"] = decoded_blocks(tower.architecture)
    model = random_tower(arguments)
    with torch.inference_mode():
        features = model(torch.from_numpy(image(tower.image_size).transpose(0, 3, 1, 2).copy())).numpy()
    result: F32 = features.transpose(0, 2, 3, 1).reshape(-1, 2048)
    return result


def litert_features(tmp_path: Path, tower: Tower, recipe: str, config: VisionConfig | None = None) -> F32:
    config = config or tower.config()
    files = vision_signatures(config, tower.image_size)
    schemes = built_in(recipe).plan(distinct_weights([s for file in files.values() for s in file]))
    path = tmp_path / "vision_encoder.tflite"
    write_tflite(path, layout_tflite(files["vision_encoder.tflite"], schemes), Arrays(tower_tensors(config)))
    features: F32 = Interpreter(str(path)).get_signature_runner("encode")(images=image(tower.image_size))["features"]
    assert features.shape == (1, config.soft_tokens, 2048)
    tokens: F32 = features[0]
    return tokens


def relative_rms(got: F32, want: F32) -> float:
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


@pytest.mark.reference
@pytest.mark.parametrize("tower", TOWERS, ids=str)
def test_the_float_encoder_is_timms(tmp_path: Path, tower: Tower) -> None:
    want = timm_features(tower)
    got = litert_features(tmp_path, tower, "f32")
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.reference
@pytest.mark.parametrize("tower", [TINY_TOWER, TOWERS[-1]], ids=str)
def test_float16_storage_costs_a_few_thousandths(tmp_path: Path, tower: Tower) -> None:
    assert relative_rms(litert_features(tmp_path, tower, "vision-f16"), timm_features(tower)) < 0.01


@pytest.mark.reference
@pytest.mark.parametrize("tower", [TINY_TOWER, TOWERS[-1]], ids=str)
def test_int8_costs_a_few_hundredths(tmp_path: Path, tower: Tower) -> None:
    error = relative_rms(litert_features(tmp_path, tower, "vision-int8"), timm_features(tower))
    assert 0.001 < error < 0.1


@pytest.mark.reference
def test_blocks_of_the_real_widths_are_timms(tmp_path: Path) -> None:
    """Each block of the real tower once: the table itself runs with an eighth of the channels."""
    once = tuple(tuple(re.sub("_r[0-9]+", "_r1", block) for block in dict.fromkeys(stage)) for stage in STAGES)
    real = Tower("real_widths", once, 256, 64)
    want = timm_features(real)
    assert np.abs(litert_features(tmp_path, real, "f32") - want).max() < 1e-4 * np.abs(want).max()


def test_a_stem_without_bias_is_one_with_zeros(tmp_path: Path) -> None:
    from dataclasses import replace

    config = TINY_TOWER.config()
    tensors = tower_tensors(config)
    tensors["vision_tower.timm_model.conv_stem.conv.bias"][:] = 0
    features = []
    for bias in (True, False):
        signature = Signature("encode", vision_encoder_graph(replace(config, stem_bias=bias), 128))
        schemes = built_in("f32").plan(distinct_weights([signature]))
        write_tflite(tmp_path / "m.tflite", layout_tflite([signature], schemes), Arrays(tensors))
        runner = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner("encode")
        features.append(runner(images=image(128))["features"])
    np.testing.assert_array_equal(*features)


def test_an_image_size_that_the_tower_cannot_take_is_refused() -> None:
    with pytest.raises(UsageError, match="image size: found 96 pixels"):
        vision_encoder_graph(TINY_TOWER.config(), 96)
