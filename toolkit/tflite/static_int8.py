"""Products with int8 activations at fixed scales, for checkpoints that were trained with such products.

By default, LiteRT on a CPU quantises the activations of a product with quantised weights itself, with a scale that it
computes for each row from its values. A checkpoint of quantisation-aware training may state scales for inputs and
outputs instead. With QUANTIZE before a product and DEQUANTIZE after it, XNNPACK computes with exactly these scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from toolkit.base.activations import ActivationScales
from toolkit.base.weights import Weight, WeightPart
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Node, Options, Signature, TensorType, Value
from toolkit.tflite.op_checks import apply

# --- operators -------------------------------------------------------------------------------------------------------


def quantize(x: Value, scale: float) -> Value:
    """x / scale, rounded to nearest, ties to even, and clipped to int8; x: f32[...]."""
    if x.dtype is not DType.FLOAT32 or not scale > 0:
        raise ValueError(f"QUANTIZE wants float32 and a positive scale; found {x.type}, {scale}")
    return apply("QUANTIZE", [x], TensorType(x.shape, DType.INT8, scale), Options("QuantizeOptions"))


def dequantize(x: Value) -> Value:
    """The numbers that an int8 value stands for: f32[...]."""
    if x.type.scale is None:
        raise ValueError(f"DEQUANTIZE wants a value with a scale; found {x.type}")
    return apply("DEQUANTIZE", [x], TensorType(x.shape), Options("DequantizeOptions"))


def fully_connected(x: Value, weight: Value, scale: float) -> Value:
    """x @ weight.T, rounded to int8 with this scale; x: int8[..., in] with a scale, weight: integers [out, in]."""
    if x.type.scale is None or not scale > 0:
        raise ValueError(f"FULLY_CONNECTED of int8 wants scales; found {x.type}, {scale}")
    if len(weight.shape) != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"FULLY_CONNECTED wants weights [out, in]; found {x.type}, {weight.type}")
    result = TensorType((*x.shape[:-1], weight.shape[0]), DType.INT8, scale)
    return apply("FULLY_CONNECTED", [x, weight], result, Options("FullyConnectedOptions", (("keepNumDims", True),)))


# --- rewriting a graph -----------------------------------------------------------------------------------------------


def with_static_activations(
    signature: Signature, scales: Callable[[str], ActivationScales], rows: Callable[[str], int]
) -> Signature:
    """The signature, with static int8 activations in each product whose weight has activation scales.

    `scales`: gives the activation scales of the product with a tensor of the checkpoint, by its name. `rows`: gives the
    number of rows of a tensor. A weight that joins tensors with different scales is split into them.
    """
    return replace(signature, graph=_Rewrite(signature.graph, scales, rows).graph)


class _Rewrite:
    """Builds a graph anew, node by node."""

    def __init__(self, old: Graph, scales: Callable[[str], ActivationScales], rows: Callable[[str], int]) -> None:
        self._scales, self._rows = scales, rows
        self.graph = Graph()
        self._new: dict[Value, Value] = {}
        self._rounded: dict[tuple[Value, float], Value] = {}
        for name, value in old.inputs.items():
            self._new[value] = self.graph.input(name, value.shape, value.dtype)
        for node in old.live_nodes():
            self._make(node)
        for name, value in old.outputs.items():
            self.graph.output(name, self._value(value))

    def _value(self, old: Value) -> Value:
        """The value in the new graph; constants, weights and blobs are added when they are first used."""
        if old not in self._new:
            if old.weight is not None:
                self._new[old] = self.graph.weight(old.weight)
            elif old.blob is not None:
                self._new[old] = self.graph.blob(old.blob, old.shape, old.dtype)
            else:
                assert old.constant is not None, old
                self._new[old] = self.graph.constant(old.constant)
        return self._new[old]

    def _make(self, node: Node) -> None:
        weight = node.inputs[1].weight if node.builtin == "FULLY_CONNECTED" and len(node.inputs) == 2 else None
        found = {} if weight is None else {part: self._scales(part.tensor) for part in weight.parts}
        if weight is not None and any(found.values()) and set(found.values()) != {ActivationScales()}:
            self._new[node.outputs[0]] = self._product(self._value(node.inputs[0]), weight, found)
            return
        inputs = [self._value(value) for value in node.inputs]
        made = self.graph.node(
            node.builtin, inputs, [value.type for value in node.outputs], node.options, version=node.version
        )
        self._new.update(zip(node.outputs, made, strict=True))

    def _product(self, x: Value, weight: Weight, scales: Mapping[WeightPart, ActivationScales]) -> Value:
        if len(set(scales.values())) == 1:
            return self._one_product(x, weight, next(iter(scales.values())))
        products = []
        for part, own in scales.items():
            first, stop = part.rows or (0, self._rows(part.tensor))
            name = part.tensor if part.rows is None else f"{part.tensor}[{first}:{stop}]"
            products.append(self._one_product(x, Weight(name, (stop - first, weight.shape[1]), (part,)), own))
        return ops.concatenation(products, len(x.shape) - 1)

    def _one_product(self, x: Value, weight: Weight, scales: ActivationScales) -> Value:
        """The product with one pair of scales; if one of them is missing, only the input or the output is rounded."""
        matrix = self.graph.weight(weight)
        if scales.input is not None and scales.output is not None:
            return dequantize(fully_connected(self._round(x, scales.input), matrix, scales.output))
        if scales.input is not None:
            x = dequantize(self._round(x, scales.input))
        y = ops.fully_connected(x, matrix)
        return y if scales.output is None else dequantize(quantize(y, scales.output))

    def _round(self, x: Value, scale: float) -> Value:
        """Round a value to int8; several products of the same value share the result."""
        if (x, scale) not in self._rounded:
            self._rounded[x, scale] = quantize(x, scale)
        return self._rounded[x, scale]
