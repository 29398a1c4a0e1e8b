"""Packs records into LiteRT's flatbuffers, and changes offsets and scales in packed ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as fb  # type: ignore[import-untyped]
from flatbuffers import flexbuffers
from numpy.typing import NDArray

from toolkit.tflite.records import BufferRecord, ModelRecord, OperatorRecord, Quantization, SubgraphRecord, TensorRecord
from toolkit.tflite.schema import FILE_IDENTIFIER, SCHEMA_VERSION

_BUFFER_OFFSET = 6  # place of `offset` in the vtable of `Buffer`


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


class _Packer:
    """Makes the generated classes' objects of subgraphs; per-channel scales that several share become one object."""

    def __init__(self, codes: Mapping[tuple[str, int], int]) -> None:
        self._codes = codes
        self._per_channel: dict[tuple[int, int], Any] = {}  # by the identity of an array of scales, and its axis

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
        key = (id(record.scales), record.axis)
        if key not in self._per_channel:
            self._per_channel[key] = _SharedQuantization(record.scales, record.axis)
        return self._per_channel[key]

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
