"""RMS norms as composites: fewer ops, the same numbers from their decompositions, whatever form a norm has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import flexbuffers
from gpu_inputs import signature_inputs
from towers import write_multimodal_checkpoint

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.tflite.reader import TfliteContent, read_tflite
from toolkit.tflite.records import SubgraphRecord
from toolkit.tflite.rewrite import select_signatures
from toolkit.tflite.rms_norms import COMPOSITE


@pytest.fixture(scope="module")
def multimodal_float_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rms_norms")
    checkpoint = write_multimodal_checkpoint(path / "checkpoint")
    roles = dict.fromkeys(("text", "ple", "vision", "audio"), "f32")
    convert(ConvertRequest(checkpoint, path / "bundle", roles, context=160, prefill_sizes=(4, 16)), gate=None)
    return path / "bundle"


def rewritten(source: Path, target: Path, *names: str) -> TfliteContent:
    """The file with these signatures, norms as composites."""
    select_signatures(source, target, {name: name for name in names}, composite_norms=True)
    return read_tflite(target)


def outputs(path: Path, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    runner = Interpreter(str(path)).get_signature_runner(name)
    return dict(runner(**inputs))


def ops(graph: SubgraphRecord) -> Counter[str]:
    return Counter(op.builtin for op in graph.operators)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signature", "first_id", "left"),
    [
        ("text_decoder", "decode", 0, 2),  # AltUp gives streams the magnitude of another: no norm
        ("text_decoder", "prefill_4", 0, 1),
        ("vision_encoder", "encode", 0, 0),
        ("vision_adapter", "adapt", 0, 0),
        ("vision_adapter", "embed_1", 3072, 0),
        ("audio_encoder", "encode_112", 0, 2),  # the running norms
        ("audio_adapter", "adapt_112", 0, 0),
    ],
)
def test_every_norm_of_a_graph_becomes_one_op_with_the_same_numbers(
    multimodal_float_bundle: Path, tmp_path: Path, name: str, signature: str, first_id: int, left: int
) -> None:
    source = multimodal_float_bundle / f"{name}.tflite"
    content = rewritten(source, tmp_path / "m.tflite", signature)
    before, after = ops(read_tflite(source).graph(signature)), ops(content.graph(signature))
    assert after["RSQRT"] == left
    assert after["STABLEHLO_COMPOSITE"] == before["RSQRT"] - left
    assert after.total() < before.total() - 3 * after["STABLEHLO_COMPOSITE"]
    inputs = signature_inputs(source, first_id=first_id)[signature]
    wanted, found = outputs(source, signature, inputs), outputs(tmp_path / "m.tflite", signature, inputs)
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=2e-5 * max(1.0, np.abs(value).max()))


@pytest.mark.slow
def test_a_composite_names_its_epsilon_and_a_subgraph_without_a_signature(
    multimodal_float_bundle: Path, tmp_path: Path
) -> None:
    content = rewritten(multimodal_float_bundle / "text_decoder.tflite", tmp_path / "m.tflite", "decode")
    assert content.model.signatures == ("decode",)
    graph = content.graph("decode")
    composites = [op for op in graph.operators if op.builtin == "STABLEHLO_COMPOSITE"]
    fields: list[dict[str, Any]] = [dict(op.fields) for op in composites]
    assert {values["name"] for values in fields} == {COMPOSITE}
    # That of the checkpoint; the projection of per-layer embeddings has one that is multiplied by the hidden size.
    found = Counter(flexbuffers.Loads(bytearray(values["compositeAttributes"]))["epsilon"] for values in fields)
    assert found.most_common(1)[0][0] == pytest.approx(1e-6, rel=1e-6) and len(found) == 2
    for values, op in zip(fields, composites, strict=True):
        inner = content.model.subgraphs[values["decompositionSubgraphIndex"]]
        assert [inner.tensors[i].shape for i in inner.inputs.values()] == [graph.tensors[i].shape for i in op.inputs]
        assert ops(inner) == Counter(MUL=3, MEAN=1, ADD=1, RSQRT=1)


def test_a_graph_without_norms_stays_as_it_is(multimodal_float_bundle: Path, tmp_path: Path) -> None:
    source = multimodal_float_bundle / "embedder.tflite"
    content = rewritten(source, tmp_path / "m.tflite", "embed_1")
    assert content.graph("embed_1").operators == read_tflite(source).graph("embed_1").operators
    assert len(content.model.subgraphs) == 1
