"""The synthetic checkpoints of Gemma 4: real enough to open, with the published numbers of weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic_gemma4
from benchmarks.synthetic_gemma4 import PRESETS
from converters.gemma.tensors import unused_kv_tensors
from converters.gemma4.checkpoint import Gemma4Tensors
from converters.gemma4.tensors import text_tensors
from converters.huggingface.configs import read_configs
from converters.huggingface.gemma_quant.config import parse_gemma_quant
from toolkit.quant.packing import unpack_codes


@pytest.mark.parametrize("form", ["bf16", "qat"])
def test_the_checkpoint_opens_with_the_config_of_its_preset(tmp_path: Path, form: synthetic_gemma4.Form) -> None:
    synthetic_gemma4.write_synthetic(tmp_path / "tiny", "tiny", form)
    synthetic_gemma4.write_synthetic(tmp_path / "again", "tiny", form)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("tiny", "again"))
    assert one == other
    with Gemma4Tensors(read_configs(tmp_path / "tiny")) as checkpoint:
        assert checkpoint.config == PRESETS["tiny"]
        for name in ("embed_tokens.weight", "layers.2.mlp.gate_proj.weight", "layers.0.self_attn.o_proj.weight"):
            values = checkpoint.read(name)
            assert values.std() == pytest.approx(values.shape[1] ** -0.5, rel=0.06)
            assert (checkpoint.scheme(name) is not None) == (form == "qat")
        assert np.abs(checkpoint.read("layers.2.layer_scalar") - 0.98).max() < 0.05


@pytest.mark.parametrize(
    ("preset", "published", "projections"),
    [("e2b", 5_123_178_051, 1_179_648 + 2_359_296), ("e4b", 7_996_156_490, 1_966_080 + 3_932_160)],
)
def test_published_presets_have_the_published_number_of_weights(preset: str, published: int, projections: int) -> None:
    config = PRESETS[preset]
    shapes = text_tensors(config) | unused_kv_tensors(config)
    towers = 167_364_608 + 304_824_608 + projections
    assert sum(map(math.prod, shapes.values())) == published - towers


def test_a_token_of_e2b_reads_0_78_gb_in_googles_bits() -> None:
    config = PRESETS["e2b"]
    rules = parse_gemma_quant(synthetic_gemma4.config_json("e2b", "qat"), "config.json")
    shapes = {name: shape for name, shape in text_tensors(config).items() if len(shape) == 2}
    modules = {name: synthetic_gemma4.PREFIX + name.removesuffix(".weight") for name in shapes}
    bits = rules.bits_of([*modules.values()])
    read = {name: math.prod(shape) * (bits[modules[name]] or 8) / 8 for name, shape in shapes.items()}
    del read["embed_tokens_per_layer.weight"]  # one row a token
    assert sum(read.values()) == pytest.approx(776e6, rel=0.005)


@pytest.mark.parametrize("bits", [2, 4])
def test_every_code_occurs_and_their_mean_is_0(bits: int) -> None:
    packed = synthetic_gemma4.packed_draws(bits)
    codes = unpack_codes(packed ^ np.uint8({2: 0xAA, 4: 0x88}[bits]), bits)
    assert sorted(set(codes.tolist())) == list(range(-(1 << bits - 1), 1 << bits - 1))
    assert codes.mean() == 0 and codes.std() == pytest.approx(synthetic_gemma4.DEVIATION[bits])
