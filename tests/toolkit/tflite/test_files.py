"""Files on disk: what is written is what LiteRT and the reader read back, to the byte."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as fb
from ai_edge_litert.interpreter import Interpreter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toolkit.base.errors import GraphError
from toolkit.base.layout import MATRIX_ALIGNMENT, PAGE_BYTES
from toolkit.quant.scheme import Scheme, payload_bytes
from toolkit.quant.uniform import dequantize_rows, quantize_rows
from toolkit.tflite import ops, schema
from toolkit.tflite.graph import DType, Graph, Signature, Weight, WeightPart
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.rewrite import select_signatures
from toolkit.tflite.schema_pack import pack
from toolkit.tflite.schema_unpack import unpack
from toolkit.tflite.writer import layout_tflite, write_tflite

F32, INT8 = Scheme("f32"), Scheme("int8")
SCHEMES = [F32, INT8, Scheme("int4"), Scheme("int4", 32), Scheme("int4", 64), Scheme("int4", 128)]


class Tensors:
    """A source of named random tensors."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        tensor = self.tensors[name]
        tensor = tensor if rows is None else tensor[slice(*rows)]
        return tensor if columns is None else tensor[..., slice(*columns)]


def linear(tokens: int) -> Graph:
    graph = Graph()
    x = graph.input("x", (1, tokens, 128))
    graph.output("y", ops.fully_connected(x, graph.weight(Weight.whole("w", (64, 128)))))
    return graph


def lookup(tokens: int) -> Graph:
    graph = Graph()
    table = graph.weight(Weight.whole("t", (50, 128)))
    graph.output("y", ops.embedding_lookup(graph.input("ids", (tokens,), DType.INT32), table))
    return graph


def write(path: Path, signatures: list[Signature], scheme: Scheme = F32, *, workers: int = 2) -> Path:
    layout = layout_tflite(signatures, {"w": scheme, "t": scheme})
    write_tflite(path, layout, Tensors(w=(64, 128), t=(50, 128)), workers=workers)
    assert path.stat().st_size == layout.size_bytes
    return path


def test_vectors_lie_together_before_the_matrices() -> None:
    graph = Graph()
    x = graph.input("x", (1, 1, 128))
    for n in range(3):
        x = ops.mul(x, graph.weight(Weight.whole(f"v{n}", (128,))))
        x = ops.fully_connected(x, graph.weight(Weight.whole(f"w{n}", (128, 128))))
    graph.output("y", x)
    schemes = {f"{kind}{n}": F32 if kind == "v" else Scheme("int4", 32) for kind in "vw" for n in range(3)}
    places = {p.weight.name: p for p in layout_tflite([Signature("one", graph)], schemes).placements}
    assert list(places) == ["v0", "w0", "v1", "w1", "v2", "w2"], "read in the order of use"
    offsets = [places[name].payload_offset for name in ("v0", "v1", "v2", "w0", "w1", "w2")]
    assert offsets == sorted(offsets)
    assert offsets[2] - offsets[0] == 2 * 128 * 4


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_litert_computes_with_weights_of_every_scheme(tmp_path: Path, scheme: Scheme) -> None:
    path = write(tmp_path / "m.tflite", [Signature("one", linear(1)), Signature("three", linear(3))], scheme)
    x = np.random.default_rng(1).standard_normal((1, 3, 128)).astype(np.float32)
    want = x @ Tensors(w=(64, 128)).tensors["w"].T
    interpreter = Interpreter(str(path))
    error = np.abs(interpreter.get_signature_runner("three")(x=x)["y"] - want).max() / np.abs(want).max()
    assert error < {"f32": 1e-5, "int8": 0.02, "int4": 0.2}[scheme.dtype]
    one = interpreter.get_signature_runner("one")(x=x[:, :1])["y"]
    np.testing.assert_allclose(one, interpreter.get_signature_runner("three")(x=x)["y"][:, :1], atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_header_is_read_and_packed_to_the_same_bytes(tmp_path: Path, scheme: Scheme) -> None:
    data = write(tmp_path / "m", [Signature("one", linear(1)), Signature("embed", lookup(3))], scheme).read_bytes()
    packed = pack(unpack(memoryview(data)))
    assert data[: len(packed)] == packed


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_table_looks_up_what_its_codes_and_scales_say(tmp_path: Path, scheme: Scheme) -> None:
    path = write(tmp_path / "t.tflite", [Signature("embed", lookup(3))], scheme)
    ids = np.array([0, 7, 49], np.int32)
    got = Interpreter(str(path)).get_signature_runner("embed")(ids=ids)["y"]
    want = Tensors(w=(64, 128), t=(50, 128)).tensors["t"][ids]
    if scheme.dtype != "f32":
        want = dequantize_rows(quantize_rows(want, scheme))
    np.testing.assert_array_equal(got, want)


def test_offsets_stand_on_their_borders(tmp_path: Path) -> None:
    signatures = [Signature("linear", linear(1)), Signature("embed", lookup(1))]
    layout = layout_tflite(signatures, {"w": Scheme("int4", 32), "t": INT8})
    offsets = {p.weight.name: p for p in layout.placements}
    assert offsets["w"].payload_offset % MATRIX_ALIGNMENT == 0
    assert offsets["w"].scales_offset == offsets["w"].payload_offset + payload_bytes((64, 128), Scheme("int4", 32))
    assert offsets["t"].payload_offset % PAGE_BYTES == 0


def test_the_bytes_depend_on_nothing_but_the_input(tmp_path: Path) -> None:
    signatures = [Signature("linear", linear(2)), Signature("embed", lookup(2))]
    first = write(tmp_path / "a", signatures, INT8, workers=1).read_bytes()
    assert first == write(tmp_path / "b", signatures, INT8, workers=3).read_bytes()
    again = [Signature("linear", linear(2)), Signature("embed", lookup(2))]
    assert first == write(tmp_path / "c", again, INT8).read_bytes()


def add(_: int) -> Graph:
    graph = Graph()
    graph.output("y", ops.add(graph.input("x", (1, 4)), graph.scalar(1.0)))
    return graph


@pytest.mark.parametrize(
    ("make", "scheme", "golden"),
    [
        (add, F32, "7080e6bf7aa5a9c7fe57d48345f2d78d011569ae0cb44947f40040b93f68cc2e"),
        (linear, Scheme("int8", search="absmax"), "86825780f6ba52e86ad9c128366e917d700563f7c091dfb2455b97ca1291dab0"),
        (linear, Scheme("int4", 32, "absmax"), "feb42906e77120a32629ad28c2ff3df1d69acd6b6edc40b6f8bf744f1a02f098"),
        (lookup, Scheme("int4", search="absmax"), "7715c49b4a23a0b7749518bfcd6f849b0cfc282433a68c8ccab6f0d589dc03c8"),
    ],
)
def test_a_small_file_has_these_bytes(
    tmp_path: Path, make: Callable[[int], Graph], scheme: Scheme, golden: str
) -> None:
    """Golden: a change here is a change of the format, or of the schema's packer, and belongs in the CHANGELOG."""
    data = write(tmp_path / "golden.tflite", [Signature(make.__name__, make(1))], scheme).read_bytes()
    assert data[4:8] == b"TFL3"
    assert hashlib.sha256(data).hexdigest() == golden


def test_nodes_without_an_output_are_left_out(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 128))
    ops.fully_connected(x, graph.weight(Weight.whole("unused", (8, 128))))
    graph.output("y", ops.abs_(x))
    path = tmp_path / "m.tflite"
    write_tflite(path, layout_tflite([Signature("s", graph)], {}), Tensors())
    assert [op.builtin for op in read_tflite(path).graph("s").operators] == ["ABS"]


def test_parts_are_joined_in_order(tmp_path: Path) -> None:
    graph = Graph()
    weight = Weight("joined", (24, 8), (WeightPart("a"), WeightPart("b", rows=(8, 16)), WeightPart("a")))
    graph.output("y", ops.fully_connected(graph.input("x", (8, 8)), graph.weight(weight)))
    source = Tensors(a=(8, 8), b=(16, 8))
    path = tmp_path / "m.tflite"
    write_tflite(path, layout_tflite([Signature("s", graph)], {"joined": F32}), source)
    got = Interpreter(str(path)).get_signature_runner("s")(x=np.eye(8, dtype=np.float32))["y"]
    a, b = source.tensors["a"], source.tensors["b"]
    np.testing.assert_allclose(got.T, np.concatenate([a, b[8:], a]), atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_reader_gives_back_what_was_packed(tmp_path: Path, scheme: Scheme) -> None:
    path = write(tmp_path / "m.tflite", [Signature("one", linear(1)), Signature("embed", lookup(2))], scheme)
    content = read_tflite(path)
    assert content.model.signatures == ("one", "embed")
    graph = content.graph("one")
    assert {n: graph.tensors[i].shape for n, i in graph.inputs.items()} == {"x": (1, 1, 128)}
    assert {n: graph.tensors[i].shape for n, i in graph.outputs.items()} == {"y": (1, 1, 64)}
    weight = next(t for t in graph.tensors if t.name == "w")
    assert weight.type == {"f32": "FLOAT32", "int8": "INT8", "int4": "INT4"}[scheme.dtype]
    if scheme.block_size is not None:
        assert weight.quantization is not None and weight.quantization.block_size == scheme.block_size


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_selected_signatures_compute_the_same_without_the_rest(tmp_path: Path, scheme: Scheme) -> None:
    source = write(tmp_path / "m", [Signature("one", linear(1)), Signature("embed", lookup(2))], scheme)
    select_signatures(source, tmp_path / "n", {"decode": "one"})
    x = np.random.default_rng(1).standard_normal((1, 1, 128)).astype(np.float32)
    want = Interpreter(str(source)).get_signature_runner("one")(x=x)["y"]
    np.testing.assert_array_equal(Interpreter(str(tmp_path / "n")).get_signature_runner("decode")(x=x)["y"], want)
    assert read_tflite(tmp_path / "n").model.signatures == ("decode",)
    assert (tmp_path / "n").stat().st_size < source.stat().st_size


def test_a_first_signature_that_is_selected_gives_the_file_that_it_would_have_had_alone(tmp_path: Path) -> None:
    def graph(tokens: int) -> Graph:
        made = Graph()
        x = made.input("x", (1, tokens, 128))
        for n in range(2):
            x = ops.fully_connected(x, made.weight(Weight.whole(f"w{n}", (128, 128))))
            x = ops.mul(x, made.weight(Weight.whole(f"v{n}", (128,))))
        made.output("y", ops.add(x, made.constant(np.full((1, tokens, 1), tokens, np.float32))))
        return made

    def written(name: str, tokens: Sequence[int]) -> Path:
        schemes = {"w0": Scheme("int4", 32), "w1": Scheme("int8"), "v0": F32, "v1": F32}
        layout = layout_tflite([Signature(f"of_{n}", graph(n)) for n in tokens], schemes)
        write_tflite(tmp_path / name, layout, Tensors(w0=(128, 128), w1=(128, 128), v0=(128,), v1=(128,)))
        return tmp_path / name

    alone, both = written("alone", [1]), written("both", [1, 3])
    select_signatures(both, tmp_path / "selected", {"of_1": "of_1"}, without_tables=True)
    assert (tmp_path / "selected").read_bytes() == alone.read_bytes() != both.read_bytes()


def test_what_is_selected_stays_on_borders_as_wide_as_before(tmp_path: Path) -> None:
    signatures = [Signature("linear", linear(1)), Signature("embed", lookup(1))]
    source = write(tmp_path / "m", signatures, Scheme("int4", 32))
    select_signatures(source, tmp_path / "n", {"a": "linear", "b": "embed"})
    content = read_tflite(tmp_path / "n")
    places = {tensor.name: content.model.buffers[tensor.buffer] for tensor in content.graph("b").tensors}
    assert places["t"].offset_bytes % PAGE_BYTES == 0
    assert all(buffer.offset_bytes % MATRIX_ALIGNMENT == 0 for buffer in content.model.buffers)


def test_selecting_a_signature_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    source = write(tmp_path / "m", [Signature("one", linear(1))])
    with pytest.raises(GraphError, match="one"):
        select_signatures(source, tmp_path / "n", {"decode": "two"})


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m", [Signature("one", linear(1))])
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(GraphError, match="buffer"):
        read_tflite(path)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 64, struct.pack("<I", 1 << 31) + b"TFL3" + b"\xff" * 64])
def test_what_is_no_tflite_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(data)
    with pytest.raises(GraphError):
        read_tflite(path)


def test_a_number_without_a_name_in_the_schema_is_refused(tmp_path: Path) -> None:
    """Strangers' files of later releases have types and builtins that this one does not know."""
    for record in ("builtinCode", "type"):
        graph = fb.ModelT.InitFromPackedBuf(write(tmp_path / "m", [Signature("one", linear(1))]).read_bytes(), 0)
        place = graph.operatorCodes[0] if record == "builtinCode" else graph.subgraphs[0].tensors[0]
        setattr(place, record, 99 if record == "type" else 9999)
        repack(tmp_path / "m", graph)
        with pytest.raises(GraphError, match="the number 99"):
            read_tflite(tmp_path / "m")


@pytest.mark.parametrize("part", ["buffers", "subgraphs", "signatureDefs"])
def test_a_file_without_one_of_its_parts_is_refused(tmp_path: Path, part: str) -> None:
    model = fb.ModelT.InitFromPackedBuf(write(tmp_path / "m", [Signature("one", linear(1))]).read_bytes(), 0)
    setattr(model, part, None)
    repack(tmp_path / "m", model)
    with pytest.raises(GraphError):
        read_tflite(tmp_path / "m")


def test_an_input_that_no_tensor_is_is_refused(tmp_path: Path) -> None:
    graph = fb.ModelT.InitFromPackedBuf(write(tmp_path / "m", [Signature("one", linear(1))]).read_bytes(), 0)
    graph.subgraphs[0].inputs = [77]
    graph.signatureDefs[0].inputs[0].tensorIndex = 77
    repack(tmp_path / "m", graph)
    with pytest.raises(GraphError, match="input x: found tensor 77"):
        read_tflite(tmp_path / "m")


def test_blocks_that_do_not_divide_the_columns_are_refused(tmp_path: Path) -> None:
    """31 of 128 columns: as many whole blocks as there are scales, and some columns over."""
    path = write(tmp_path / "m", [Signature("one", linear(1))], Scheme("int4", 32))
    model = fb.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    weight = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == b"w")
    weight.quantization.details.blockSize = 31
    repack(path, model)
    with pytest.raises(GraphError, match="blocks of 31"):
        read_tflite(path)


def test_scales_of_a_number_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m", [Signature("one", linear(1))], INT8)
    graph = fb.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    weight = next(tensor for tensor in graph.subgraphs[0].tensors if tensor.name == b"w")
    weight.shape, weight.buffer = [], 0
    repack(path, graph)
    with pytest.raises(GraphError, match="scales for a tensor without axes"):
        read_tflite(path)


@pytest.mark.parametrize("what", ["tensors", "shapes", "data", "operators"])
def test_a_small_file_that_would_unpack_to_a_large_one_is_refused(tmp_path: Path, what: str) -> None:
    """One subgraph, tensor, shape or buffer that a thousand places point at, and that points at a thousand itself."""
    path = write(tmp_path / "m", [Signature("one", linear(1))])
    model = fb.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    if what == "data":
        model.buffers = [Once(model.buffers[0])] * 1000
        model.buffers[0].original.data = np.zeros(10_000, np.uint8)
    elif what == "shapes":
        graph.tensors = [Once(graph.tensors[0])] * 1000
        graph.tensors[0].original.shape = [1] * 10_000
    else:
        setattr(graph, what, [Once(getattr(graph, what)[0])] * 1000)
        model.subgraphs = [Once(graph)] * 1000
        model.signatureDefs = [copy.copy(model.signatureDefs[0]) for _ in range(1000)]
        for index, signature in enumerate(model.signatureDefs):
            signature.subgraphIndex = index
    path.write_bytes(b"")
    repack(path, model)
    assert path.stat().st_size < 200_000
    with pytest.raises(GraphError, match="referenced too often"):
        read_tflite(path)


class Once:
    """A table that is packed once however many places point at it."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self._place: int | None = None

    def Pack(self, builder: flatbuffers.Builder) -> int:
        if self._place is None:
            self._place = int(self.original.Pack(builder))
        return self._place


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="nowhere: no such file"):
        read_tflite(tmp_path / "nowhere")


def repack(path: Path, model: Any) -> None:
    """Write a changed header over a file's; room between header and weights may be lost, which the reader allows."""
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(model.Pack(builder), file_identifier=schema.FILE_IDENTIFIER)
    path.write_bytes(bytes(builder.Output()).ljust(path.stat().st_size, b"\0"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.binary(min_size=1, max_size=4))
def test_a_damaged_header_is_read_or_refused_but_never_crashes(tmp_path: Path, place: float, value: bytes) -> None:
    path = tmp_path / "m"
    if not path.exists():
        write(path, [Signature("one", linear(1)), Signature("embed", lookup(2))], INT8)
    data = bytearray(path.read_bytes())
    at = int(place * 3000)
    data[at : at + len(value)] = value
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    with contextlib.suppress(GraphError):
        read_tflite(damaged)
