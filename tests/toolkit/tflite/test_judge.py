"""The judge lets our own files pass and no others: one broken file for each rule, and thousands of mutants."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as fb
from paths import FIXTURES, REPOSITORY
from tflite_mutants import Attack, copy_of, in_child, mutate_bytes

from toolkit.base.errors import BundleError, GraphError
from toolkit.bundle.judged import graph_faults
from toolkit.bundle.manifest import AUDIO_ADAPTER, AUDIO_ENCODER, EMBEDDER, TEXT_DECODER, VISION_ADAPTER, VISION_ENCODER
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.signatures import bundle_signatures, shapes_of
from toolkit.quant.scheme import Scheme
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.judged_files import require_judged, require_judged_bundle
from toolkit.tflite.graph import DType, Graph, Signature, Value, Weight, WeightPart
from toolkit.tflite.image_ops import average_pool_2d, conv_2d
from toolkit.tflite.judge import Header, judge, read_header
from toolkit.tflite.ops import abs_, add, fully_connected, gather, pad, reshape, slice_
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.records import (
    BufferRecord,
    ModelRecord,
    OperatorRecord,
    Quantization,
    SubgraphRecord,
    TensorRecord,
)
from toolkit.tflite.schema_pack import pack
from toolkit.tflite.wellformed import require_wellformed
from toolkit.tflite.writer import layout_tflite

FOREIGN = FIXTURES / "tflite"


def small_graph() -> Graph:
    """Of each kind of value one: an input, constants, results; y = pad(x + 1)[:, 2:4]."""
    graph = Graph()
    x = graph.input("x", (2, 8))
    graph.output("y", slice_(pad(add(x, graph.scalar(1.0)), [(0, 0), (1, 1)]), [0, 2], [2, 2]))
    return graph


def packed(graph: Graph, name: str = "run") -> bytes:
    return layout_tflite([Signature(name, graph)], {}).header


def model_of(data: bytes, folder: Path) -> ModelRecord:
    (folder / "model.tflite").write_bytes(data)
    return read_tflite(folder / "model.tflite").model


def judge_bytes(data: bytes, folder: Path) -> None:
    path = folder / "judged.tflite"
    path.write_bytes(data)
    judge(read_header(path))


@pytest.mark.parametrize("bundle", ["random_bundle", "multimodal_bundle"])
def test_every_graph_of_a_bundle_passes_with_the_signatures_that_the_manifest_describes(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(bundle)
    for name, wanted in bundle_signatures(read_manifest(path)).items():
        assert graph_faults(path / name, wanted) == []
        judged = judge(read_header(path / name))
        slow = shapes_of(read_tflite(path / name))
        assert {key: dict(value.inputs) for key, value in judged.items()} == {
            key: {item: type(value.inputs[item])(t.type, t.shape) for item, t in slow[key].inputs.items()}
            for key, value in judged.items()
        }


@pytest.mark.parametrize("path", sorted(FOREIGN.glob("*.gz")), ids=lambda path: path.name.partition(".")[0])
def test_files_that_broke_the_runtime_are_refused(path: Path, tmp_path: Path) -> None:
    """Kept mutants of our own files that ended LiteRT by a signal, or took gigabytes."""
    with pytest.raises(GraphError):
        judge_bytes(gzip.decompress(path.read_bytes()), tmp_path)


def tensor(model: ModelRecord, place: int, **changes: object) -> ModelRecord:
    (graph,) = model.subgraphs
    tensors = list(graph.tensors)
    tensors[place] = replace(tensors[place], **changes)  # type: ignore[arg-type]
    return replace(model, subgraphs=(replace(graph, tensors=tuple(tensors)),))


def operator(model: ModelRecord, place: int, **changes: object) -> ModelRecord:
    (graph,) = model.subgraphs
    operators = list(graph.operators)
    operators[place] = replace(operators[place], **changes)  # type: ignore[arg-type]
    return replace(model, subgraphs=(replace(graph, operators=tuple(operators)),))


def constant(model: ModelRecord, old: list[int], new: list[int]) -> ModelRecord:
    """The model with other numbers in a constant of integers."""
    data = {np.array(old, np.int32).tobytes(): np.array(new, np.int32).tobytes()}
    return replace(model, buffers=tuple(BufferRecord(data.get(b.data or b"", b.data)) for b in model.buffers))


PAD, SLICE = 1, 2  # operators of the small graph, after its ADD
FAULTS: list[tuple[str, Callable[[ModelRecord], ModelRecord], str]] = [
    ("an operator of another kind", lambda m: operator(m, 0, builtin="WHILE"), "the operator WHILE"),
    ("another version", lambda m: operator(m, 0, version=99), "ADD version 99"),
    ("an option out of range", lambda m: operator(m, 0, fields=(("fusedActivationFunction", 77),)), "options"),
    ("options of another operator", lambda m: operator(m, 0, options="MulOptions", fields=()), "options"),
    ("no options", lambda m: operator(m, 0, options=None, fields=()), "options"),
    ("an input too many", lambda m: operator(m, 0, inputs=(0, 1, 1)), "inputs"),
    ("an input too few", lambda m: operator(m, 0, inputs=(0,)), "inputs"),
    ("an input that is not there", lambda m: operator(m, 0, inputs=(0, 99)), "does not exist"),
    ("an optional input", lambda m: operator(m, 0, inputs=(0, -1)), "does not exist"),
    ("an input from the future", lambda m: operator(m, 0, inputs=(m.subgraphs[0].operators[2].outputs[0], 1)),
     "not computed before"),
    ("two results", lambda m: operator(m, 0, outputs=(2, 3)), "operator outputs"),
    ("a result that is an input", lambda m: operator(m, 0, outputs=(0,)), "an input, a constant"),
    ("a result that is a constant", lambda m: operator(m, 0, outputs=(1,)), "an input, a constant"),
    ("a result of another shape", lambda m: tensor(m, 2, shape=(2, 9)), "result"),
    ("a result of another type", lambda m: tensor(m, 2, type="INT32"), "result"),
    ("a type that nothing computes with", lambda m: tensor(m, 0, type="STRING"), "type or a size"),
    ("a dimension of nothing", lambda m: tensor(m, 0, shape=(2, 0)), "not positive"),
    ("a dimension below nothing", lambda m: tensor(m, 0, shape=(2, -1)), "not positive"),
    ("more axes than any value has", lambda m: tensor(m, 0, shape=(1,) * 9), "tensor shape"),
    ("a size beyond all memory", lambda m: tensor(m, 0, shape=(2**30, 2**30)), "type or a size"),
    ("a buffer that is not there", lambda m: tensor(m, 0, buffer=99), "a buffer that does not exist"),
    ("an input with bytes", lambda m: tensor(m, 0, buffer=1, shape=(1,)), "an input that is stored"),
    ("scales of a value", lambda m: tensor(m, 0, quantization=Quantization(np.ones(2, np.float32))), "not a weight"),
    ("codes without scales", lambda m: tensor(m, 1, type="INT8", shape=(4,)), "INT8"),
    ("padding beyond all memory", lambda m: constant(m, [0, 0, 1, 1], [0, 0, 2**30, 2**30]), "result"),
    ("padding below nothing", lambda m: constant(m, [0, 0, 1, 1], [0, 0, -1, 1]), "PAD wants counts"),
    ("a slice beyond its value", lambda m: constant(m, [0, 2], [0, 2**30]), "leaves the value"),
    ("a slice before its value", lambda m: constant(m, [0, 2], [0, -1]), "leaves the value"),
    ("bytes in the empty buffer", lambda m: replace(m, buffers=(BufferRecord(b"1234"), *m.buffers[1:])), "buffers"),
    ("weights beyond the file", lambda m: replace(m, buffers=(*m.buffers, BufferRecord(None, 1 << 20, 4))),
     "1048576 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "words"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_each_thing_that_no_graph_of_ours_has_is_refused(
    breaks: Callable[[ModelRecord], ModelRecord], words: str, tmp_path: Path
) -> None:
    model = model_of(packed(small_graph()), tmp_path)
    judge_bytes(pack(model), tmp_path)
    with pytest.raises(GraphError) as caught:
        judge_bytes(pack(breaks(model)), tmp_path)
    assert words in str(caught.value)


def build(make: Callable[[Graph, Value], Value]) -> bytes:
    graph = Graph()
    graph.output("y", make(graph, graph.input("x", (2, 8), DType.INT32)))
    return packed(graph)


@pytest.mark.parametrize(
    ("divisor", "passes"), [([3], True), ([1, 2, 3, 4, 5, 6, 7, 8], True), ([0], False), ([-1], False), ([2, 0], False)]
)
def test_integers_are_divided_only_by_what_is_known_to_be_positive(
    divisor: list[int], passes: bool, tmp_path: Path
) -> None:
    from toolkit.tflite.ops import floor_div, take

    def divide(graph: Graph, x: Value) -> Value:
        return floor_div(take(x, 1, 0, len(divisor)) if len(divisor) not in (1, 8) else x, graph.ints(divisor))

    if passes:
        judge_bytes(build(divide), tmp_path)
    else:
        with pytest.raises(GraphError, match="divisor"):
            judge_bytes(build(divide), tmp_path)


def test_an_axis_that_a_value_does_not_have_is_refused(tmp_path: Path) -> None:
    model = model_of(build(lambda graph, x: gather(x, graph.ints([1, 0]), 0)), tmp_path)
    for axis in (2, -1, 2**31 - 1):
        with pytest.raises(GraphError, match="axis"):
            judge_bytes(pack(operator(model, 0, fields=(("axis", axis),))), tmp_path)


def test_an_operator_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    model = model_of(build(lambda graph, x: reshape(x, (8, 2))), tmp_path)
    (graph,) = model.subgraphs
    (op,) = graph.operators
    broken = constant(tensor(model, op.outputs[0], shape=(2, 8)), [8, 2], [2, 8])
    with pytest.raises(GraphError, match="changes nothing"):
        judge_bytes(pack(broken), tmp_path)


def test_codes_of_a_weight_without_scales_are_refused(tmp_path: Path) -> None:
    """LiteRT ended by a signal for such a file."""
    graph = Graph()
    x = graph.input("x", (1, 64))
    graph.output("y", fully_connected(x, graph.constant(np.zeros((64, 64), np.float32))))
    model = model_of(packed(graph), tmp_path)
    place = next(n for n, item in enumerate(model.subgraphs[0].tensors) if item.shape == (64, 64))
    buffers = tuple(BufferRecord(b.data[:4096]) if b.data and len(b.data) > 4096 else b for b in model.buffers)
    with pytest.raises(GraphError, match="INT8"):
        judge_bytes(pack(replace(tensor(model, place, type="INT8"), buffers=buffers)), tmp_path)


def test_values_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (8,))
    wide = pad(x, [(0, 1 << 28)])
    graph.output("y", slice_(add(wide, wide), [0], [8]))
    with pytest.raises(GraphError, match="bytes of values"):
        judge_bytes(packed(graph), tmp_path)


# --- convolutions ----------------------------------------------------------------------------------------------------


def convolution(make: Callable[[Graph, Value], Value], *, size: int = 4) -> bytes:
    """A convolution of an image [1, size, size, 2] with a kernel [4, h, w, 2]."""
    graph = Graph()
    x = graph.input("x", (1, size, size, 2))
    graph.output("y", conv_2d(x, make(graph, x)))
    return packed(graph)


def test_a_kernel_is_stored_in_the_file(tmp_path: Path) -> None:
    """LiteRT ended by a signal for a computed one of bools, and copies the input 9 times for one of 3 by 3."""
    judge_bytes(convolution(lambda graph, _: graph.constant(np.ones((4, 3, 3, 2), np.float32))), tmp_path)
    computed = convolution(lambda graph, _: graph.input("w", (4, 3, 3, 2)))
    bools = pack(tensor(model_of(computed, tmp_path), 1, type="BOOL"))
    for data, words in ((computed, r"a computed FLOAT32\[4, 3, 3, 2\], wanted a weight"), (bools, "a computed BOOL")):
        with pytest.raises(GraphError, match=words):
            judge_bytes(data, tmp_path)


@pytest.mark.parametrize("scheme", [Scheme("f32"), Scheme("f16"), Scheme("int8")], ids=lambda scheme: scheme.dtype)
def test_a_kernel_of_each_type_that_we_write_passes(scheme: Scheme) -> None:
    graph = Graph()
    x = graph.input("x", (1, 4, 4, 2))
    graph.output("y", conv_2d(x, graph.weight(Weight("w", (4, 3, 3, 2), (WeightPart("w"),)))))
    layout = layout_tflite([Signature("run", graph)], {"w": scheme})
    judge(Header(layout.header, layout.size_bytes))


def test_a_kernel_that_would_fill_the_memory_with_addresses_is_refused(tmp_path: Path) -> None:
    data = convolution(lambda graph, _: graph.constant(np.zeros((1, 64, 64, 2), np.float32)), size=256)
    with pytest.raises(GraphError, match=r"CONV_2D: found 2,147,\d+,\d+ bytes of values"):
        judge_bytes(data, tmp_path)


def test_a_matrix_in_codes_is_stored_in_the_file(tmp_path: Path) -> None:
    rounded = Quantization(np.array([0.1], np.float32))
    tensors = (
        TensorRecord("x", (1, 64), "FLOAT32", 0),
        TensorRecord("w", (64, 64), "FLOAT32", 0),
        TensorRecord("codes", (64, 64), "INT8", 0, rounded),
        TensorRecord("y", (1, 64), "FLOAT32", 0),
    )
    fields = (("keepNumDims", True), ("asymmetricQuantizeInputs", True))
    operators = (
        OperatorRecord("QUANTIZE", 2, (1,), (2,), "QuantizeOptions"),
        OperatorRecord("FULLY_CONNECTED", 9, (0, 2), (3,), "FullyConnectedOptions", fields),
    )
    graph = SubgraphRecord("run", tensors, operators, {"x": 0, "w": 1}, {"y": 3})
    with pytest.raises(GraphError, match=r"input 1: found INT8\[64, 64\]"):
        judge_bytes(pack(ModelRecord((graph,), (BufferRecord(),), ("run",))), tmp_path)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table_bytes", [4, 23], ids=["all outside", "the last byte outside"])
def test_options_that_lie_outside_their_table_do_not_hide_behind_equal_ones(table_bytes: int, tmp_path: Path) -> None:
    """The judge took operators with equal tables for equal, and LiteRT reads what lies behind a table."""
    graph = Graph()
    x = graph.input("x", (1, 8, 8, 4))
    graph.output("a", average_pool_2d(x, 2))
    graph.output("b", average_pool_2d(abs_(x), 2))
    data = bytearray(packed(graph))
    operators = fb.Model.GetRootAs(data, 0).Subgraphs(0)
    pools = [operators.Operators(n) for n in range(operators.OperatorsLength())]
    pools = [op for op in pools if op.BuiltinOptionsType() == fb.BuiltinOptions.Pool2DOptions]
    places = [op._tab.Pos + op._tab.Offset(12) for op in pools]  # of their options
    data += bytes(-len(data) % 8)
    vtable = len(data)
    # padding, stride_w, stride_h, filter_w and filter_h, the last of which ends at 24
    data += struct.pack("<HH5H", 14, table_bytes, 7, 8, 12, 16, 20)
    data += bytes(-len(data) % 8)
    for place, filter_height in zip(places, (2, 2 + (9 << 24)), strict=True):
        table = len(data)
        data += struct.pack("<i3xb4i", table - vtable, 1, 2, 2, 2, filter_height)
        struct.pack_into("<I", data, place, table - place)
    with pytest.raises(GraphError, match="outside its table" if table_bytes == 4 else "options|wants NHWC"):
        judge_bytes(bytes(data), tmp_path)


@pytest.mark.full
def test_tables_that_are_used_over_and_over_are_refused(tmp_path: Path) -> None:
    model = model_of(packed(small_graph()), tmp_path)
    (graph,) = model.subgraphs
    op = OperatorRecord("ADD", 1, (0, 1), (2,), "AddOptions")
    many = [replace(op, outputs=(len(graph.tensors) + n,)) for n in range(30_000)]
    tensors = [TensorRecord("", (2, 8), "FLOAT32", 0) for _ in many]
    wide = replace(graph, tensors=(*graph.tensors, *tensors), operators=(*graph.operators, *many))
    judge_bytes(pack(replace(model, subgraphs=(wide,))), tmp_path)  # many equal ones are few different ones


def test_a_file_is_judged_once_and_again_when_anything_changes(random_bundle: Path, tmp_path: Path) -> None:
    bundle, memory = copy_of(random_bundle, tmp_path), tmp_path / "memory"
    wanted = bundle_signatures(read_manifest(bundle))[EMBEDDER]
    for _ in range(2):
        require_judged(bundle / EMBEDDER, wanted, memory=memory)
        assert len(list(memory.iterdir())) == 1
    data = bytearray((bundle / EMBEDDER).read_bytes())
    data[8:40] = bytes(32)
    (bundle / EMBEDDER).write_bytes(data)
    with pytest.raises(BundleError, match="run gemma-edge check"):
        require_judged(bundle / EMBEDDER, wanted, memory=memory)
    other = bundle_signatures(read_manifest(bundle))[TEXT_DECODER]
    shutil.copyfile(random_bundle / EMBEDDER, bundle / EMBEDDER)
    with pytest.raises(BundleError, match="signature"):
        require_judged(bundle / EMBEDDER, other, memory=memory)


def test_without_a_place_to_remember_a_file_is_judged_each_time(random_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    wanted = bundle_signatures(read_manifest(random_bundle))[EMBEDDER]
    require_judged(random_bundle / EMBEDDER, wanted, memory=tmp_path / "file" / "judged")


def test_a_bundle_is_judged_before_it_goes_to_a_device(random_bundle: Path, tmp_path: Path) -> None:
    from device_harness.bench.placement import open_model

    bundle = copy_of(random_bundle, tmp_path)
    open_model(bundle)
    data = Attack(bundle, EMBEDDER).mutant(3)
    assert data is not None
    (bundle / EMBEDDER).write_bytes(data)
    with pytest.raises(BundleError):
        require_judged_bundle(bundle, read_manifest(bundle))
    with pytest.raises(BundleError):
        Bundle(bundle).model_file(EMBEDDER)


# --- mutants ---------------------------------------------------------------------------------------------------------

SAMPLES = REPOSITORY / "examples" / "tiny_gemma3n" / "samples"
FILES = {
    "text_decoder": ("random_bundle", TEXT_DECODER, ()),
    "embedder": ("random_bundle", EMBEDDER, ()),
    "vision_encoder": ("multimodal_bundle", VISION_ENCODER, ("--image", str(next(SAMPLES.glob("*.png"))))),
    "vision_adapter": ("multimodal_bundle", VISION_ADAPTER, ("--image", str(next(SAMPLES.glob("*.png"))))),
    "audio_encoder": ("multimodal_bundle", AUDIO_ENCODER, ("--audio", str(next(SAMPLES.glob("*.wav"))))),
    "audio_adapter": ("multimodal_bundle", AUDIO_ADAPTER, ("--audio", str(next(SAMPLES.glob("*.wav"))))),
}


def lost(attack: Attack, seeds: range, *, every: int) -> tuple[list[str], int]:
    """What went wrong with mutants of these numbers, and how many passed the judge.

    Each is judged in a forked child. Those that pass are run by the command, in another; of the others, one of `every`.
    """
    found, passed = [], 0
    for seed in seeds:
        data = attack.mutant(seed)
        if data is None:
            continue
        verdict = attack.judge(data)
        outcomes, sound = [verdict], verdict.code == 0
        passed += sound
        if sound or seed % every == 0:
            outcomes.append(attack.run(data))
        found += [f"mutant {seed}: {outcome.lost}" for outcome in outcomes if outcome.lost is not None]
    return found, passed


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("text_decoder", marks=pytest.mark.full), "vision_adapter"])
def test_no_mutant_ends_the_process(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle, file, arguments = FILES[name]
    attack = Attack(copy_of(request.getfixturevalue(bundle), tmp_path), file, arguments)
    assert lost(attack, range(40), every=20)[0] == []


@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
def test_no_mutant_of_ten_thousand_ends_the_process(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle, file, arguments = FILES[name]
    attack = Attack(copy_of(request.getfixturevalue(bundle), tmp_path), file, arguments)
    assert lost(attack, range(1000, 2700), every=34)[0] == []


OTHERS = sorted(Path(os.environ.get("GEMMA_EDGE_OTHER_TFLITES", os.devnull)).glob("*.tflite"))
"""Files of other programs, such as those in MediaPipe's wheel; not part of this repository."""


@pytest.mark.full
@pytest.mark.skipif(not OTHERS, reason="GEMMA_EDGE_OTHER_TFLITES names no folder with .tflite files")
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.stem))
def test_other_peoples_files_and_their_mutants_are_refused_or_verified(
    path: Path, tmp_path: Path, random_bundle: Path
) -> None:
    """As the embedder of a bundle, they are refused, by the command too; their form is verified, as for an engine."""
    attack, data, found = Attack(copy_of(random_bundle, tmp_path), EMBEDDER), path.read_bytes(), []
    mutant_file = tmp_path / "mutant.tflite"
    for seed in range(200):
        mutant = mutate_ends(data, random.Random(seed)) if seed else data
        mutant_file.write_bytes(mutant)
        outcomes = [attack.judge(mutant), in_child(lambda: int(form_fault(mutant_file) is not None))]
        assert outcomes[0].code == 1, "none of our graphs"
        assert seed or outcomes[1].code == 0, "a whole file"
        if seed % 20 == 0:
            outcomes.append(attack.run(mutant))
        found += [f"mutant {seed}: {outcome.lost}" for outcome in outcomes if outcome.lost is not None]
    assert found == []


def mutate_ends(data: bytes, choice: random.Random) -> bytes:
    """Change a file's beginning or end, where its tables are."""
    size = min(len(data), 1 << 15)
    if choice.random() < 0.5:
        return mutate_bytes(data[:size], choice) + data[size:]
    return data[:-size] + mutate_bytes(data[-size:], choice)


def form_fault(path: Path) -> GraphError | None:
    try:
        require_wellformed(path)
    except GraphError as error:
        return error
    return None
