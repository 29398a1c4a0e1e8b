"""LiteRT's flatbuffer schema behind typed records; the only user of the generated classes.

The records mirror the tables of `tflite/schema.fbs`, with names in place of enum numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as fb  # type: ignore[import-untyped]
from numpy.typing import NDArray

from toolkit.errors import GraphError

SCHEMA_VERSION = 3  # tflite/schema.fbs: `version` of every current file
FILE_IDENTIFIER = b"TFL3"
_BUFFER_OFFSET = 6  # place of `offset` in the vtable of `Buffer`


@dataclass(frozen=True, slots=True)
class Quantization:
    """How integer elements stand for reals: symmetric; one scale per index of `axis`, or per block of columns."""

    scales: NDArray[np.float32] | None = None
    axis: int = 0
    block_size: int | None = None
    block_scales_tensor: int | None = None


@dataclass(frozen=True, slots=True)
class TensorRecord:
    name: str
    shape: tuple[int, ...]
    type: str
    buffer: int
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class OperatorRecord:
    builtin: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str | None = None
    fields: tuple[tuple[str, int | float | bool | str], ...] = ()


@dataclass(frozen=True, slots=True)
class SubgraphRecord:
    name: str
    tensors: tuple[TensorRecord, ...]
    operators: tuple[OperatorRecord, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BufferRecord:
    """Bytes inside the flatbuffer, or a range of the file after it (absolute offset, bytes)."""

    data: bytes | None = None
    offset_bytes: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Subgraph i is called by signature i; buffer 0 is the empty one."""

    subgraphs: tuple[SubgraphRecord, ...]
    buffers: tuple[BufferRecord, ...]
    signatures: tuple[str, ...] = field(default=())


def pack(model: ModelRecord) -> bytes:
    """The flatbuffer of a model; its length depends on no offset, size or scale that is not zero."""
    codes = sorted({(op.builtin, op.version) for graph in model.subgraphs for op in graph.operators})
    packer = _Packer({code: index for index, code in enumerate(codes)})
    root = fb.ModelT()
    root.version = SCHEMA_VERSION
    root.operatorCodes = [_operator_code(builtin, version) for builtin, version in codes]
    root.subgraphs = [packer.subgraph(graph) for graph in model.subgraphs]
    root.buffers = [_buffer(record) for record in model.buffers]
    root.signatureDefs = [
        _signature(name, index, graph)
        for index, (name, graph) in enumerate(zip(model.signatures, model.subgraphs, strict=True))
    ]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(root.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def set_buffer_offsets(packed: bytearray, offsets: Mapping[int, int]) -> None:
    """Write offsets of buffers, by index, over those that a flatbuffer of `pack` has."""
    model = fb.Model.GetRootAs(packed, 0)
    for index, offset in offsets.items():
        table = model.Buffers(index)._tab
        struct.pack_into("<Q", packed, table.Pos + table.Offset(_BUFFER_OFFSET), offset)


def set_scales(packed: bytearray, scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Write per-channel scales, by name of the tensor, over those that a flatbuffer of `pack` has."""
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
    """The records of a flatbuffer; GraphError when it is none, or says what no file of ours can say."""
    if bytes(data[4:8]) != FILE_IDENTIFIER:
        raise GraphError(".tflite header", found=bytes(data[4:8]), wanted=FILE_IDENTIFIER)
    try:
        root = fb.ModelT.InitFromPackedBuf(data, 0)
        return _Unpacker(root).model()
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise GraphError(".tflite header", found=f"{type(error).__name__}: {error}", wanted="a flatbuffer") from error


class _Unpacker:
    """Turns the generated objects into records; shared per-channel tables stay shared."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._builtins = _Names(fb.BuiltinOperator)
        self._types = _Names(fb.TensorType)
        self._options = _Names(fb.BuiltinOptions)
        self._options2 = _Names(fb.BuiltinOptions2)
        self._scales: dict[bytes, NDArray[np.float32]] = {}

    def model(self) -> ModelRecord:
        root = self._root
        if root.version != SCHEMA_VERSION:
            raise GraphError(".tflite schema version", found=root.version, wanted=SCHEMA_VERSION)
        buffers = tuple(
            BufferRecord(None if b.data is None else bytes(b.data), int(b.offset), int(b.size))
            for b in root.buffers or []
        )
        signatures = sorted(root.signatureDefs or [], key=lambda s: int(s.subgraphIndex))
        if [int(s.subgraphIndex) for s in signatures] != list(range(len(root.subgraphs or []))):
            raise GraphError(".tflite signatures", found=len(signatures), wanted="one for every subgraph")
        graphs = tuple(self._subgraph(g, s) for g, s in zip(root.subgraphs, signatures, strict=True))
        return ModelRecord(graphs, buffers, tuple(_text(s.signatureKey) for s in signatures))

    def _subgraph(self, graph: Any, signature: Any) -> SubgraphRecord:
        tensors = tuple(self._tensor(tensor) for tensor in graph.tensors or [])
        operators = tuple(self._operator(operator) for operator in graph.operators or [])
        inputs, outputs = _names_of(signature.inputs), _names_of(signature.outputs)
        for what, names, indices in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
            if sorted(names.values()) != sorted(_ints(indices)):
                raise GraphError(f".tflite signature {what}", found=names, wanted="one name for each of its subgraph's")
        return SubgraphRecord(_text(graph.name), tensors, operators, inputs, outputs)

    def _tensor(self, tensor: Any) -> TensorRecord:
        quantization = None if tensor.quantization is None else self._quantization(tensor.quantization)
        return TensorRecord(
            _text(tensor.name), _ints(tensor.shape), self._types[tensor.type], int(tensor.buffer), quantization
        )

    def _quantization(self, table: Any) -> Quantization | None:
        if table.detailsType == fb.QuantizationDetails.BlockwiseQuantization:
            return Quantization(block_size=int(table.details.blockSize), block_scales_tensor=int(table.details.scales))
        if table.scale is None or len(table.scale) == 0:
            return None
        if table.zeroPoint is not None and np.any(table.zeroPoint):
            raise GraphError(".tflite quantization", found="zero points", wanted="symmetric weights")
        scales = np.array(table.scale, np.float32)
        return Quantization(self._scales.setdefault(scales.tobytes(), scales), int(table.quantizedDimension))

    def _operator(self, operator: Any) -> OperatorRecord:
        code = self._root.operatorCodes[operator.opcodeIndex]
        options: str | None = None
        fields: list[tuple[str, int | float | bool]] = []
        if operator.builtinOptionsType or operator.builtinOptions2Type:
            first = operator.builtinOptionsType
            options = self._options[first] if first else self._options2[operator.builtinOptions2Type]
            scalars = vars(operator.builtinOptions if first else operator.builtinOptions2).items()
            fields = [(name, value) for name, value in scalars if isinstance(value, int | float | bool)]
        builtin = self._builtins[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return OperatorRecord(
            builtin, int(code.version), _ints(operator.inputs), _ints(operator.outputs), options, tuple(fields)
        )


class _Packer:
    """Packs the tables that repeat from subgraph to subgraph, per-channel scales once each."""

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
                setattr(options, name, getattr(fb.TensorType, value) if isinstance(value, str) else value)
            # The schema's second union holds the options of builtins added after the first was full.
            if hasattr(fb.BuiltinOptions, record.options):
                operator.builtinOptionsType = getattr(fb.BuiltinOptions, record.options)
                operator.builtinOptions = options
            else:
                operator.builtinOptions2Type = getattr(fb.BuiltinOptions2, record.options)
                operator.builtinOptions2 = options
        return operator


class _SharedQuantization(fb.QuantizationParametersT):  # type: ignore[misc]
    """A per-channel table that several subgraphs point at: packed once, 12 bytes a channel."""

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
    """The names of an enum's numbers; GraphError for a number that it does not have."""

    def __init__(self, enum: type) -> None:
        super().__init__((value, name) for name, value in vars(enum).items() if isinstance(value, int))
        self._enum = enum.__name__

    def __missing__(self, number: int) -> str:
        raise GraphError(f".tflite {self._enum}", found=number, wanted="a number of LiteRT's schema")


def _names_of(entries: Sequence[Any] | None) -> dict[str, int]:
    names = {_text(entry.name): int(entry.tensorIndex) for entry in entries or []}
    if len(names) != len(entries or []):
        raise GraphError(".tflite signature", found="a name twice", wanted="each name once")
    return names


def _ints(numbers: Sequence[int] | None) -> tuple[int, ...]:
    return () if numbers is None else tuple(int(n) for n in numbers)


def _text(data: bytes | str | None) -> str:
    return "" if data is None else data.decode() if isinstance(data, bytes) else data
