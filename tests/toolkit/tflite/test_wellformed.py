"""Graphs of any program pass if they are whole flatbuffers; what refers to nothing, or leaves the file, is refused."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as fb
from tflite_mutants import mutate_bytes

from toolkit.base.errors import BundleError, GraphError
from toolkit.litertlm import schema as container_schema
from toolkit.litertlm import tables
from toolkit.litertlm.container import Section, write_container
from toolkit.litertlm.tokenizer_section import HF_TOKENIZER
from toolkit.litertlm.wellformed import require_wellformed_sections
from toolkit.tflite.graph import Graph, Signature
from toolkit.tflite.judge import judge, read_header
from toolkit.tflite.ops import add, pad, reshape
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.records import BufferRecord, ModelRecord, OperatorRecord
from toolkit.tflite.schema import FILE_IDENTIFIER
from toolkit.tflite.schema_pack import pack
from toolkit.tflite.wellformed import require_wellformed
from toolkit.tflite.writer import layout_tflite


@pytest.fixture
def model(tmp_path: Path) -> ModelRecord:
    """reshape(pad(x + 1)), of which nothing but the operators matters."""
    graph = Graph()
    x = graph.input("x", (2, 8))
    graph.output("y", reshape(pad(add(x, graph.scalar(1.0)), [(0, 0), (1, 1)]), (20,)))
    path = tmp_path / "model.tflite"
    path.write_bytes(layout_tflite([Signature("run", graph)], {}).header)
    return read_tflite(path).model


def verify(data: bytes, folder: Path) -> None:
    path = folder / "verified.tflite"
    path.write_bytes(data)
    require_wellformed(path)


def operator(model: ModelRecord, **changes: object) -> ModelRecord:
    (graph,) = model.subgraphs
    first = replace(graph.operators[0], **changes)  # type: ignore[arg-type]
    return replace(model, subgraphs=(replace(graph, operators=(first, *graph.operators[1:])),))


def tensor(model: ModelRecord, **changes: object) -> ModelRecord:
    (graph,) = model.subgraphs
    first = replace(graph.tensors[0], **changes)  # type: ignore[arg-type]
    return replace(model, subgraphs=(replace(graph, tensors=(first, *graph.tensors[1:])),))


def ends(model: ModelRecord, **changes: object) -> ModelRecord:
    return replace(model, subgraphs=(replace(model.subgraphs[0], **changes),))  # type: ignore[arg-type]


FOREIGN: list[Callable[[ModelRecord], ModelRecord]] = [
    lambda m: operator(m, builtin="LSTM", options="LSTMOptions", fields=()),
    lambda m: operator(m, builtin="WHILE", options="WhileOptions", fields=(("condSubgraphIndex", 0),)),
    lambda m: operator(m, inputs=(0, -1, 1), version=99),
    lambda m: tensor(m, type="INT64", shape=(0, 3)),
    lambda m: tensor(m, type="STRING", shape=()),
]


@pytest.mark.parametrize("change", FOREIGN, ids=["lstm", "while", "optional", "empty", "string"])
def test_what_other_programs_make_passes_though_no_graph_of_ours_has_it(
    change: Callable[[ModelRecord], ModelRecord], model: ModelRecord, tmp_path: Path
) -> None:
    verify(pack(change(model)), tmp_path)
    with pytest.raises(GraphError):
        judge(read_header(tmp_path / "verified.tflite"))


BROKEN: list[tuple[str, Callable[[ModelRecord], ModelRecord], str]] = [
    ("an input of an operator", lambda m: operator(m, inputs=(0, 99)), "tensor 99"),
    ("a number below that of none", lambda m: operator(m, inputs=(0, -2)), "tensor -2"),
    ("an output of an operator", lambda m: operator(m, outputs=(2**30,)), "tensor 1073741824"),
    ("an input of the graph", lambda m: ends(m, inputs={"x": 77}), "tensor 77"),
    ("an output of the graph", lambda m: ends(m, outputs={"y": 77}), "tensor 77"),
    ("a buffer", lambda m: tensor(m, buffer=99), "number 99"),
    ("a dimension", lambda m: tensor(m, shape=(2, -5)), "a dimension of -5"),
    ("a graph", lambda m: operator(m, builtin="WHILE", options="WhileOptions", fields=(("bodySubgraphIndex", 9),)),
     "number 9"),
    ("a graph below nothing", lambda m: operator(m, builtin="IF", options="IfOptions",
                                                 fields=(("thenSubgraphIndex", -1),)), "number 4294967295"),
    ("weights", lambda m: replace(m, buffers=(*m.buffers, BufferRecord(None, 1 << 20, 4))), "past the end of the file"),
    ("weights far away", lambda m: replace(m, buffers=(*m.buffers, BufferRecord(None, 64, 2**63))), "past the end"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_not_there_is_named(
    change: Callable[[ModelRecord], ModelRecord], words: str, model: ModelRecord, tmp_path: Path
) -> None:
    with pytest.raises(GraphError, match=words):
        verify(pack(change(model)), tmp_path)


def blocks(**fields: int) -> Callable[[Any], object]:
    """The first tensor, of 16 elements, in blocks of 8, whose scales are the second, of 1 element."""

    def change(graph: Any) -> None:
        details = fb.BlockwiseQuantizationT(**{"scales": 1, "zeroPoints": -1, "blockSize": 16, **fields})
        kind = fb.QuantizationDetails.BlockwiseQuantization
        graph.tensors[0].quantization = fb.QuantizationParametersT(detailsType=kind, details=details)

    return change


def custom(graph: Any) -> None:
    details = fb.CustomQuantizationT(custom=[1, 2, 3])
    kind = fb.QuantizationDetails.CustomQuantization
    graph.tensors[0].quantization = fb.QuantizationParametersT(detailsType=kind, details=details)


def sparse(graph: Any) -> None:
    graph.tensors[0].sparsity = fb.SparsityParametersT(traversalOrder=[0, 1])


def changed(model: ModelRecord, change: Callable[[Any], object]) -> bytearray:
    theirs = fb.ModelT.InitFromPackedBuf(pack(model), 0)
    change(theirs.subgraphs[0])
    builder = flatbuffers.Builder(1 << 10)
    builder.Finish(theirs.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytearray(builder.Output())


@pytest.mark.parametrize("change", [blocks(), blocks(zeroPoints=1), custom], ids=["blocks", "zero points", "custom"])
def test_quantisation_of_other_kinds_than_ours_passes(
    change: Callable[[Any], object], model: ModelRecord, tmp_path: Path
) -> None:
    verify(bytes(changed(model, change)), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (blocks(scales=99), "tensor 99, which does not exist"),
        (blocks(scales=-1), "fewer scales than blocks"),
        (blocks(scales=-2), "tensor -2"),
        (blocks(zeroPoints=99), "tensor 99"),
        (blocks(blockSize=0), "fewer scales than blocks"),
        (blocks(blockSize=8), "fewer scales than blocks"),
        (sparse, "sparse elements"),
    ],
)
def test_what_quantisation_and_sparsity_refer_to_is_verified(
    change: Callable[[Any], object], words: str, model: ModelRecord, tmp_path: Path
) -> None:
    """LiteRT looks such a tensor up without a check, and so it does everything that says which elements are stored."""
    with pytest.raises(GraphError, match=words):
        verify(bytes(changed(model, change)), tmp_path)


def test_the_bytes_of_a_quantisation_of_ones_own_lie_within_the_file(model: ModelRecord, tmp_path: Path) -> None:
    data = changed(model, custom)
    table = fb.Model.GetRootAs(data, 0).Subgraphs(0).Tensors(0).Quantization().Details()
    at = table.Pos + table.Offset(4)
    struct.pack_into("<I", data, at + struct.unpack_from("<I", data, at)[0], 1 << 30)
    with pytest.raises(GraphError, match="a vector that ends outside"):
        verify(bytes(data), tmp_path)


def test_a_field_of_any_table_begins_within_it(model: ModelRecord, tmp_path: Path) -> None:
    data = bytearray(pack(model))
    table = fb.Model.GetRootAs(data, 0).Subgraphs(0)._tab
    vtable = table.Pos - struct.unpack_from("<i", data, table.Pos)[0]
    for field in (2, 60_000):
        struct.pack_into("<H", data, vtable + 4 + 2 * 4, field)  # the name of the graph
        with pytest.raises(GraphError, match="a field outside its table"):
            verify(bytes(data), tmp_path)


def test_tables_that_are_used_over_and_over_take_no_endless_time(model: ModelRecord, tmp_path: Path) -> None:
    many = [OperatorRecord("ADD", 1, (0, 1), (2,), "AddOptions")] * 20_000
    verify(pack(ends(model, operators=tuple(many))), tmp_path)


@pytest.mark.slow
def test_mutants_are_refused_or_pass_without_any_other_error(model: ModelRecord, tmp_path: Path) -> None:
    data, refused = pack(model), 0
    for seed in range(300):
        mutant = mutate_bytes(data, random.Random(seed))
        try:
            verify(mutant[: random.Random(seed).choice((len(data), len(data), seed))], tmp_path)
        except GraphError:
            refused += 1
    assert 100 < refused < 300


def test_a_broken_graph_of_a_litertlm_is_named_with_its_section(model: ModelRecord, tmp_path: Path) -> None:
    for number, data in enumerate((pack(model), pack(operator(model, inputs=(0, 99))))):
        path = tmp_path / f"{number}.litertlm"
        label = container_schema.EMBEDDER
        write_container(path, [Section(tables.TFLITE_MODEL, (data,), label)], {})
    require_wellformed_sections(tmp_path / "0.litertlm")
    with pytest.raises(BundleError, match=r"1\.litertlm, section tf_lite_embedder operator: tensor 99"):
        require_wellformed_sections(tmp_path / "1.litertlm")


def test_a_tokenizer_that_grows_is_refused_before_an_engine_unpacks_it(tmp_path: Path) -> None:
    def write(text: bytes, size: int) -> Path:
        packed = size.to_bytes(8, "little") + zlib.compress(text, 1)
        write_container(tmp_path / "x.litertlm", [Section(HF_TOKENIZER, (packed,))], {})
        return tmp_path / "x.litertlm"

    good, many = b'{"model": {"vocab": {"a": 0}}}', b"[" + b"[]," * 3_000_000 + b"0]"
    require_wellformed_sections(write(good, len(good)))
    with pytest.raises(BundleError, match=r"HF_Tokenizer_Zlib length: found 29 bytes so far"):
        require_wellformed_sections(write(good, 28))
    with pytest.raises(BundleError, match=r"HF_Tokenizer_Zlib JSON: found about 6,000,001 values"):
        require_wellformed_sections(write(many, len(many)))
