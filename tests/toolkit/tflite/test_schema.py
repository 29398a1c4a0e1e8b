"""What a file says goes into records and back without a loss, or is refused by its name."""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as fb

from toolkit.base.errors import GraphError
from toolkit.tflite import schema
from toolkit.tflite.graph import OptionValue
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.records import BufferRecord, ModelRecord, OperatorRecord, Quantization, SubgraphRecord, TensorRecord
from toolkit.tflite.rewrite import select_signatures
from toolkit.tflite.schema_pack import pack
from toolkit.tflite.schema_unpack import unpack

TABLES = {
    name: union
    for union in (fb.BuiltinOptions, fb.BuiltinOptions2)
    for name in vars(union)
    if not name.startswith("_") and name != "NONE"
}
"""Every table of options in LiteRT's schema, and the union that it is of."""

BYTES = {"compositeAttributes", "customAttributes", "quantSpec"}  # lists of unsigned bytes, which records hold as bytes


def kinds(table: str) -> dict[str, str]:
    """Field to type, as the generated class says it in its comments."""
    source = inspect.getsource(getattr(fb, f"{table}T").__init__)
    return dict(re.findall(r"self\.(\w+) = \w+  # type: (.+)", source))


def random_fields(table: str) -> tuple[tuple[str, OptionValue], ...]:
    """A value other than the default in every field; small enough for a signed byte, exact in float32."""
    rng = np.random.default_rng(zlib.crc32(table.encode()))

    def value(name: str, kind: str) -> OptionValue:
        if name in BYTES:
            return rng.bytes(5)
        values: Mapping[str, Callable[[], OptionValue]] = {
            "int": lambda: int(rng.integers(2, 127)),
            "float": lambda: float(np.float32(rng.uniform(2, 3))),
            "bool": lambda: not getattr(getattr(fb, f"{table}T")(), name),
            "Optional[str]": lambda: f"tëxt {rng.integers(1000)}",
            "Optional[List[int]]": lambda: tuple(rng.integers(-100, 127, 3).tolist()),
            "Optional[List[float]]": lambda: tuple(rng.standard_normal(3, np.float32).tolist()),
            "Optional[List[bool]]": lambda: (True, False, True),
        }
        found = values[kind]()
        unsigned = name == "precisionConfig"
        return tuple(abs(int(n)) for n in found) if unsigned and isinstance(found, tuple) else found

    return tuple((name, value(name, kind)) for name, kind in kinds(table).items())


def model(*operators: OperatorRecord) -> ModelRecord:
    """One subgraph of these operators over two tensors."""
    tensors = TensorRecord("x", (2, 3), "FLOAT32", 0), TensorRecord("y", (2, 3), "FLOAT32", 0)
    graph = SubgraphRecord("main", tensors, operators, {"x": 0}, {"y": 1})
    return ModelRecord((graph,), (BufferRecord(),), ("main",))


def add(options: str | None = None, fields: tuple[tuple[str, OptionValue], ...] = ()) -> OperatorRecord:
    return OperatorRecord("ADD", 1, (0, 0), (1,), options, fields)


@pytest.mark.parametrize("table", TABLES)
def test_every_field_of_every_table_of_options_is_carried(table: str) -> None:
    operator = add(table, random_fields(table))
    packed = pack(model(operator))
    theirs = fb.ModelT.InitFromPackedBuf(packed, 0).subgraphs[0].operators[0]
    second = TABLES[table] is fb.BuiltinOptions2
    assert theirs.builtinOptions2Type if second else theirs.builtinOptionsType == getattr(TABLES[table], table)
    options = theirs.builtinOptions2 if second else theirs.builtinOptions
    assert {name: plain(value) for name, value in vars(options).items()} == dict(operator.fields)
    assert unpack(memoryview(packed)).subgraphs[0].operators == (operator,)


def plain(value: Any) -> OptionValue:
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.dtype == np.uint8 else tuple(value.tolist())
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_options_at_their_defaults_are_read_and_packed_to_the_same_bytes(table: str) -> None:
    packed = pack(model(add(table)))
    record = unpack(memoryview(packed))
    assert dict(record.subgraphs[0].operators[0].fields).keys() == {
        name for name, kind in kinds(table).items() if not kind.startswith("Optional")
    }
    assert pack(record) == packed


def test_an_empty_list_and_an_empty_text_differ_from_absent_ones() -> None:
    operator = add("StableHLOCompositeOptions", (("name", ""), ("compositeAttributes", b"")))
    read = unpack(memoryview(pack(model(operator)))).subgraphs[0].operators[0]
    assert dict(read.fields).items() >= {"name": "", "compositeAttributes": b""}.items()


def test_every_option_that_names_a_subgraph_is_known_as_a_call() -> None:
    named = {name for table in TABLES for name in kinds(table) if re.search(r"(?i)subgraph|computations", name)}
    assert {"thenSubgraphIndex", "decompositionSubgraphIndex", "branchSubgraphIndices", "subgraph"} <= named
    for name in named:
        assert add("CallOptions", ((name, 3),)).called() == (3,)
        assert add("CallOptions", ((name, (3, 4)),)).calling({3: 1, 4: 0}).called() == (1, 0)


def _two_tables(graph: Any) -> None:
    graph.operators[0].builtinOptions2Type = fb.BuiltinOptions2.DilateOptions
    graph.operators[0].builtinOptions2 = fb.DilateOptionsT()


def _custom_kind(graph: Any) -> None:
    graph.tensors[0].quantization = fb.QuantizationParametersT(
        detailsType=fb.QuantizationDetails.CustomQuantization, details=fb.CustomQuantizationT()
    )


BEYOND: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    "custom options": ("operator ADD: custom", lambda g: setattr(g.operators[0], "customOptions", [1])),
    "large custom options": ("operator ADD: custom", lambda g: setattr(g.operators[0], "largeCustomOptionsSize", 1)),
    "intermediates": ("operator ADD: intermediate", lambda g: setattr(g.operators[0], "intermediates", [1])),
    "changed inputs": ("inputs that it changes", lambda g: setattr(g.operators[0], "mutatingVariableInputs", [True])),
    "two tables": ("two tables of options", _two_tables),
    "a variable": ("tensor x: a variable", lambda g: setattr(g.tensors[0], "isVariable", True)),
    "sparsity": ("sparse elements", lambda g: setattr(g.tensors[0], "sparsity", fb.SparsityParametersT())),
    "a shape that changes": ("a shape that changes", lambda g: setattr(g.tensors[0], "shapeSignature", [-1, 3])),
    "variants": ("variants", lambda g: setattr(g.tensors[0], "variantTensors", [fb.VariantSubTypeT()])),
    "another file": ("another file", lambda g: setattr(g.tensors[0], "externalBuffer", 1)),
    "custom quantization": ("quantization: another kind", _custom_kind),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_no_record_holds_is_refused_by_its_name(what: str) -> None:
    message, change = BEYOND[what]
    theirs = fb.ModelT.InitFromPackedBuf(pack(model(add("AddOptions"))), 0)
    change(theirs.subgraphs[0])
    with pytest.raises(GraphError, match=message):
        unpack(memoryview(repacked(theirs)))


def _blocks(theirs: Any, **fields: object) -> None:
    theirs.subgraphs[0].tensors[0].quantization = fb.QuantizationParametersT(
        detailsType=fb.QuantizationDetails.BlockwiseQuantization,
        details=fb.BlockwiseQuantizationT(**{"scales": 1, "zeroPoints": -1, "blockSize": 3, **fields}),
    )
    theirs.subgraphs[0].tensors[1].shape = [2, 1]


def _range(theirs: Any) -> None:
    theirs.subgraphs[0].tensors[0].quantization = fb.QuantizationParametersT(min=[0.0], max=[1.0])


BESIDES: Mapping[str, Callable[[Any], object]] = {
    "a description": lambda m: setattr(m, "description", "MLIR Converted."),
    "metadata": lambda m: setattr(m, "metadata", [fb.MetadataT(name="min_runtime_version")]),
    "ranges of values": _range,
    "zero points of blocks": lambda m: _blocks(m, zeroPoints=1),
    "shapes of blocks": lambda m: _blocks(m, blockShape=[1, 3]),
}


@pytest.mark.parametrize("what", BESIDES)
def test_what_a_copy_would_lack_is_named_and_nothing_is_copied(what: str, tmp_path: Path) -> None:
    """Other programs' files are read all the same."""
    theirs = fb.ModelT.InitFromPackedBuf(pack(model(add("AddOptions"))), 0)
    BESIDES[what](theirs)
    assert unpack(memoryview(repacked(theirs))).besides == (what,)
    (tmp_path / "a").write_bytes(repacked(theirs))
    with pytest.raises(GraphError, match=f"a: {what}, which a copy would lack"):
        select_signatures(tmp_path / "a", tmp_path / "b", {"main": "main"})
    assert not (tmp_path / "b").exists()


def test_equal_scales_along_other_axes_stay_apart() -> None:
    scales = np.array([0.5, 0.25], np.float32)
    graph = model(add("AddOptions")).subgraphs[0]
    tensors = tuple(
        replace(tensor, shape=(2, 2), quantization=Quantization(scales.copy(), axis=axis))
        for axis, tensor in enumerate(graph.tensors)
    )
    packed = pack(replace(model(), subgraphs=(replace(graph, tensors=tensors),)))
    for data in (packed, pack(unpack(memoryview(packed)))):
        found = unpack(memoryview(data)).subgraphs[0].tensors
        assert [tensor.quantization.axis for tensor in found if tensor.quantization is not None] == [0, 1]


@pytest.mark.parametrize("builtin", ["CUSTOM", "ADD"])
def test_custom_operators_are_refused(builtin: str) -> None:
    theirs = fb.ModelT.InitFromPackedBuf(pack(model(replace(add(), builtin=builtin))), 0)
    theirs.operatorCodes[0].customCode = "mine"
    with pytest.raises(GraphError, match=f"operator {builtin}: a custom operator"):
        unpack(memoryview(repacked(theirs)))


def repacked(theirs: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 10)
    builder.Finish(theirs.Pack(builder), file_identifier=schema.FILE_IDENTIFIER)
    return bytes(builder.Output())


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["random_bundle", "multimodal_bundle"])
def test_every_graph_that_we_write_is_read_and_packed_to_the_same_bytes(
    request: pytest.FixtureRequest, bundle: str
) -> None:
    directory: Path = request.getfixturevalue(bundle)
    paths = sorted(directory.glob("*.tflite"))
    assert paths
    for path in paths:
        data = path.read_bytes()
        packed = pack(unpack(memoryview(data)))
        assert data[: len(packed)] == packed, path.name


@pytest.mark.full
@pytest.mark.parametrize("bundle", ["random_bundle", "multimodal_bundle"])
def test_selecting_every_signature_changes_nothing_but_where_weights_lie(
    request: pytest.FixtureRequest, tmp_path: Path, bundle: str
) -> None:
    directory: Path = request.getfixturevalue(bundle)
    for path in sorted(directory.glob("*.tflite")):
        names = {name: name for name in read_tflite(path).model.signatures}
        select_signatures(path, tmp_path / "once", names)
        select_signatures(tmp_path / "once", tmp_path / "twice", names)
        assert (tmp_path / "once").read_bytes() == (tmp_path / "twice").read_bytes()
        assert repr(without_places(tmp_path / "once")) == repr(without_places(path))


def without_places(path: Path) -> ModelRecord:
    model = read_tflite(path).model
    return replace(model, buffers=tuple(replace(buffer, offset_bytes=0) for buffer in model.buffers))


def test_selected_signatures_call_each_other_by_their_new_places(tmp_path: Path) -> None:
    unused, caller, called = (replace(model(add()).subgraphs[0], name=name) for name in ("unused", "caller", "called"))
    composite = add("StableHLOCompositeOptions", (("name", "odml.rms_norm"), ("decompositionSubgraphIndex", 2)))
    caller = replace(caller, operators=(composite,))
    graphs = (unused, caller, called)
    packed = pack(ModelRecord(graphs, (BufferRecord(),), tuple(graph.name for graph in graphs)))
    (tmp_path / "a").write_bytes(packed)
    select_signatures(tmp_path / "a", tmp_path / "b", {"inner": "called", "outer": "caller"})
    assert read_tflite(tmp_path / "b").graph("outer").operators[0].called() == (0,)
    with pytest.raises(GraphError, match="calls the subgraph called, which is not selected"):
        select_signatures(tmp_path / "a", tmp_path / "b", {"outer": "caller"})


def test_a_subgraph_that_an_op_calls_needs_no_signature(tmp_path: Path) -> None:
    caller, called = (replace(model(add()).subgraphs[0], name=name) for name in ("caller", "called"))
    composite = add("StableHLOCompositeOptions", (("name", "odml.rms_norm"), ("decompositionSubgraphIndex", 1)))
    graphs = (replace(caller, operators=(composite,)), called)
    (tmp_path / "a").write_bytes(pack(ModelRecord(graphs, (BufferRecord(),), ("caller",))))
    found = read_tflite(tmp_path / "a").model
    assert found.signatures == ("caller",) and [graph.name for graph in found.subgraphs] == ["caller", "called"]
    inner = found.subgraphs[1]
    assert [inner.tensors[index].name for index in inner.inputs.values()] == list(inner.inputs)
    (tmp_path / "b").write_bytes(pack(ModelRecord((caller, called), (BufferRecord(),), ("caller",))))
    with pytest.raises(GraphError, match="signatures: found 1, wanted one for every subgraph that no op calls"):
        read_tflite(tmp_path / "b")


def test_a_call_of_a_subgraph_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pack(model(add("CallOptions", (("subgraph", 1),)))))
    with pytest.raises(GraphError, match="main op 0 ADD: found subgraph 1, wanted 0 to 0"):
        read_tflite(tmp_path / "a")
