"""Builds the end of a layer, which adds its per-layer embedding to the streams.

Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nTextDecoderLayer.forward).
"""

from __future__ import annotations

from converters.gemma.graphs.text.decoder_step import Layer
from converters.gemma.graphs.text.per_layer_embedding import PerLayerEmbeddings
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.graphs.text.altup import active_stream
from toolkit.tflite import ops
from toolkit.tflite.graph import Value


def inject(per_layer: PerLayerEmbeddings, layer: Layer[TextConfig], streams: Value) -> tuple[Value, Value]:
    """Gate the layer's own embedding by the active stream, and add it to all streams except the first.

    Returns the streams, and the active stream.
    """
    config = layer.config
    x = active = active_stream(layer.step, streams)
    if config.altup_correct_scale:
        x = ops.mul(active, layer.vector("altup.correct_output_scale"))
    projected = per_layer.gated(layer, x)
    # One row of weights for each stream; the first stream's row is zeros (text_source.py).
    weights = layer.rows("per_layer_streams_norm.weight", config.altup_num_inputs, config.hidden_size)
    streams = ops.add(streams, ops.mul(layer.step.scale(projected).unit_rms(projected), weights))
    return streams, active if config.altup_active_index == 0 else active_stream(layer.step, streams)
