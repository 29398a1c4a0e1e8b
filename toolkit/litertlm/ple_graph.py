"""Per-layer embeddings for LiteRT-LM: a .tflite whose table consists of the rows of the PLE shards, one read per token.

A row is looked up as bytes and unpacked in the graph. With LiteRT's own block scales, the scales would be in a second
table: each token would need a second read, and the shards' rows could not be copied unchanged.
"""

from __future__ import annotations

import math

from toolkit.bundle.ple_shards import PleLayout
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Signature, Value
from toolkit.tflite.writer import TfliteLayout, layout_tflite

ROWS = "ple_rows"


def layout_ple(layout: PleLayout) -> TfliteLayout:
    """Lay out the file of `ple_graph`; its blob `ROWS` holds the rows of all shards in order."""
    return layout_tflite([Signature("embed_1", ple_graph(layout))], {})


def ple_graph(layout: PleLayout) -> Graph:
    """The graph from ids int32[1, 1] to per_layer_embeddings f32[1, 1, layers, width], multiplied by sqrt(width).

    An id outside the table reads row 0, as in transformers.
    """
    graph = Graph()
    ids = ops.reshape(graph.input("ids", (1, 1), DType.INT32), (1,))
    zero = graph.ints([0])
    known = ops.logical_and(ops.greater_equal(ids, zero), ops.less(ids, graph.ints([layout.vocab_size])))
    table = graph.blob(ROWS, (layout.vocab_size, layout.row_bytes), DType.INT8)
    row = ops.embedding_lookup(ops.select(known, ids, zero), table)
    values = _codes(row, layout)
    if layout.scale_bytes:
        values = ops.mul(values, _scales(row, layout))
    graph.output("per_layer_embeddings", ops.mul(values, graph.scalar(math.sqrt(layout.width))))
    return graph


def _codes(row: Value, layout: PleLayout) -> Value:
    """The codes f32[1, 1, layers, width] of a row int8[1, row_bytes], not yet scaled."""
    shape = (1, 1, layout.layers, layout.width)
    codes = ops.take(row, 1, 0, layout.code_bytes)
    if not layout.element.quantised:
        return ops.bitcast(ops.reshape(codes, (*shape, 4)), DType.FLOAT32)
    values, bits = ops.cast(codes, DType.FLOAT32), 8
    while bits > layout.bits:
        bits //= 2
        values = _halves(values, bits)
    return ops.reshape(values, shape)


def _halves(numbers: Value, bits: int) -> Value:
    """Split n signed numbers of 2 * `bits` bits into their low and high halves, f32[n, 2]; exact in float32."""
    graph, count, range_ = numbers.graph, math.prod(numbers.shape), 1 << bits
    high = ops.floor(ops.mul(numbers, graph.scalar(1 / range_)))
    unsigned = ops.sub(numbers, ops.mul(high, graph.scalar(range_)))
    sign = ops.floor(ops.mul(unsigned, graph.scalar(2 / range_)))
    low = ops.sub(unsigned, ops.mul(sign, graph.scalar(range_)))
    return ops.concatenation([ops.reshape(low, (count, 1)), ops.reshape(high, (count, 1))], 1)


def _scales(row: Value, layout: PleLayout) -> Value:
    """The scales f32[1, 1, layers, 1] of a row int8[1, row_bytes]."""
    bytes_ = ops.take(row, 1, layout.code_bytes, layout.code_bytes + layout.scale_bytes)
    shape = (1, 1, layout.layers, 1)
    if layout.scale_bits == 32:
        return ops.reshape(ops.bitcast(ops.reshape(bytes_, (layout.layers, 4)), DType.FLOAT32), shape)
    halves = ops.bitcast(ops.reshape(bytes_, (layout.layers, 2)), DType.FLOAT16)
    return ops.reshape(ops.cast(halves, DType.FLOAT32), shape)
