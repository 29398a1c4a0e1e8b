"""Reads LiteRT's flatbuffers into records. What no record can hold is refused by its name, or named in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as fb  # type: ignore[import-untyped]
from numpy.typing import NDArray

from toolkit.base.errors import GraphError
from toolkit.tflite.graph import OptionValue
from toolkit.tflite.records import BufferRecord, ModelRecord, OperatorRecord, Quantization, SubgraphRecord, TensorRecord
from toolkit.tflite.schema import FILE_IDENTIFIER, SCHEMA_VERSION, UNREADABLE, EnumNames

_LEAST_TABLE_BYTES = 32  # of a tensor or an operator with its vectors: ours take twice that
_OPTIONS = "numbers, texts, bytes and lists of numbers"
_MOST_SHARED = 4  # packers share strings and scales between subgraphs


def unpack(data: memoryview) -> ModelRecord:
    """The records of a flatbuffer; GraphError when it is damaged, or says what the records cannot hold."""
    if bytes(data[4:8]) != FILE_IDENTIFIER:
        raise GraphError("header", found=bytes(data[4:8]), wanted=FILE_IDENTIFIER)
    try:
        return _Unpacker(data).model()
    except UNREADABLE as error:
        raise GraphError("header", found=f"not a flatbuffer ({type(error).__name__}: {error})") from error


class _Unpacker:
    """Turns tables into records; per-channel tables that several tensors share stay shared.

    Only what records hold is read. A flatbuffer may point at one table from many places, so that a small file could
    unpack to one without end: what is read is counted, and may be so many times what the file holds.
    """

    def __init__(self, data: memoryview) -> None:
        self._model = fb.Model.GetRootAs(data, 0)
        self._room = _MOST_SHARED * len(data)
        self._builtins = EnumNames(fb.BuiltinOperator)
        self._types = EnumNames(fb.TensorType)
        self._options = EnumNames(fb.BuiltinOptions)
        self._options2 = EnumNames(fb.BuiltinOptions2)
        self._codes: list[tuple[str, int]] = []
        self._quantizations: dict[int, Quantization | None] = {}  # by the table's place
        self._scales: dict[bytes, NDArray[np.float32]] = {}
        self._besides: dict[str, None] = {}

    def model(self) -> ModelRecord:
        model = self._model
        if model.Version() != SCHEMA_VERSION:
            raise GraphError("schema version", found=model.Version(), wanted=SCHEMA_VERSION)
        self._codes = [self._code(code) for code in self._tables(model.OperatorCodes, model.OperatorCodesLength())]
        buffers = tuple(self._buffer(buffer) for buffer in self._tables(model.Buffers, model.BuffersLength()))
        signatures = list(self._tables(model.SignatureDefs, model.SignatureDefsLength()))
        signatures.sort(key=lambda signature: int(signature.SubgraphIndex()))
        in_order = all(signature.SubgraphIndex() == index for index, signature in enumerate(signatures))
        subgraphs = list(self._tables(model.Subgraphs, model.SubgraphsLength()))
        without = len(subgraphs) - len(signatures)
        fault = GraphError("signatures", found=len(signatures), wanted="one for every subgraph that no op calls")
        if not in_order or without < 0:
            raise fault
        graphs = tuple(map(self._subgraph, subgraphs, [*signatures, *[None] * without]))
        called = {index for graph in graphs for op in graph.operators for index in op.called()}
        if not called.issuperset(range(len(signatures), len(subgraphs))):
            raise fault
        names = tuple(self._text(signature.SignatureKey()) for signature in signatures)
        self._note({"a description": model.Description(), "metadata": model.MetadataLength()})
        self._note({"metadata": model.MetadataBufferLength()})
        return ModelRecord(graphs, buffers, names, tuple(self._besides))

    def _subgraph(self, graph: Any, signature: Any | None) -> SubgraphRecord:
        tensors = tuple(self._tensor(tensor) for tensor in self._tables(graph.Tensors, graph.TensorsLength()))
        operators = tuple(self._operator(op) for op in self._tables(graph.Operators, graph.OperatorsLength()))
        if signature is None:
            # Its inputs and outputs have no names but their tensors'.
            ins, outs = (self._named(tensors, n) for n in (graph.InputsAsNumpy(), graph.OutputsAsNumpy()))
            return SubgraphRecord(self._text(graph.Name()), tensors, operators, ins, outs)
        inputs = self._tensor_map(signature.Inputs, signature.InputsLength())
        outputs = self._tensor_map(signature.Outputs, signature.OutputsLength())
        indices = ("inputs", inputs, graph.InputsAsNumpy()), ("outputs", outputs, graph.OutputsAsNumpy())
        for what, names, numbers in indices:
            if sorted(names.values()) != sorted(self._ints(numbers)):
                raise GraphError(f"signature {what}", found=names, wanted="one name for each of its subgraph's")
        return SubgraphRecord(self._text(graph.Name()), tensors, operators, inputs, outputs)

    def _tensor(self, tensor: Any) -> TensorRecord:
        name, shape, kind = self._text(tensor.Name()), self._ints(tensor.ShapeAsNumpy()), self._types[tensor.Type()]
        beyond = {
            "a variable": tensor.IsVariable(),
            "sparse elements": tensor.Sparsity() is not None,
            "a shape that changes": self._ints(tensor.ShapeSignatureAsNumpy()) not in ((), shape),
            "variants": tensor.VariantTensorsLength(),
            "bytes in another file": tensor.ExternalBuffer(),
        }
        _refuse_beyond(f"tensor {name}", beyond)
        return TensorRecord(name, shape, kind, int(tensor.Buffer()), self._quantization(tensor.Quantization()))

    def _quantization(self, table: Any) -> Quantization | None:
        if table is None:
            return None
        place = table._tab.Pos
        if place not in self._quantizations:
            self._quantizations[place] = self._read_quantization(table)
        return self._quantizations[place]

    def _read_quantization(self, table: Any) -> Quantization | None:
        if table.DetailsType() == fb.QuantizationDetails.BlockwiseQuantization:
            details, block = table.Details(), fb.BlockwiseQuantization()
            block.Init(details.Bytes, details.Pos)
            self._note({"zero points of blocks": block.ZeroPoints() > 0, "shapes of blocks": block.BlockShapeLength()})
            return Quantization(block_size=int(block.BlockSize()), block_scales_tensor=int(block.Scales()))
        _refuse_beyond("quantization", {"another kind than scales and blocks": table.DetailsType()})
        self._note({"ranges of values": table.MinLength() or table.MaxLength()})
        if not table.ScaleLength():
            return None
        self._take(table.ScaleLength() + table.ZeroPointLength())
        if table.ZeroPointLength() and np.any(table.ZeroPointAsNumpy()):
            raise GraphError("quantization", found="zero points", wanted="symmetric weights")
        scales = np.array(table.ScaleAsNumpy(), np.float32)
        return Quantization(self._scales.setdefault(scales.tobytes(), scales), int(table.QuantizedDimension()))

    def _operator(self, operator: Any) -> OperatorRecord:
        builtin, version = self._codes[operator.OpcodeIndex()]
        first, second = operator.BuiltinOptionsType(), operator.BuiltinOptions2Type()
        beyond = {
            "custom options": operator.CustomOptionsLength() or operator.LargeCustomOptionsSize(),
            "intermediate tensors": operator.IntermediatesLength(),
            "inputs that it changes": self._any(operator.MutatingVariableInputsAsNumpy()),
            "two tables of options": first and second,
        }
        _refuse_beyond(f"operator {builtin}", beyond)
        options = self._options[first] if first else self._options2[second] if second else None
        fields: tuple[tuple[str, OptionValue], ...] = ()
        if first:
            fields = self._fields(builtin, fb.BuiltinOptionsCreator(first, operator.BuiltinOptions()))
        elif second:
            fields = self._fields(builtin, fb.BuiltinOptions2Creator(second, operator.BuiltinOptions2()))
        inputs, outputs = self._ints(operator.InputsAsNumpy()), self._ints(operator.OutputsAsNumpy())
        return OperatorRecord(builtin, version, inputs, outputs, options, fields)

    def _fields(self, builtin: str, options: Any) -> tuple[tuple[str, OptionValue], ...]:
        """The fields of a table of options, without absent lists and texts."""
        values = ((name, self._option(builtin, name, value)) for name, value in vars(options).items())
        return tuple((name, value) for name, value in values if value is not None)

    def _option(self, builtin: str, name: str, value: object) -> OptionValue | None:
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, bytes):
            return self._text(value)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iufb":
            raise GraphError(f"operator {builtin} option {name}", found=type(value).__name__, wanted=_OPTIONS)
        self._take(value.size)
        return value.tobytes() if value.dtype == np.uint8 else tuple(value.tolist())

    def _code(self, code: Any) -> tuple[str, int]:
        builtin = self._builtins[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        _refuse_beyond(f"operator {builtin}", {"a custom operator": builtin == "CUSTOM" or code.CustomCode()})
        return builtin, int(code.Version())

    def _buffer(self, buffer: Any) -> BufferRecord:
        self._take(buffer.DataLength())
        data = None if buffer.DataIsNone() else bytes(buffer.DataAsNumpy())
        return BufferRecord(data, int(buffer.Offset()), int(buffer.Size()))

    def _named(self, tensors: Sequence[TensorRecord], indices: Any) -> dict[str, int]:
        found = self._ints(indices)
        names = {tensors[index].name: index for index in found}
        if len(names) != len(found):
            raise GraphError("subgraph without a signature", found="two inputs or outputs of one name")
        return names

    def _tensor_map(self, entry: Callable[[int], Any], length: int) -> dict[str, int]:
        names = {self._text(item.Name()): int(item.TensorIndex()) for item in self._tables(entry, length)}
        if len(names) != length:
            raise GraphError("signature", found="a duplicate name")
        return names

    def _tables(self, entry: Callable[[int], Any], length: int) -> Iterator[Any]:
        self._take(_LEAST_TABLE_BYTES * length)
        return map(entry, range(length))

    def _ints(self, numbers: NDArray[np.int32] | int) -> tuple[int, ...]:
        """The numbers of a vector; the generated classes give 0 for one that is absent."""
        if isinstance(numbers, int):
            return ()
        self._take(numbers.size)
        return tuple(numbers.tolist())

    def _any(self, flags: NDArray[np.bool_] | int) -> bool:
        """Whether some flag of a vector is set; the generated classes give 0 for one that is absent."""
        self._take(np.size(flags))
        return bool(np.any(flags))

    def _text(self, data: bytes | None) -> str:
        self._take(len(data or b""))
        return (data or b"").decode()

    def _note(self, besides: Mapping[str, object]) -> None:
        """Remember what is there and no record holds."""
        self._besides |= dict.fromkeys(what for what, there in besides.items() if there)

    def _take(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise GraphError("header", found="tables that are referenced too often")


def _refuse_beyond(place: str, beyond: Mapping[str, object]) -> None:
    """GraphError for the first thing that is there and that no record holds."""
    for what, there in beyond.items():
        if there:
            raise GraphError(place, found=f"{what}, which this version cannot carry")
