"""What LiteRT's GPU delegate refuses of a graph, told without a GPU.

Every rule was observed (ai-edge-litert 2.3.0, WebGPU delegate; docs/gpu.md). A graph that breaks none of them may
still be refused for something that none of our graphs has. LiteRT-LM opens a model on a GPU only if nothing is
refused.
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
"""Ops of two values that must be different ones; those of ADD, MUL and CONCATENATION need not."""

_FOLDED = frozenset({"ADD", "DEQUANTIZE", "MUL"})
"""Ops that may have only constants as inputs: the delegate computes them when it builds."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An op that stays off the GPU, and why."""

    signature: str
    op: int
    builtin: str
    reason: str


def gpu_refusals(model: ModelRecord) -> list[Refusal]:
    """Every op of every graph that the delegate refuses, in the order in which they run."""
    return [
        Refusal(graph.name, n, op.builtin, reason)
        for graph in model.subgraphs
        for n, op in enumerate(graph.operators)
        for reason in _Rules(graph, op).broken()
    ]


class _Rules:
    """The rules for one op of a graph."""

    def __init__(self, graph: SubgraphRecord, op: OperatorRecord) -> None:
        self._op = op
        self._tensors = [graph.tensors[index] for index in op.inputs]
        self._constant = [tensor.buffer != 0 for tensor in self._tensors]

    def broken(self) -> Iterator[str]:
        op, constant = self._op, self._constant
        if all(constant) and op.builtin not in _FOLDED:
            yield "all of its inputs are constants"
        if op.builtin in _DIFFERENT and len(set(op.inputs)) < len(op.inputs):
            yield "it takes a value twice"
        if op.builtin in ("PAD", "PADV2") and len(self._tensors[0].shape) < 3:
            yield f"it pads {len(self._tensors[0].shape)} axes, and a GPU pads 3 or 4"
        if op.builtin == "DYNAMIC_UPDATE_SLICE" and constant[2]:
            yield "its start is a constant"
        if op.builtin == "BATCH_MATMUL" and constant[0]:
            yield "its first operand is a constant"
        yield from filter(None, map(_of_weight, self._tensors))


def weights_in_blocks(model: ModelRecord) -> list[TensorRecord]:
    """Weights with a scale for each block: LiteRT-LM computes with them in int4, but CompiledModel ends the process."""
    tensors = {tensor.name: tensor for graph in model.subgraphs for tensor in graph.tensors}
    return [t for t in tensors.values() if t.quantization is not None and t.quantization.block_size is not None]


def _of_weight(tensor: TensorRecord) -> str | None:
    quantization = tensor.quantization
    if quantization is None or quantization.block_size is None or tensor.type == "INT4":
        return None
    return f"the weight {tensor.name} is {tensor.type} in blocks of {quantization.block_size}"
