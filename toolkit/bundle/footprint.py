"""Parameters and memory of each size of a bundle, read from the text decoder's graphs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.elements import element_names, element_of
from toolkit.bundle.manifest import TEXT_DECODER, Manifest, SizeRecord, TextRecord
from toolkit.tflite.reader import TfliteContent, read_tflite
from toolkit.tflite.records import ModelRecord, TensorRecord

_KV_BYTES_PER_VALUE = 4  # the format's caches are float32


@dataclass(frozen=True, slots=True)
class Footprint:
    """The layers and parameters of one size, and the memory that decoding takes."""

    layers: int
    parameters: Mapping[str, int]
    """By group: `text` (without the output matrix, which is the token embedding) and both embedding tables.

    The size that has all weights of the bundle has the parameters that its manifest counts; the others have those less
    the weights that only other sizes read.
    """
    bytes_per_token: Mapping[str, int]
    """The weights and scales that each decoded token reads, by block: the first word of a weight's name after its
    layer, such as `mlp`; the largest first. `lm_head` is the output matrix.
    The two rows read from the embedding tables are not included."""
    kv_cache_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Read for each decoded token: every weight of the decode graph, including the output matrix."""
        return sum(self.bytes_per_token.values())

    @property
    def memory_bytes(self) -> int:
        """Weights and caches; the embedding tables stay on flash."""
        return self.weight_bytes + self.kv_cache_bytes


def step_weights(model: ModelRecord, signature: str) -> Mapping[str, int]:
    """The bytes of each weight that a step reads, those of its block scales included, by the weight's name.

    A file's header is enough; the scales of rows, which lie in it, are not counted.
    """
    graph = model.subgraphs[model.signatures.index(signature)]
    read = {t.buffer: t.name for t in graph.tensors if model.buffers[t.buffer].offset_bytes}
    scales = {
        graph.tensors[t.quantization.block_scales_tensor].buffer: t.buffer
        for t in graph.tensors
        if t.quantization is not None and t.quantization.block_scales_tensor is not None
    }
    found: Counter[str] = Counter()
    for buffer in read:
        found[read[scales.get(buffer, buffer)]] += model.buffers[buffer].size_bytes
    return found


def step_shares(model: ModelRecord, signature: str) -> Mapping[str, float]:
    """What part of the weights in the matrices that a step reads has each type of integer codes, by its name."""
    graph = model.subgraphs[model.signatures.index(signature)]
    read = {t.buffer: t for t in graph.tensors if model.buffers[t.buffer].offset_bytes}
    names = {element.tensor_type: element.name for element in map(element_of, element_names()) if element.quantised}
    counts: Counter[str] = Counter()
    for tensor in read.values():
        if tensor.type in names:
            counts[names[tensor.type]] += math.prod(tensor.shape)
    return {name: count / counts.total() for name, count in counts.items()}


def footprints(bundle: Path, manifest: Manifest) -> Mapping[str, Footprint]:
    """The footprint of each size, by name; GraphError if the decoder cannot be read."""
    decoder = read_tflite(bundle / TEXT_DECODER)
    read = {name: _weights(decoder, size) for name, size in manifest.sizes.items()}
    everything = {buffer: count for weights in read.values() for buffer, count in weights.items()}
    whole = manifest.groups["text"].parameters
    return {
        name: _footprint(decoder, manifest.text, size, whole - sum(everything.values()) + sum(read[name].values()))
        for name, size in manifest.sizes.items()
    }


def _stored(decoder: TfliteContent, size: SizeRecord) -> Mapping[int, TensorRecord]:
    """The weights that a step of a size reads, and the scales of those in blocks, by their buffers."""
    # They lie behind the header; what lies in it are constants.
    buffers = decoder.model.buffers
    return {t.buffer: t for t in decoder.graph(size.decode).tensors if buffers[t.buffer].offset_bytes}


def _weights(decoder: TfliteContent, size: SizeRecord) -> Mapping[int, int]:
    """How many values each weight has that a step of a size reads, by its buffer."""
    tensors = decoder.graph(size.decode).tensors
    scales = {t.quantization.block_scales_tensor for t in tensors if t.quantization is not None}
    without = {tensors[index].buffer for index in scales if index is not None}
    found = _stored(decoder, size).items()
    return {buffer: math.prod(tensor.shape) for buffer, tensor in found if buffer not in without}


def _footprint(decoder: TfliteContent, text: TextRecord, size: SizeRecord, parameters: int) -> Footprint:
    blocks: Counter[str] = Counter()
    for weight, size_bytes in step_weights(decoder.model, size.decode).items():
        blocks[block_of(weight)] += size_bytes
    return Footprint(
        layers=len(size.layers),
        parameters={
            "text": parameters,
            "token_embedding": text.vocab_size * text.hidden_size,
            "per_layer_embedding": text.ple_vocab_size * text.ple_size * len(size.layers),
        },
        bytes_per_token=dict(blocks.most_common()),
        kv_cache_bytes=sum(2 * math.prod(cache.shape) * _KV_BYTES_PER_VALUE for cache in text.kv_caches),
    )


def block_of(weight: str) -> str:
    """The block of a decoder that a weight, or the scales of one, belongs to.

    >>> block_of("layers.12.mlp.gate_proj.1.weight"), block_of("lm_head.weight")
    ('mlp', 'lm_head')
    """
    return re.sub(r"^layers\.\d+\.", "", weight).partition(".")[0]
