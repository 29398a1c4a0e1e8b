"""Packs records into LiteRT's flatbuffers and reads them back; the only user of the schema's generated classes.

What a file says beyond the records is refused by its name, never dropped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as fb  # type: ignore[import-untyped]
from flatbuffers import flexbuffers
from numpy.typing import NDArray

from toolkit.base.errors import GraphError
from toolkit.tflite.graph import DType, Options, OptionValue
from toolkit.tflite.records import (
    BufferRecord,
    ModelRecord,
    OperatorRecord,
    Quantization,
    SubgraphRecord,
    TensorRecord,
)

SCHEMA_VERSION = 3  # tflite/schema.fbs: `version` of every current file
FILE_IDENTIFIER = b"TFL3"
BLOCKWISE: int = fb.QuantizationDetails.BlockwiseQuantization
_BUFFER_OFFSET = 6  # place of `offset` in the vtable of `Buffer`
_LEAST_TABLE_BYTES = 32  # of a tensor or an operator with its vectors: ours take twice that
_OPTIONS = "numbers, texts, bytes and lists of numbers"
_MOST_SHARED = 4  # packers share strings and scales between subgraphs


def pack(model: ModelRecord) -> bytes:
    """The flatbuffer of a model.

    Its length does not change with the values of scales, nor with those of offsets and sizes while these are not zero:
    a zero is not stored.
    """
    codes = sorted({(op.builtin, op.version) for graph in model.subgraphs for op in graph.operators})
    packer = _Packer({code: index for index, code in enumerate(codes)})
    root = fb.ModelT()
    root.version = SCHEMA_VERSION
    root.operatorCodes = [_operator_code(builtin, version) for builtin, version in codes]
    root.subgraphs = [packer.subgraph(graph) for graph in model.subgraphs]
    root.buffers = [_buffer(record) for record in model.buffers]
    root.signatureDefs = [
        _signature(name, index, graph)
        for index, (name, graph) in enumerate(zip(model.signatures, model.subgraphs, strict=False))
    ]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(root.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def pack_attributes(attributes: Mapping[str, float]) -> bytes:
    """The attributes of a composite operator, as a map in a FlexBuffer."""
    return bytes(flexbuffers.Dumps(dict(attributes)))


def set_buffer_offsets(packed: bytearray, offsets: Mapping[int, int]) -> None:
    """Replace offsets of buffers, by the buffers' indices, in a flatbuffer made by `pack`."""
    model = fb.Model.GetRootAs(packed, 0)
    for index, offset in offsets.items():
        table = model.Buffers(index)._tab
        struct.pack_into("<Q", packed, table.Pos + table.Offset(_BUFFER_OFFSET), offset)


def set_scales(packed: bytearray, scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Replace per-channel scales, by the tensors' names, in a flatbuffer made by `pack`."""
    model = fb.Model.GetRootAs(packed, 0)
    missing = {name.encode(): values for name, values in scales.items()}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            if not missing:
                return
            values = missing.pop(tensor.Name(), None)
            if values is not None:  # tensors of other subgraphs share the table
                tensor.Quantization().ScaleAsNumpy()[:] = values
    assert not missing, f"no tensors {sorted(missing)}"


def unpack(data: memoryview) -> ModelRecord:
    """The records of a flatbuffer; GraphError when it is damaged, or says what the records cannot hold."""
    if bytes(data[4:8]) != FILE_IDENTIFIER:
        raise GraphError("header", found=bytes(data[4:8]), wanted=FILE_IDENTIFIER)
    try:
        return _Unpacker(data).model()
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise GraphError("header", found=f"not a flatbuffer ({type(error).__name__}: {error})") from error


class _Unpacker:
    """Turns tables into records; per-channel tables that several tensors share stay shared.

    Only what records hold is read. A flatbuffer may point at one table from many places, so that a small file could
    unpack to one without end: what is read is counted, and may be so many times what the file holds.
    """

    def __init__(self, data: memoryview) -> None:
        self._model = fb.Model.GetRootAs(data, 0)
        self._room = _MOST_SHARED * len(data)
        self._builtins = _Names(fb.BuiltinOperator)
        self._types = _Names(fb.TensorType)
        self._options = _Names(fb.BuiltinOptions)
        self._options2 = _Names(fb.BuiltinOptions2)
        self._codes: list[tuple[str, int]] = []
        self._quantizations: dict[int, Quantization | None] = {}  # by the table's place
        self._scales: dict[bytes, NDArray[np.float32]] = {}

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
        return ModelRecord(graphs, buffers, tuple(self._text(s.SignatureKey()) for s in signatures))

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
            return Quantization(block_size=int(block.BlockSize()), block_scales_tensor=int(block.Scales()))
        _refuse_beyond("quantization", {"another kind than scales and blocks": table.DetailsType()})
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

    def _take(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise GraphError("header", found="tables that are referenced too often")


class _Packer:
    """Makes the generated classes' objects of subgraphs; per-channel scales that several share become one object."""

    def __init__(self, codes: Mapping[tuple[str, int], int]) -> None:
        self._codes = codes
        self._per_channel: dict[int, Any] = {}  # by identity: one array of scales is one table

    def subgraph(self, record: SubgraphRecord) -> Any:
        graph = fb.SubGraphT()
        graph.name = record.name
        graph.tensors = [self._tensor(tensor) for tensor in record.tensors]
        graph.operators = [self._operator(op) for op in record.operators]
        graph.inputs = _vector(list(record.inputs.values()))
        graph.outputs = _vector(list(record.outputs.values()))
        return graph

    def _tensor(self, record: TensorRecord) -> Any:
        tensor = fb.TensorT()
        tensor.name = record.name
        tensor.shape = _vector(record.shape)
        tensor.type = getattr(fb.TensorType, record.type)
        tensor.buffer = record.buffer
        tensor.hasRank = True
        if record.quantization is not None:
            tensor.quantization = self._quantization(record.quantization)
        return tensor

    def _quantization(self, record: Quantization) -> Any:
        if record.block_size is not None:
            block = fb.BlockwiseQuantizationT()
            block.scales = record.block_scales_tensor
            block.zeroPoints = -1
            block.blockSize = record.block_size
            table = fb.QuantizationParametersT()
            table.detailsType = fb.QuantizationDetails.BlockwiseQuantization
            table.details = block
            return table
        assert record.scales is not None
        if id(record.scales) not in self._per_channel:
            self._per_channel[id(record.scales)] = _SharedQuantization(record.scales, record.axis)
        return self._per_channel[id(record.scales)]

    def _operator(self, record: OperatorRecord) -> Any:
        operator = fb.OperatorT()
        operator.opcodeIndex = self._codes[record.builtin, record.version]
        operator.inputs = _vector(record.inputs)
        operator.outputs = _vector(record.outputs)
        if record.options is not None:
            options = getattr(fb, record.options + "T")()
            for name, value in record.fields:
                assert hasattr(options, name), f"{record.options} has no {name}"
                setattr(options, name, np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value)
            # The schema's second union holds the options of builtins added after the first was full.
            if hasattr(fb.BuiltinOptions, record.options):
                operator.builtinOptionsType = getattr(fb.BuiltinOptions, record.options)
                operator.builtinOptions = options
            else:
                operator.builtinOptions2Type = getattr(fb.BuiltinOptions2, record.options)
                operator.builtinOptions2 = options
        return operator


class _SharedQuantization(fb.QuantizationParametersT):  # type: ignore[misc]
    """Per-channel scales that several subgraphs point at, 12 bytes a channel: packed once."""

    def __init__(self, scales: NDArray[np.float32], axis: int) -> None:
        super().__init__()
        self.scale = scales
        self.zeroPoint = np.zeros(scales.size, np.int64)
        self.quantizedDimension = axis
        self._packed_at: int | None = None

    def Pack(self, builder: Any) -> int:
        if self._packed_at is None:
            self._packed_at = int(super().Pack(builder))
        return self._packed_at


def tensor_type_number(name: str) -> int:
    """The number of a type in the schema, which is what options hold.

    >>> tensor_type_number("INT32")
    2
    """
    return int(getattr(fb.TensorType, name))


def builtin_names() -> Mapping[int, str]:
    """The names of all operators, by number."""
    return _Names(fb.BuiltinOperator)


def tensor_type_names() -> Mapping[int, str]:
    """The names of all element types, by number."""
    return _Names(fb.TensorType)


def options_names() -> tuple[Mapping[int, str], Mapping[int, str]]:
    """The names of all tables of options, by number: those of the first union, and those of the second."""
    return _Names(fb.BuiltinOptions), _Names(fb.BuiltinOptions2)


def read_options(kind: int, data: memoryview, position: int) -> tuple[str | None, dict[str, OptionValue]]:
    """The name of a table of options and its fields, defaults included; kind: its number in the union, 0 for none."""
    if not kind:
        return None, {}
    table = _Names(fb.BuiltinOptions)[kind]
    try:
        values = vars(fb.BuiltinOptionsCreator(kind, flatbuffers.table.Table(data, position)))
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise GraphError("options", found=f"not a flatbuffer ({type(error).__name__}: {error})") from error
    return table, {name: value for name, value in values.items() if value is not None}


def option_values(options: Options | None) -> dict[str, OptionValue]:
    """All fields of a table of options, as `read_options` gives them."""
    if options is None:
        return {}
    fields = {name: value for name, value in vars(getattr(fb, options.table + "T")()).items() if value is not None}
    given = {name: tensor_type_number(v.value) if isinstance(v, DType) else v for name, v in options.fields}
    return fields | given


def _refuse_beyond(place: str, beyond: Mapping[str, object]) -> None:
    """GraphError for the first thing that is there and that no record holds."""
    for what, there in beyond.items():
        if there:
            raise GraphError(place, found=f"{what}, which this version cannot carry")


def _operator_code(builtin: str, version: int) -> Any:
    code = fb.OperatorCodeT()
    code.builtinCode = getattr(fb.BuiltinOperator, builtin)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code


def _buffer(record: BufferRecord) -> Any:
    buffer = fb.BufferT()
    if record.data is not None:
        buffer.data = np.frombuffer(record.data, np.uint8)
    buffer.offset = record.offset_bytes
    buffer.size = record.size_bytes
    return buffer


def _signature(name: str, index: int, graph: SubgraphRecord) -> Any:
    signature = fb.SignatureDefT()
    signature.signatureKey = name
    signature.subgraphIndex = index
    signature.inputs = _tensor_map(graph.inputs)
    signature.outputs = _tensor_map(graph.outputs)
    return signature


def _tensor_map(names: Mapping[str, int]) -> list[Any]:
    entries = []
    for name, index in names.items():
        entry = fb.TensorMapT()
        entry.name = name
        entry.tensorIndex = index
        entries.append(entry)
    return entries


def _vector(numbers: Sequence[int]) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


class _Names(dict[int, str]):
    """An enum's names by their numbers; GraphError for a number without a name."""

    def __init__(self, enum: type) -> None:
        super().__init__((value, name) for name, value in vars(enum).items() if isinstance(value, int))
        self._enum = enum.__name__

    def __missing__(self, number: int) -> str:
        raise GraphError(self._enum, found=f"the number {number}, which LiteRT's schema does not have")
