"""Parameters and memory of each size of a bundle, read from the text decoder's graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.manifest import TEXT_DECODER, Manifest, SizeRecord, TextRecord
from toolkit.tflite.reader import TfliteContent, read_tflite

_KV_BYTES_PER_VALUE = 4  # the format's caches are float32


@dataclass(frozen=True, slots=True)
class Footprint:
    """The layers and parameters of one size, and the memory that decoding takes."""

    layers: int
    parameters: Mapping[str, int]
    """By group: `text` (without the output matrix, which is the token embedding) and both embedding tables."""
    weight_bytes: int
    """Read for each decoded token: every weight of the decode graph, including the output matrix."""
    kv_cache_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Weights and caches; the embedding tables stay on flash."""
        return self.weight_bytes + self.kv_cache_bytes


def footprints(bundle: Path, manifest: Manifest) -> Mapping[str, Footprint]:
    """The footprint of each size, by name; GraphError if the decoder cannot be read."""
    decoder = read_tflite(bundle / TEXT_DECODER)
    return {name: _footprint(decoder, manifest.text, size) for name, size in manifest.sizes.items()}


def _footprint(decoder: TfliteContent, text: TextRecord, size: SizeRecord) -> Footprint:
    tensors = decoder.graph(size.decode).tensors
    buffers = decoder.model.buffers
    # Weights, and the scales of those in blocks, lie behind the header; what lies in it are constants.
    stored = {tensor.buffer: tensor for tensor in tensors if buffers[tensor.buffer].offset_bytes}
    scales = {t.quantization.block_scales_tensor for t in tensors if t.quantization is not None}
    scale_buffers = {tensors[index].buffer for index in scales if index is not None}
    parameters = sum(math.prod(tensor.shape) for buffer, tensor in stored.items() if buffer not in scale_buffers)
    embedding = text.vocab_size * text.hidden_size
    return Footprint(
        layers=len(size.layers),
        parameters={
            "text": parameters - embedding,
            "token_embedding": embedding,
            "per_layer_embedding": text.ple_vocab_size * text.ple_size * len(size.layers),
        },
        weight_bytes=sum(buffers[index].size_bytes for index in stored),
        kv_cache_bytes=sum(2 * math.prod(cache.shape) * _KV_BYTES_PER_VALUE for cache in text.kv_caches),
    )
