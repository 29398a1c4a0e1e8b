"""Predicts without a GPU which operators of a graph LiteRT's GPU delegate refuses.

Every rule was observed (ai-edge-litert 2.3.0, WebGPU delegate; docs/gpu.md). A graph that breaks none of them may
still be refused for something that none of our graphs contains. LiteRT-LM opens a model on a GPU only if the delegate
refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.tflite.records import ModelRecord, OperatorRecord, SubgraphRecord, TensorRecord

_DIFFERENT = frozenset(
    {
        "DIV", "EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "MAXIMUM",
        "MINIMUM", "NOT_EQUAL", "SQUARED_DIFFERENCE", "SUB",
    }
)  # fmt: skip
"""Operators whose two inputs must be different values; the inputs of ADD, MUL and CONCATENATION may be the same."""

_FOLDED = frozenset({"ADD", "DEQUANTIZE", "MUL"})
"""Operators whose inputs may all be constants: the delegate computes them when it compiles the graph."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operator that the GPU delegate refuses, and why. `op`: its index in the graph of `signature`."""

    signature: str
    op: int
    builtin: str
    reason: str


def gpu_refusals(model: ModelRecord) -> list[Refusal]:
    """The operators of all graphs that the delegate refuses, in the order in which they run."""
    return [
        Refusal(graph.name, n, op.builtin, reason)
        for graph in model.subgraphs
        for n, op in enumerate(graph.operators)
        for reason in _Rules(graph, op).broken()
    ]


class _Rules:
    """The rules for one operator of a graph."""

    def __init__(self, graph: SubgraphRecord, op: OperatorRecord) -> None:
        self._op = op
        self._tensors = [graph.tensors[index] for index in op.inputs]
        self._constant = [tensor.buffer != 0 for tensor in self._tensors]

    def broken(self) -> Iterator[str]:
        op, constant = self._op, self._constant
        if all(constant) and op.builtin not in _FOLDED:
            yield "all of its inputs are constants"
        if op.builtin in _DIFFERENT and len(set(op.inputs)) < len(op.inputs):
            yield "both of its inputs are the same value"
        if op.builtin in ("PAD", "PADV2") and len(self._tensors[0].shape) < 3:
            yield f"it pads {len(self._tensors[0].shape)} axes, and a GPU can pad only 3 or 4"
        if op.builtin == "DYNAMIC_UPDATE_SLICE" and constant[2]:
            yield "its start is a constant"
        if op.builtin == "BATCH_MATMUL" and constant[0]:
            yield "its first operand is a constant"
        yield from filter(None, map(_of_weight, self._tensors))


def weights_in_blocks(model: ModelRecord) -> list[TensorRecord]:
    """The weights with block scales: LiteRT-LM computes with them in int4, but CompiledModel ends the process."""
    tensors = {tensor.name: tensor for graph in model.subgraphs for tensor in graph.tensors}
    return [t for t in tensors.values() if t.quantization is not None and t.quantization.block_size is not None]


def _of_weight(tensor: TensorRecord) -> str | None:
    quantization = tensor.quantization
    if quantization is None or quantization.block_size is None or tensor.type == "INT4":
        return None
    return f"the weight {tensor.name} is {tensor.type} in blocks of {quantization.block_size}"
