"""Parameters and memory of each size of a bundle, read from the text decoder's graphs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.elements import ElementName, element_names, element_of
from toolkit.bundle.manifest import TEXT_DECODER, Manifest, SizeRecord, TextRecord
from toolkit.tflite.reader import TfliteContent, read_tflite
from toolkit.tflite.records import ModelRecord, TensorRecord

_KV_BYTES_PER_VALUE = 4  # the format's caches are float32


@dataclass(frozen=True, slots=True)
class Footprint:
    """The layers and parameters of one size, and the memory that decoding needs."""

    layers: int
    parameters: Mapping[str, int]
    """Parameters by group: `text` (without the output matrix, which is the token embedding) and both embedding tables.

    A size that reads all weights of the bundle has the parameters that the manifest states; the other sizes have fewer,
    by the weights that they do not read.
    """
    bytes_per_token: Mapping[str, int]
    """Bytes of weights and scales that each decoded token reads, by component, the largest first: the first word of a
    weight's name after its layer, such as `mlp`; `lm_head` is the output matrix.
    The two rows that are read from the embedding tables are not included."""
    kv_cache_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes read for each decoded token: every weight of the decode graph, including the output matrix."""
        return sum(self.bytes_per_token.values())

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights and KV caches; the embedding tables stay on flash."""
        return self.weight_bytes + self.kv_cache_bytes


def step_weights(model: ModelRecord, signature: str) -> Mapping[str, int]:
    """The bytes of each weight that a step reads, including its block scales, by the weight's name.

    The file's header is enough; the scales of rows, which are stored in it, are not counted.
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


def read_types(model: ModelRecord, *signatures: str) -> Mapping[ElementName, int]:
    """How many of the weights that some steps read each element type has; block scales are not counted."""
    names = {element.tensor_type: element.name for element in map(element_of, element_names())}
    read: dict[int, TensorRecord] = {}
    for graph in (model.subgraphs[model.signatures.index(signature)] for signature in signatures):
        scales = {t.quantization.block_scales_tensor for t in graph.tensors if t.quantization is not None}
        stored = (t for i, t in enumerate(graph.tensors) if model.buffers[t.buffer].offset_bytes and i not in scales)
        read |= {tensor.buffer: tensor for tensor in stored if tensor.type in names}
    counts: Counter[ElementName] = Counter()
    for tensor in read.values():
        counts[names[tensor.type]] += math.prod(tensor.shape)
    return counts


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


def _weights(decoder: TfliteContent, size: SizeRecord) -> Mapping[int, int]:
    """The number of values of each weight that a step of a size reads, by its buffer; block scales are left out."""
    # Weights follow the file's header; what is stored in the header are constants.
    tensors, buffers = decoder.graph(size.decode).tensors, decoder.model.buffers
    scales = {t.quantization.block_scales_tensor for t in tensors if t.quantization is not None}
    without = {tensors[index].buffer for index in scales if index is not None}
    return {t.buffer: math.prod(t.shape) for t in tensors if buffers[t.buffer].offset_bytes and t.buffer not in without}


def _footprint(decoder: TfliteContent, text: TextRecord, size: SizeRecord, parameters: int) -> Footprint:
    components: Counter[str] = Counter()
    for weight, size_bytes in step_weights(decoder.model, size.decode).items():
        components[component_of(weight)] += size_bytes
    return Footprint(
        layers=len(size.layers),
        parameters={
            "text": parameters,
            "token_embedding": text.vocab_size * text.hidden_size,
            "per_layer_embedding": text.ple_vocab_size * text.ple_size * len(size.layers),
        },
        bytes_per_token=dict(components.most_common()),
        kv_cache_bytes=sum(2 * math.prod(cache.shape) * _KV_BYTES_PER_VALUE for cache in text.kv_caches),
    )


def component_of(weight: str) -> str:
    """The component of the decoder that a weight, or its scales, belongs to.

    >>> component_of("layers.12.mlp.gate_proj.1.weight"), component_of("lm_head.weight")
    ('mlp', 'lm_head')
    """
    return re.sub(r"^layers\.\d+\.", "", weight).partition(".")[0]
