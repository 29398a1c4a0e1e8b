"""The vision adapter against transformers' Gemma3nMultimodalEmbedder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from towers import HIDDEN, TINY_TOWER, Arrays, tower_tensors

from converters.gemma3n.plan.vision import vision_signatures
from converters.gemma3n.plan.vision_source import VisionSource
from converters.gemma3n.recipes import built_in
from toolkit.bundle.manifest import VISION_ADAPTER
from toolkit.tflite.writer import distinct_weights, layout_tflite, write_tflite

F32 = NDArray[np.float32]

CONFIG = TINY_TOWER.config()
TOKENS = CONFIG.soft_tokens


def features(scale: float) -> F32:
    return np.float32(scale) * np.random.default_rng(3).standard_normal((1, TOKENS, 2048), np.float32)


def adapter(tmp_path: Path, recipe: str) -> Interpreter:
    files = vision_signatures(CONFIG, TINY_TOWER.image_size)
    schemes = built_in(recipe).plan(distinct_weights([s for file in files.values() for s in file]))
    path = tmp_path / VISION_ADAPTER
    source = VisionSource(Arrays(tower_tensors(CONFIG)), CONFIG)
    write_tflite(path, layout_tflite(files[VISION_ADAPTER], schemes), source)
    return Interpreter(str(path))


def embedder() -> Any:
    """transformers' embedder with the same weights."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch and transformers")
    pytest.importorskip("transformers", reason="the oracle needs torch and transformers")
    from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig, Gemma3nVisionConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

    vision = Gemma3nVisionConfig(vocab_size=CONFIG.vocab_size, vocab_offset=CONFIG.vocab_offset)
    made = Gemma3nMultimodalEmbedder(vision, Gemma3nTextConfig(hidden_size=HIDDEN))
    prefix = "embed_vision."
    tensors = {k.removeprefix(prefix): v for k, v in tower_tensors(CONFIG).items() if k.startswith(prefix)}
    made.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()}, strict=False)
    return made


# At 1e-6 an epsilon that is not divided by 2,048 leaves the last norm next to nothing.
@pytest.mark.reference
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e-6])
def test_soft_tokens_and_the_end_of_image_are_transformers(tmp_path: Path, scale: float) -> None:
    import torch

    x = features(scale)
    made = embedder()
    with torch.inference_mode():
        soft = made(inputs_embeds=torch.from_numpy(x) * 2048**0.5).numpy()
        end = made(input_ids=torch.tensor([[CONFIG.end_token_id]])).numpy()
    want = np.concatenate([soft, end], 1)
    got = adapter(tmp_path, "f32").get_signature_runner("adapt")(features=x)["embeddings"]
    assert got.shape == (1, TOKENS + 1, HIDDEN)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.reference
def test_every_token_of_the_tower_has_transformers_embedding(tmp_path: Path) -> None:
    import torch

    made = embedder()
    embed = adapter(tmp_path, "f32").get_signature_runner("embed_1")
    for token in range(CONFIG.vocab_offset, CONFIG.vocab_offset + CONFIG.vocab_size):
        with torch.inference_mode():
            want = made(input_ids=torch.tensor([[token]])).numpy()
        got = embed(ids=np.array([[token]], np.int32))["embeddings"]
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(("recipe", "bound"), [("vision-f16", 2e-3), ("vision-int8", 0.02)])
def test_quantised_adapters_stay_near_the_float_one(tmp_path: Path, recipe: str, bound: float) -> None:
    x = features(1.0)
    want = adapter(tmp_path, "f32").get_signature_runner("adapt")(features=x)["embeddings"]
    got = adapter(tmp_path, recipe).get_signature_runner("adapt")(features=x)["embeddings"]
    # The post-projection norm makes every row's root mean square 1.
    assert 0 < np.sqrt(np.square(got - want).mean()) < bound


def test_the_last_row_is_the_token_that_ends_an_image_whatever_the_recipe(tmp_path: Path) -> None:
    """It is computed when converting, from the checkpoint's own numbers."""
    rows = adapter(tmp_path, "vision-int8").get_signature_runner("adapt")(features=features(1.0))["embeddings"]
    embed = adapter(tmp_path, "f32").get_signature_runner("embed_1")
    end = embed(ids=np.array([[CONFIG.end_token_id]], np.int32))["embeddings"]
    np.testing.assert_allclose(rows[0, -1], end[0, 0], atol=1e-5)
