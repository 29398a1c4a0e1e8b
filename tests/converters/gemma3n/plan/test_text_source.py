"""The tensors that text graphs want otherwise than a checkpoint has them."""

from __future__ import annotations

import numpy as np
import pytest
from text_blocks import MODELS

from converters.gemma3n.plan.text_source import TextSource

MODEL = MODELS["two key heads"]
LAYER = "layers.1."


@pytest.mark.parametrize(
    "name",
    [
        "altup.router",
        "self_attn.qkv_norm",
        "self_attn.q_norms",
        "attention_and_laurel_norm",
        "per_layer_streams_norm",
        "post_attention_layernorm",
    ],
)
def test_a_tensor_has_the_shape_that_is_said(name: str) -> None:
    source = TextSource(MODEL, MODEL.config)
    assert source.read(f"{LAYER}{name}.weight").shape == source.shape(f"{LAYER}{name}.weight")


def test_values_have_a_factor_of_one_and_the_first_stream_of_zero() -> None:
    source, config = TextSource(MODEL, MODEL.config), MODEL.config
    heads = source.read(f"{LAYER}self_attn.qkv_norm.weight")[0, 0]
    assert (heads[-config.num_kv_heads :] == 1).all()
    np.testing.assert_array_equal(heads[0], MODEL.read(f"{LAYER}self_attn.q_norm.weight"))
    np.testing.assert_array_equal(heads[config.num_heads], MODEL.read(f"{LAYER}self_attn.k_norm.weight"))
    streams = source.read(f"{LAYER}per_layer_streams_norm.weight")[0, 0]
    assert not streams[0].any() and (streams[1] == MODEL.read(f"{LAYER}post_per_layer_input_norm.weight")).all()


def test_a_router_takes_its_norm_and_the_hidden_size_in() -> None:
    source, x = TextSource(MODEL, MODEL.config), np.linspace(-1, 1, MODEL.config.hidden_size, dtype=np.float32)
    found = source.read(f"{LAYER}altup.router.weight") @ x
    normed = x * MODEL.read(f"{LAYER}altup.router_norm.weight") / MODEL.config.hidden_size
    np.testing.assert_allclose(found, MODEL.read(f"{LAYER}altup.modality_router.weight") @ normed, rtol=1e-4, atol=1e-6)
