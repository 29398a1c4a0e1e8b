"""Gemma 4 in codes (`quant_method: gemma`): every weight copied, and the logits of transformers, rounding and all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from numpy.typing import NDArray

from benchmarks.synthetic_gemma4 import write_synthetic
from converters.calibration.divergence import BundleModel
from converters.calibration.rounding import PieceRounder, Rounding, copied_tensors, decoder_pieces
from converters.calibration.text import CalibrationText, built_in_calibration_text
from converters.convert import convert
from converters.families import open_checkpoint, open_headers
from converters.gate import ShortGate
from converters.gemma.stored_recipe import stored_recipe
from converters.gemma.tensors import PER_LAYER_EMBEDDING
from converters.gemma4.family import GEMMA4, Gemma4Checkpoint
from converters.gemma4.reference import Reference
from converters.gemma4.tensors import text_tensors
from converters.huggingface.hub import ranges
from converters.request import ConvertRequest, plan_request
from converters.slices import Budget
from converters.verify import built_in_text, sequences_of
from toolkit.base.errors import CheckpointError, RecipeError, SliceError
from toolkit.bundle.footprint import footprints
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.ple_shards import HEADER_BYTES, read_header, unpack_rows
from toolkit.quant.packing import unpack_codes
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.rounded import RoundedWeights
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import quantize_rows
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings
from toolkit.tflite.reader import read_tflite

F32 = NDArray[np.float32]
SETTINGS = SessionSettings(threads=1, weight_cache="memory")
FAMILIES = (GEMMA4,)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten layers with the bits of E2B: int4 attention, int2 feed-forward and embedding, int8 gates, int4 tables."""
    folder = tmp_path_factory.mktemp("qat") / "checkpoint"
    write_synthetic(folder, "tiny", "qat")
    return folder


@pytest.fixture
def checkpoint(path: Path) -> Iterator[Gemma4Checkpoint]:
    with open_checkpoint(path, FAMILIES) as opened:
        assert isinstance(opened, Gemma4Checkpoint)
        yield opened


@pytest.fixture(scope="module")
def bundle(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted by default."""
    folder = tmp_path_factory.mktemp("qat") / "bundle"
    result = convert(ConvertRequest(path, folder, context=128), families=FAMILIES, gate=ShortGate(SETTINGS))
    assert result.report is not None and result.report.passed
    (size,) = result.report.sizes.values()
    # Only the projection of per-layer embeddings is quantised here.
    assert (size.quality.kl_divergence_mean or 0) < 5e-3
    return folder


def parts_of(name: str) -> list[str]:
    """The checkpoint's tensors that a weight of a graph is made of."""
    if name.endswith("qkv_proj.weight"):
        return [name.replace("qkv_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
    return ["embed_tokens.weight" if name == "lm_head.weight" else name]


def test_a_budget_counts_codes_as_the_checkpoint_stores_them(checkpoint: Gemma4Checkpoint, bundle: Path) -> None:
    (found,) = footprints(bundle, read_manifest(bundle)).values()
    text = checkpoint.recipes({}, ())["text"]
    assert checkpoint.choose_slice(Budget(found.weight_bytes, "bytes"), text) == checkpoint.default_slice
    with pytest.raises(SliceError, match=f"at least {found.weight_bytes:,} for full"):
        checkpoint.choose_slice(Budget(found.weight_bytes - 1, "bytes"), text)


def ids(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 3328, count).astype(np.int32)


@pytest.mark.slow
def test_every_matrix_of_the_bundle_has_the_codes_and_scales_of_the_checkpoint(
    checkpoint: Gemma4Checkpoint, bundle: Path
) -> None:
    seen: set[str] = set()
    for file, signature in (("text_decoder.tflite", "decode"), ("embedder.tflite", "embed_1")):
        read = read_tflite(bundle / file)
        data = (bundle / file).read_bytes()
        for tensor in read.graph(signature).tensors:
            parts = [part for part in parts_of(tensor.name) if part in checkpoint.tensors]
            schemes = {checkpoint.scheme(part) for part in parts}
            if schemes <= {None}:
                continue
            (scheme,) = schemes
            assert scheme is not None and tensor.type == scheme.element.tensor_type, tensor
            buffer = read.model.buffers[tensor.buffer]
            payload = np.frombuffer(data[buffer.offset_bytes : buffer.offset_bytes + buffer.size_bytes], np.uint8)
            assert tensor.quantization is not None and tensor.quantization.scales is not None
            codes = unpack_codes(payload, scheme.element.bits).reshape(tensor.shape)
            values = codes * tensor.quantization.scales[:, None]
            np.testing.assert_array_equal(values, np.concatenate([checkpoint.read(part) for part in parts]))
            seen.update(parts)
    coded = {name for name in text_tensors(checkpoint.config) if checkpoint.scheme(name) is not None}
    assert coded - seen == {PER_LAYER_EMBEDDING}


@pytest.mark.slow
def test_every_per_layer_embedding_is_that_of_the_checkpoint(checkpoint: Gemma4Checkpoint, bundle: Path) -> None:
    shards = sorted(bundle.glob("ple_*.bin"))
    layout = read_header(shards[0]).layout
    assert (layout.bits, layout.scale_bits) == (4, 32)
    rows = np.concatenate([np.frombuffer(shard.read_bytes()[HEADER_BYTES:], np.uint8) for shard in shards])
    values = unpack_rows(rows.reshape(layout.vocab_size, -1), layout)
    np.testing.assert_array_equal(values.reshape(len(values), -1), checkpoint.read(PER_LAYER_EMBEDDING))


def test_the_manifest_says_how_and_that_activations_are_rounded(bundle: Path) -> None:
    quant = json.loads((bundle / "manifest.json").read_bytes())["quant"]
    assert quant["text"]["recipe"] == "qat" and quant["text"]["static_activations"] is True
    rules = {rule["match"]: rule["dtype"] for rule in quant["text"]["rules"]}
    assert rules["layers.*.mlp.gate_proj.weight"] == "int2" and rules["lm_head.weight"] == "int2"
    assert (
        rules["layers.*.self_attn.o_proj.weight"] == "int4" and rules["layers.*.per_layer_projection.weight"] == "int8"
    )
    assert [rule["dtype"] for rule in quant["ple"]["rules"]] == ["int4"]


@pytest.mark.reference
@pytest.mark.slow
def test_logits_are_those_of_transformers(path: Path, checkpoint: Gemma4Checkpoint, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("ml_dtypes")  # gives NumPy bfloat16, which safetensors wants
    safetensors = pytest.importorskip("safetensors.numpy")
    # transformers 5.24 makes one scale for each row of an embedding, and then computes with all that it is given.
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    table = model.model.language_model.embed_tokens_per_layer
    scales = safetensors.load_file(path / "model.safetensors")
    scales = scales["model.language_model.embed_tokens_per_layer.embedding_scale"]
    table.embedding_scale = torch.nn.Parameter(torch.from_numpy(scales), requires_grad=False)
    tokens = ids(40)
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(tokens.astype(np.int64)[None])).logits[0].numpy()
    reference = checkpoint.reference(checkpoint.default_slice)
    found = reference.logits(reference.hidden_states([tokens])[0])
    np.testing.assert_allclose(found, want, atol=1e-5)
    # With the projection in float32, too, a bundle differs only where a number lies so close to the middle between two
    # steps that the order of a sum decides; all that follows in a conversation differs then. So there are several.
    recipe = checkpoint.recipes({}, ())["text"]
    exact = recipe.changed("exact", [Rule("per_layer_model_projection.weight", Scheme("f32"))])
    convert(
        ConvertRequest(path, tmp_path / "exact", {"text": exact, "ple": "int4"}, context=128),
        families=FAMILIES,
        gate=None,
    )
    errors = []
    with Session(Bundle(tmp_path / "exact"), SETTINGS) as session:
        for prompt in np.split(tokens, 10):
            session.truncate(0)
            logits = np.array([session.feed([int(token)]) for token in prompt])
            errors.append(np.abs(logits - reference.logits(reference.hidden_states([prompt])[0])).max())
    assert np.median(errors) < 1e-5 and max(errors) < 0.5, errors


@pytest.mark.slow
def test_another_recipe_quantises_the_numbers_that_the_codes_stand_for(path: Path, tmp_path: Path) -> None:
    convert(ConvertRequest(path, tmp_path / "f32", {"text": "f32"}, context=64), families=FAMILIES, gate=None)
    with open_checkpoint(path, FAMILIES) as checkpoint, Session(Bundle(tmp_path / "f32"), SETTINGS) as session:
        assert isinstance(checkpoint, Gemma4Checkpoint)
        found = session.feed(ids(20).tolist())
        plain = Reference(checkpoint)  # which rounds nothing
        want = plain.logits(plain.hidden_states([ids(20)])[0][-1:])[0]
    np.testing.assert_allclose(found, want, atol=1e-3)


def test_scales_of_activations_on_the_hub_are_read_together(
    path: Path, checkpoint: Gemma4Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in text_tensors(checkpoint.config) if checkpoint.scheme(name) is not None]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ranges, "_MAX_RUN_BYTES", 1 << 18)
    with HubServer() as hub:
        hub.publish("someone/qat", path)
        hub.use(monkeypatch, tmp_path / "cache")
        with open_headers("someone/qat", FAMILIES) as remote:
            assert isinstance(remote, Gemma4Checkpoint)
            before = len(hub.requests)
            for _ in range(2):
                assert [*map(remote.activation_scales, names)] == [*map(checkpoint.activation_scales, names)]
            assert len(names) > 40 and len(hub.requests) - before < 10
            assert sum(hub.sent.values()) < (path / "model.safetensors").stat().st_size / 2


@pytest.mark.slow
def test_calibration_copies_what_is_stored_in_the_recipes_codes(
    path: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CalibrationText(built_in_calibration_text().text[:3000])
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub:  # where codes are told from headers
        hub.publish("someone/qat", path)
        hub.use(monkeypatch, tmp_path / "cache")
        request = ConvertRequest("someone/qat", tmp_path / "b", context=128, calibration=text)
        convert(request, families=FAMILIES, gate=None)
    plain, calibrated = (stored_bytes(folder / "text_decoder.tflite") for folder in (bundle, tmp_path / "b"))
    assert [name for name in plain if plain[name] != calibrated[name]] == ["per_layer_model_projection.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_budget_judges_what_the_bundle_gives(
    static: bool, path: Path, checkpoint: Gemma4Checkpoint, tmp_path: Path
) -> None:
    """One matrix is rounded; the inputs of those that are copied are rounded too, as LiteRT does or as stated."""
    recipe = replace(checkpoint.recipes({}, ())["text"], static_activations=static)
    request = ConvertRequest(path, tmp_path / "b", {"text": recipe}, context=128)
    result = convert(request, families=FAMILIES, gate=ShortGate(SETTINGS, tokens=64))
    assert result.report is not None
    (size,) = result.report.sizes.values()
    plan = checkpoint.plan(plan_request(request, checkpoint))
    pieces, (run,) = decoder_pieces(plan), checkpoint.calibration_passes([checkpoint.default_slice])
    words = Bundle(result.path).tokenizer().encode_limited(built_in_text())
    text = result.manifest.text
    judged = [np.array(s, np.int32) for s in sequences_of(words, text.bos_token_id, context=text.context, tokens=64)]
    (tmp_path / "rounded").mkdir()
    with ThreadPoolExecutor(1) as pool:
        rounder = PieceRounder(RoundedWeights(tmp_path / "rounded"), Rounding(pool), lambda _: None)
        for tensor, some in pieces.items():
            for piece in some:
                rows = quantize_rows(checkpoint.read(tensor, piece.rows, piece.columns), piece.scheme)
                rounder.rounded.save(piece.weight, piece.first_row, rows)
        model = BundleModel(run, pieces, copied_tensors(plan), rounder, static)
        assert model.divergence(judged) == pytest.approx(size.quality.kl_divergence_mean, rel=0.1)


def stored_bytes(file: Path) -> dict[str, bytes]:
    """The bytes and the scales of each weight of the graph that decodes, by name."""
    read, data = read_tflite(file), file.read_bytes()
    found = {}
    for tensor in read.graph("decode").tensors:
        buffer, quantization = read.model.buffers[tensor.buffer], tensor.quantization
        scales = b"" if quantization is None or quantization.scales is None else quantization.scales.tobytes()
        found[tensor.name] = data[buffer.offset_bytes : buffer.offset_bytes + buffer.size_bytes] + scales
    return found


def test_a_checkpoint_of_floats_has_no_codes_to_copy(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "bf16", "tiny", "bf16")
    with pytest.raises(RecipeError, match="found qat, for a checkpoint whose weights are floats, wanted f32, int8"):
        convert(ConvertRequest(tmp_path / "bf16", tmp_path / "out", {"text": "qat"}), families=FAMILIES, gate=None)


def test_an_output_matrix_other_than_the_embedding_is_refused(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")  # gives NumPy bfloat16, which safetensors wants
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(path / "model.safetensors")
    tensors["lm_head.weight_scale"] = tensors["lm_head.weight_scale"] * np.float32(2)
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight: found values that differ from the token embedding's"):
        open_checkpoint(tmp_path, FAMILIES)


# --- the recipe ------------------------------------------------------------------------------------------------------

INT8, INT4, INT2 = Scheme("int8"), Scheme("int4"), Scheme("int2")
BASE = Recipe("int8", (Rule("*norm.weight", Scheme("f32")), Rule("*", INT8)))
PROJECTIONS = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


def test_a_recipe_names_the_layers_that_differ_from_most() -> None:
    schemes = {f"layers.{n}.mlp.up_proj.weight": INT2 if n > 1 else INT4 for n in range(5)}
    recipe = stored_recipe(BASE, list(schemes), schemes.get, static_activations=False)
    assert [(rule.match, rule.scheme.dtype) for rule in recipe.rules] == [
        ("layers.0.mlp.up_proj.weight", "int4"),
        ("layers.1.mlp.up_proj.weight", "int4"),
        ("layers.*.mlp.up_proj.weight", "int2"),
        ("*norm.weight", "f32"),
        ("*", "int8"),
    ]


def test_projections_that_a_decoder_joins_have_one_type() -> None:
    schemes = {f"layers.0.{name}": INT4 for name in PROJECTIONS}
    recipe = stored_recipe(BASE, list(schemes), schemes.get, static_activations=True)
    assert recipe.static_activations
    assert ("layers.*.self_attn.qkv_proj.weight", INT4) in [(rule.match, rule.scheme) for rule in recipe.rules]
    schemes["layers.0.self_attn.v_proj.weight"] = INT8
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn: found q_proj int4 .*v_proj int8 .*one type"):
        stored_recipe(BASE, list(schemes), schemes.get, static_activations=False)


@pytest.mark.parametrize("changed", ["self_attn.v_proj.weight", "mlp.up_proj.weight"])
@pytest.mark.parametrize("layers", [(0,), (0, 1, 2)])
def test_a_matrix_that_an_adapter_changes_has_the_scheme_of_the_base(changed: str, layers: tuple[int, ...]) -> None:
    kinds = (*PROJECTIONS, "mlp.up_proj.weight")
    anew = {f"layers.{n}.{changed}" for n in layers}
    tensors = [f"layers.{n}.{kind}" for n in range(3) for kind in kinds]
    schemes = {name: None if name in anew else INT2 for name in tensors}
    recipe = stored_recipe(BASE, tensors, schemes.__getitem__, static_activations=False)
    assert {name: recipe.scheme(name) for name in tensors} == {name: scheme or INT8 for name, scheme in schemes.items()}
    joined = [f"layers.{n}.self_attn.qkv_proj.weight" for n in range(3)]
    parts = [schemes[name.replace("qkv_proj", "v_proj")] for name in joined]
    assert [recipe.scheme(name) for name in joined] == [scheme or INT8 for scheme in parts]


def test_scales_of_blocks_of_a_matrix_are_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"embed_tokens\.weight: found int4 in blocks of 32, wanted int4 with one"
    ):
        stored_recipe(BASE, ["embed_tokens.weight"], lambda _: Scheme("int4", 32), static_activations=False)
