"""Replaces the operators of each RMS norm by a composite, for which LiteRT-LM has one kernel on a GPU.

A composite `odml.rms_norm` names a subgraph with its decomposition, which a CPU runs. In LiteRT 2.3, CompiledModel
ends its process if a GPU gets such a composite, so bundles do not have them (docs/gpu.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from toolkit.tflite.records import BufferRecord, ModelRecord, OperatorRecord, SubgraphRecord, TensorRecord
from toolkit.tflite.schema_pack import pack_attributes

COMPOSITE = "odml.rms_norm"


def with_composite_norms(model: ModelRecord) -> ModelRecord:
    """The model with each norm as one operator: x / sqrt(mean(x²) + epsilon) * weight over the last axis.

    Norms that divide x before squaring it become plain norms, because the kernel does not square in float16. The
    decompositions are subgraphs `rms_norm_N` without a signature, because the engine wants a tower's file to have
    only one signature.
    """
    shared = _Shared(len(model.subgraphs), list(model.buffers))
    graphs = [_Rewriter(graph, model.buffers, shared).rewritten() for graph in model.subgraphs]
    return ModelRecord((*graphs, *shared.decompositions), tuple(shared.buffers), model.signatures)


@dataclass(slots=True)
class _Shared:
    """What graphs share: buffers, and a decomposition for each shape and epsilon."""

    first: int
    buffers: list[BufferRecord]
    decompositions: list[SubgraphRecord] = field(default_factory=list)
    _places: dict[bytes, int] = field(default_factory=dict)
    _found: dict[tuple[tuple[int, ...], float], int] = field(default_factory=dict)

    def buffer(self, array: NDArray[np.generic]) -> int:
        """The index of a buffer with these numbers, which is added if there is none."""
        data = array.tobytes()
        if data not in self._places:
            self._places[data] = len(self.buffers)
            self.buffers.append(BufferRecord(data))
        return self._places[data]

    def decomposition(self, shape: tuple[int, ...], epsilon: float) -> int:
        """The index of the subgraph that computes the norm of x: f32[shape]."""
        key = (shape, epsilon)
        if key not in self._found:
            self._found[key] = self.first + len(self.decompositions)
            self.decompositions.append(self._decomposed(f"rms_norm_{len(self.decompositions)}", shape, epsilon))
        return self._found[key]

    def _decomposed(self, name: str, shape: tuple[int, ...], epsilon: float) -> SubgraphRecord:
        row = (*shape[:-1], 1)
        tensors = (
            TensorRecord("x", shape, "FLOAT32", 0),
            TensorRecord("weight", shape[-1:], "FLOAT32", 0),
            TensorRecord("axis", (1,), "INT32", self.buffer(np.array([len(shape) - 1], np.int32))),
            TensorRecord("epsilon", (1,), "FLOAT32", self.buffer(np.array([epsilon], np.float32))),
            *(TensorRecord(word, row, "FLOAT32", 0) for word in ("mean", "sum", "factor")),
            *(TensorRecord(word, shape, "FLOAT32", 0) for word in ("square", "unit", "y")),
        )
        x, weight, axis, eps, mean, total, factor, square, unit, y = range(len(tensors))
        operators = (
            OperatorRecord("MUL", 1, (x, x), (square,), "MulOptions"),
            OperatorRecord("MEAN", 1, (square, axis), (mean,), "ReducerOptions", (("keepDims", True),)),
            OperatorRecord("ADD", 1, (mean, eps), (total,), "AddOptions"),
            OperatorRecord("RSQRT", 1, (total,), (factor,)),
            OperatorRecord("MUL", 1, (x, factor), (unit,), "MulOptions"),
            OperatorRecord("MUL", 1, (unit, weight), (y,), "MulOptions"),
        )
        return SubgraphRecord(name, tensors, operators, {"x": x, "weight": weight}, {"y": y})


@dataclass(frozen=True, slots=True)
class _Norm:
    """The tensors of a norm: x, what is squared (x, or x divided by something), and the factor that scales it."""

    x: int
    squared: int
    factor: int
    epsilon: float


class _Rewriter:
    """The rewriting of one graph."""

    def __init__(self, graph: SubgraphRecord, buffers: Sequence[BufferRecord], shared: _Shared) -> None:
        self._graph, self._buffers, self._shared = graph, buffers, shared
        self._tensors = list(graph.tensors)
        self._makers = {output: n for n, op in enumerate(graph.operators) for output in op.outputs}
        self._users: dict[int, list[int]] = {}
        for n, op in enumerate(graph.operators):
            for index in op.inputs:
                self._users.setdefault(index, []).append(n)
        self._operators: dict[int, list[OperatorRecord]] = {n: [op] for n, op in enumerate(graph.operators)}

    def rewritten(self) -> SubgraphRecord:
        """The graph with composites, without the operators that nothing needs any more."""
        for norm in list(self._norms()):
            for user in self._users.get(norm.factor, []):
                self._replace(norm, self._graph.operators[user], user)
        operators = [op for n in sorted(self._operators) for op in self._operators[n]]
        needed, live = set(self._graph.outputs.values()), []
        for op in reversed(operators):
            if needed.intersection(op.outputs):
                needed.update(op.inputs)
                live.append(op)
        return replace(self._graph, tensors=tuple(self._tensors), operators=tuple(reversed(live)))

    def _norms(self) -> Iterator[_Norm]:
        for op in self._graph.operators:
            if op.builtin != "RSQRT":
                continue
            add = self._maker(op.inputs[0], "ADD")
            mean = add and self._maker(add.inputs[0], "MEAN")
            square = mean and self._maker(mean.inputs[0], "MUL")
            if add is None or mean is None or square is None or square.inputs[0] != square.inputs[1]:
                continue
            axis, epsilon, x = self._number(mean.inputs[1]), self._number(add.inputs[1]), square.inputs[0]
            if epsilon is None or axis != len(self._tensors[x].shape) - 1:
                continue
            divided = self._maker(x, "DIV")
            largest = divided and self._maker(divided.inputs[1], "MAXIMUM")
            floor = largest and self._number(largest.inputs[1])
            if divided is not None and floor:
                # The epsilon of the norm of the undivided values, which were divided by at least the floor.
                yield _Norm(divided.inputs[0], x, op.outputs[0], _rounded(epsilon * floor**2))
            else:
                yield _Norm(x, x, op.outputs[0], _rounded(epsilon))

    def _replace(self, norm: _Norm, op: OperatorRecord, place: int) -> None:
        """Replace a product with the norm's factor; the other side is what was squared, perhaps times a weight, or a
        linear map of it."""
        if op.builtin != "MUL":
            return
        gain = next((number for index in op.inputs if (number := self._number(index)) is not None), None)
        if gain is not None:
            for user in self._users.get(op.outputs[0], []):
                product = self._graph.operators[user]
                if product.builtin == "MUL" and norm.squared in product.inputs:
                    self._operators[user] = [self._composite(norm, self._all(norm, gain), product.outputs[0])]
            return
        other = next((index for index in op.inputs if index != norm.factor), norm.factor)
        if other == norm.squared:
            self._replace_product(norm, op, place)
            return
        linear = self._maker(other, "FULLY_CONNECTED")
        if linear is None or linear.inputs[0] != norm.squared or len(self._users[other]) > 1 or _has_bias(linear):
            return
        unit = self._added(norm)
        composite = self._composite(norm, self._all(norm, 1.0), unit)
        mapped = replace(linear, inputs=(unit, *linear.inputs[1:]), outputs=op.outputs)
        self._operators[self._makers[other]] = []
        self._operators[place] = [composite, mapped]

    def _replace_product(self, norm: _Norm, op: OperatorRecord, place: int) -> None:
        users = self._users.get(op.outputs[0], [])
        after = self._graph.operators[users[0]] if len(users) == 1 else None
        is_output = op.outputs[0] in self._graph.outputs.values()
        if after is not None and after.builtin == "MUL" and not is_output:
            weight = next(index for index in (*after.inputs[::-1],) if index != op.outputs[0])
            if self._is_vector(weight, norm):
                self._operators[place] = []
                self._operators[users[0]] = [self._composite(norm, weight, after.outputs[0])]
                return
        self._operators[place] = [self._composite(norm, self._all(norm, 1.0), op.outputs[0])]

    def _composite(self, norm: _Norm, weight: int, output: int) -> OperatorRecord:
        fields = (
            ("name", COMPOSITE),
            ("decompositionSubgraphIndex", self._shared.decomposition(self._tensors[norm.x].shape, norm.epsilon)),
            ("compositeAttributes", pack_attributes({"epsilon": norm.epsilon})),
            ("version", 1),
        )
        return OperatorRecord(
            "STABLEHLO_COMPOSITE", 1, (norm.x, weight), (output,), "StableHLOCompositeOptions", fields
        )

    def _all(self, norm: _Norm, number: float) -> int:
        """The index of a weight vector of the norm's width that holds this number everywhere."""
        width = self._tensors[norm.x].shape[-1:]
        buffer = self._shared.buffer(np.full(width, number, np.float32))
        wanted = TensorRecord(f"all_{number:g}_{width[0]}", width, "FLOAT32", buffer)
        if wanted not in self._tensors:
            self._tensors.append(wanted)
        return self._tensors.index(wanted)

    def _added(self, norm: _Norm) -> int:
        self._tensors.append(TensorRecord(f"norm_{len(self._tensors)}", self._tensors[norm.x].shape, "FLOAT32", 0))
        return len(self._tensors) - 1

    def _is_vector(self, index: int, norm: _Norm) -> bool:
        """Whether a tensor is a stored float32 vector of the norm's width."""
        tensor = self._tensors[index]
        width = self._tensors[norm.x].shape[-1:]
        return tensor.buffer != 0 and tensor.shape == width and tensor.type == "FLOAT32"

    def _maker(self, index: int, builtin: str) -> OperatorRecord | None:
        """The operator that computes a tensor, if it is this builtin."""
        place = self._makers.get(index)
        op = None if place is None else self._graph.operators[place]
        return op if op is not None and op.builtin == builtin else None

    def _number(self, index: int) -> float | None:
        """The value of a constant with one element; None for any other tensor."""
        tensor = self._tensors[index]
        data = self._buffers[tensor.buffer].data
        if data is None or math.prod(tensor.shape) != 1:
            return None
        return float(np.frombuffer(data, {"FLOAT32": np.float32, "INT32": np.int32}[tensor.type])[0])


def _rounded(epsilon: float) -> float:
    """The float32 nearest to the number's first six digits: undoes the rounding of the factors it was computed from.

    >>> float(_rounded(9.999999974752427e-07)) == float(np.float32(1e-6))
    True
    """
    return float(np.float32(f"{epsilon:.6g}"))


def _has_bias(linear: OperatorRecord) -> bool:
    return len(linear.inputs) > 2 and linear.inputs[2] >= 0
