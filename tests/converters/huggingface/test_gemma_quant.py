"""Checkpoints of `quant_method: gemma`: the bits of each module, every number as in transformers, and every fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gemma_quant
import numpy as np
import pytest
from checkpoints import write_checkpoint
from numpy.typing import NDArray

from converters.huggingface.gemma_quant.config import parse_gemma_quant, quant_method
from converters.huggingface.gemma_quant.tensors import GemmaQuantTensors
from toolkit.base.activations import ActivationScales
from toolkit.base.errors import CheckpointError, ToolkitError
from toolkit.quant.packing import unpack_codes
from toolkit.quant.scheme import Scheme

Tensors = dict[str, NDArray[Any]]
TEXT = "model.language_model."


def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    return {
        **gemma_quant.embedding(f"{TEXT}embed_tokens", (40, 16), 2, 1, rng),
        **gemma_quant.embedding(f"{TEXT}embed_tokens_per_layer", (40, 24), 4, 3, rng),
        **gemma_quant.linear("lm_head", (40, 16), 2, rng),
        **gemma_quant.linear(f"{TEXT}layers.14.mlp.gate_proj", (8, 16), 4, rng),
        **gemma_quant.linear(f"{TEXT}layers.15.mlp.gate_proj", (8, 16), 2, rng),
        **gemma_quant.linear(f"{TEXT}layers.0.per_layer_input_gate", (6, 16), 8, rng),
        f"{TEXT}layers.0.self_attn.k_cache_scale": np.array(0.1, np.float32),
        f"{TEXT}per_layer_model_projection.weight": rng.standard_normal((24, 16)).astype(np.float16),
        f"{TEXT}norm.weight": rng.standard_normal(16).astype(np.float16),
        "model.vision_tower.patch_embedder.input_proj.weight": rng.standard_normal((4, 4)).astype(np.float16),
    }


def opened(folder: Path, stored: Tensors, **changes: object) -> GemmaQuantTensors:
    config = {"quantization_config": gemma_quant.quantization_config(**changes)}
    write_checkpoint(folder, config, stored)
    return GemmaQuantTensors(folder, None, parse_gemma_quant(config, str(folder / "config.json")))


WEIGHTS = {
    f"{TEXT}embed_tokens.weight": Scheme("int2"),
    f"{TEXT}embed_tokens_per_layer.weight": Scheme("int4", 8),
    "lm_head.weight": Scheme("int2"),
    f"{TEXT}layers.14.mlp.gate_proj.weight": Scheme("int4"),
    f"{TEXT}layers.15.mlp.gate_proj.weight": Scheme("int2"),
    f"{TEXT}layers.0.per_layer_input_gate.weight": Scheme("int8"),
}


def test_a_quantised_weight_is_one_tensor_of_its_own_shape(tmp_path: Path) -> None:
    with_scales = tensors()
    found = opened(tmp_path, with_scales)
    plain = {
        f"{TEXT}per_layer_model_projection.weight",
        f"{TEXT}norm.weight",
        "model.vision_tower.patch_embedder.input_proj.weight",
    }
    assert found.infos.keys() == WEIGHTS.keys() | plain
    assert {name: found.scheme(found.infos[name]) for name in found.infos} == {**WEIGHTS, **dict.fromkeys(plain)}
    table = found.infos[f"{TEXT}embed_tokens_per_layer.weight"]
    assert (table.shape, table.dtype, table.parameters, table.stored_bytes) == ((40, 24), "I4", 960, 480)
    assert all(found.is_readable(info) for info in found.infos.values())


@pytest.mark.reference
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_number_is_that_of_transformers(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.integrations.gemma_quant")
    stored = tensors()
    found = opened(tmp_path, stored)
    rows, columns = found.infos[name].shape
    bits = WEIGHTS[name].element.bits
    if "embed" in name:
        layer = module.QuantizedEmbedding(rows, columns, torch.float32, num_bits=bits)
        layer.embedding_quantized.data = torch.from_numpy(stored[name.replace(".weight", ".embedding_quantized")])
        layer.embedding_scale.data = torch.from_numpy(stored[name.replace(".weight", ".embedding_scale")])
        want = layer.weight.detach().numpy()
    else:
        layer = module.QuantizedLinear(columns, rows, num_bits=bits)
        layer.weight.data = torch.from_numpy(stored[name])
        layer.weight_scale.data = torch.from_numpy(stored[f"{name}_scale"])
        want = layer._dequantize_weights(torch.float32).detach().numpy()
    info = found.infos[name]
    np.testing.assert_array_equal(found.read(info), want)
    np.testing.assert_array_equal(found.read(info, (2, 5), (3, 14)), want[2:5, 3:14])
    scheme = WEIGHTS[name]
    packed = found.packed(info, scheme, (1, 6))
    assert packed is not None
    codes = unpack_codes(packed.payload, bits).reshape(5, columns)
    scales = packed.scales.reshape(5, -1)
    assert scales.dtype == np.float32
    np.testing.assert_array_equal(codes * np.repeat(scales, columns // scales.shape[1], axis=1), want[1:6])


@pytest.mark.reference
def test_the_bits_of_modules_are_those_that_transformers_chooses(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    integration = pytest.importorskip("transformers.integrations.gemma_quant")
    transformers = pytest.importorskip("transformers")
    # Patterns that overlap, of which one begins earlier in the name; and names that only end or begin alike.
    patterns = {"proj$": {"num_bits": 8}, r"layers\.1\b": {"num_bits": 2}, "gate": {}, "layers.1[0-9]": {"num_bits": 8}}
    excluded = ["layers.2", "up_proj", r"layers.\d.skip", "down"]
    names = ["gate", "up_proj", "down_proj", "skip", "skipped", "gate_proj"]
    layers = torch.nn.ModuleList(torch.nn.ModuleDict({n: torch.nn.Linear(8, 8) for n in names}) for _ in range(22))
    model = torch.nn.Module()
    model.layers = layers
    config = transformers.GemmaQuantizationConfig(3, False, patterns, excluded)
    integration.replace_with_quant_layers(model, config, excluded)
    want = {
        name: getattr(module, "num_bits", None)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    stated = gemma_quant.quantization_config(module_quant_configs=patterns, modules_to_not_convert=excluded, num_bits=4)
    found = parse_gemma_quant({"quantization_config": stated}, "config.json").bits_of(list(want))
    assert {name: 3 if bits == 4 else bits for name, bits in found.items()} == want


def test_codes_are_given_only_in_their_own_scheme(tmp_path: Path) -> None:
    found = opened(tmp_path, tensors())
    gate = found.infos[f"{TEXT}layers.14.mlp.gate_proj.weight"]
    for other in (Scheme("int8"), Scheme("f32"), Scheme("int4", 8)):
        assert found.packed(gate, other, (0, 8)) is None
    columns = found.packed(gate, Scheme("int4"), (0, 8), (4, 8))
    assert columns is not None and columns.payload.shape == (8, 2)
    np.testing.assert_array_equal(
        unpack_codes(columns.payload, 4).reshape(8, 4) * columns.scales[:, None], found.read(gate, None, (4, 8))
    )
    assert found.packed(gate, Scheme("int4"), (0, 8), (1, 8)) is None  # within a byte
    assert found.packed(found.infos[f"{TEXT}norm.weight"], Scheme("int4"), (0, 8)) is None


def test_scales_of_activations_are_read_and_zero_is_none(tmp_path: Path) -> None:
    stored = tensors()
    stored["lm_head.output_activation_scale"] = np.zeros((), np.float32)
    del stored[f"{TEXT}layers.14.mlp.gate_proj.input_activation_scale"]
    found = opened(tmp_path, stored)
    head, gate = found.infos["lm_head.weight"], found.infos[f"{TEXT}layers.14.mlp.gate_proj.weight"]
    assert found.activation_scales(head) == ActivationScales(float(stored["lm_head.input_activation_scale"]), None)
    output = float(stored[f"{TEXT}layers.14.mlp.gate_proj.output_activation_scale"])
    assert found.activation_scales(gate) == ActivationScales(None, output)
    assert found.activation_scales(found.infos[f"{TEXT}norm.weight"]) == ActivationScales(None, None)


def test_two_weights_are_equal_if_codes_and_scales_are(tmp_path: Path) -> None:
    stored = tensors()
    found = opened(tmp_path / "other", stored)
    head, table = found.infos["lm_head.weight"], found.infos[f"{TEXT}embed_tokens.weight"]
    assert found.equal(head, head) and not found.equal(head, table)
    assert not found.equal(head, found.infos[f"{TEXT}norm.weight"])
    stored["lm_head.weight"] = stored[f"{TEXT}embed_tokens.embedding_quantized"]
    found = opened(tmp_path / "codes", stored)
    assert not found.equal(found.infos["lm_head.weight"], found.infos[f"{TEXT}embed_tokens.weight"])
    stored["lm_head.weight_scale"] = stored[f"{TEXT}embed_tokens.embedding_scale"]
    found = opened(tmp_path / "both", stored)
    assert found.equal(found.infos["lm_head.weight"], found.infos[f"{TEXT}embed_tokens.weight"])


def test_another_scale_is_another_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for n, key in enumerate([None, "lm_head.weight_scale", "lm_head.input_activation_scale"]):
        stored = tensors()
        if key is not None:
            stored[key] = stored[key] * np.float32(2)
        found = opened(tmp_path / str(n), stored)
        prints.add(found.fingerprint({}, [1], found.infos))
    assert len(prints) == 3


def put(name: str, value: NDArray[Any] | None) -> Callable[[Tensors], object]:
    def change(stored: Tensors) -> None:
        if value is None:
            del stored[name]
        else:
            stored[name] = value

    return change


U8, F32 = np.uint8, np.float32
GATE = f"{TEXT}layers.14.mlp.gate_proj"
FAULTS: Mapping[str, tuple[Callable[[Tensors], object], str]] = {
    "floats": (put("lm_head.weight", np.zeros((40, 16), np.float16)), "lm_head.weight is F16"),
    "floats without scales": (
        lambda stored: (
            [stored.pop(name) for name in list(stored) if name.startswith(GATE)]
            and stored.update({f"{GATE}.weight": np.zeros((8, 16), np.float16)})
        ),
        "gate_proj.weight is F16, not codes of 4 bits",
    ),
    "no scales": (put(f"{GATE}.weight_scale", None), "gate_proj.weight has no scales"),
    "scales of other rows": (put(f"{GATE}.weight_scale", np.ones((9, 1), F32)), r"has scales F32 \[9, 1\]"),
    "scales of blocks": (put(f"{GATE}.weight_scale", np.ones((8, 2), F32)), "2 scales a row, not one"),
    "blocks that do not fit": (
        put(f"{TEXT}embed_tokens_per_layer.embedding_scale", np.ones((40, 5), F32)),
        "5 scales for rows of 12 bytes",
    ),
    "codes twice": (
        lambda stored: stored.update(gemma_quant.embedding(GATE, (8, 16), 4, 1, np.random.default_rng(0))),
        "gate_proj.weight is stored twice",
    ),
    "another type": (put(f"{GATE}.weight", np.zeros((8, 16), np.int8)), r"is I8 \[8, 16\], not U8"),
    "another type of 8 bits": (
        put(f"{TEXT}layers.0.per_layer_input_gate.weight", np.zeros((6, 16), U8)),
        r"is U8 \[6, 16\], not I8",
    ),
    "codes of a module left out": (
        lambda stored: stored.update(
            gemma_quant.linear("model.embed_vision.embedding_projection", (4, 8), 4, np.random.default_rng(0))
        ),
        "is U8, but the module is not to be converted",
    ),
    "stray scales": (put("model.x.weight_scale", np.ones((4, 1), F32)), "belongs to no quantised weight"),
    "activations by row": (put(f"{GATE}.input_activation_scale", np.ones(8, F32)), "not one number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_the_config_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, message = FAULTS[name]
    stored = tensors()
    change(stored)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, stored)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_no_weight_can_have_is_named_with_its_row(tmp_path: Path, value: float) -> None:
    stored = tensors()
    stored[f"{GATE}.weight_scale"][3] = value
    found = opened(tmp_path, stored)
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight_scale, row 3: "):
        found.packed(found.infos[f"{GATE}.weight"], Scheme("int4"), (1, 8))
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight_scale, row 3: "):
        found.read(found.infos[f"{GATE}.weight"])


def test_a_negative_scale_of_activations_is_refused(tmp_path: Path) -> None:
    stored = tensors()
    stored[f"{GATE}.input_activation_scale"] = np.array(-0.5, np.float32)
    found = opened(tmp_path, stored)
    with pytest.raises(CheckpointError, match=r"input_activation_scale: found -0.5"):
        found.activation_scales(found.infos[f"{GATE}.weight"])


CONFIGS: Mapping[str, tuple[dict[str, object], str]] = {
    "bits": ({"num_bits": 3}, "num_bits: found 3, wanted 2 or 4 or 8"),
    "bits of a module": ({"module_quant_configs": {"a": {"num_bits": 16}}}, "a num_bits: found 16"),
    "an unknown key": ({"group_size": 32}, "group_size"),
    "an unknown key of a module": ({"module_quant_configs": {"a": {"group_size": 4}}}, "group_size"),
    "no list of what is left out": ({"modules_to_not_convert": None}, "modules_to_not_convert: found none"),
    "a list of numbers": ({"modules_to_not_convert": [1]}, "a list of names"),
    "no expression": ({"module_quant_configs": {"(": {}}}, "module_quant_configs: .*a regular expression"),
    "a named group": ({"module_quant_configs": {"(?P<a>b)": {}}}, "named groups"),
    "too many": ({"module_quant_configs": {f"a{n}": {} for n in range(200)}}, "207 patterns"),
    "endless matching": ({"module_quant_configs": {r"(\w+\w+)+!": {}}}, "more than 10 s"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] if name == "endless matching" else []) for name in CONFIGS]
)
def test_a_config_that_is_not_what_transformers_writes_is_refused(name: str) -> None:
    changes, message = CONFIGS[name]
    config = {"quantization_config": gemma_quant.quantization_config(**changes)}
    with pytest.raises(ToolkitError, match=message) as caught:
        parse_gemma_quant(config, "config.json").bits_of(["model.layers.0.self_attn." + "long_" * 40])
    assert caught.value.file == "config.json"


def test_the_method_is_that_of_the_whole_model_or_of_its_text() -> None:
    assert quant_method({"quantization_config": {"quant_method": "gemma"}}) == "gemma"
    assert quant_method({"text_config": {"quantization_config": {"quant_method": "awq"}}}) == "awq"
    assert quant_method({"text_config": {}}) is None
