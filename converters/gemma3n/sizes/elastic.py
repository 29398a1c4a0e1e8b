"""Several MatFormer sizes that share weights: the widest model, and the parts of it that each size runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from converters.gemma.graphs.text.decoder_step import DecoderSize
from converters.gemma.tensors import PER_LAYER_MODEL_PROJECTION
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.sizes.matformer import slice_config
from converters.slices import Slice
from toolkit.base.errors import SliceError


@dataclass(frozen=True, slots=True)
class Elastic:
    """`slices[i]` is `sizes[i]` with signatures that start with `prefixes[i]`; `config` is the widest model's."""

    widest: Slice
    config: TextConfig
    slices: tuple[Slice, ...]
    sizes: tuple[DecoderSize[TextConfig], ...]
    prefixes: tuple[str, ...]


def combine(config: TextConfig, slices: Sequence[Slice]) -> Elastic:
    """Combine slices, the default size's first; SliceError if they cannot share KV caches, or if names collide.

    The widest model has every layer that any size keeps, at its largest width. Each of its feed-forward networks is cut
    at the width of each size, so that a size runs the first pieces.
    """
    configs = [slice_config(config, slice_) for slice_ in slices]
    layers = sorted({layer for slice_ in slices for layer in slice_.layers})
    widths = {
        layer: sorted(
            {dict(zip(slice_.layers, slice_.ffn_sizes, strict=True)).get(layer, 0) for slice_ in slices} - {0}
        )
        for layer in layers
    }
    widest = Slice("widest", tuple(layers), tuple(widths[layer][-1] for layer in layers))
    _check_caches(config, slices)
    sizes = tuple(
        DecoderSize(size_config, tuple(layers.index(layer) for layer in slice_.layers), _segments(slice_, widths))
        for slice_, size_config in zip(slices, configs, strict=True)
    )
    return Elastic(widest, slice_config(config, widest), tuple(slices), sizes, _prefixes(slices))


def planned_name(layers: Sequence[int], widest: int, tensor: str) -> str | None:
    """The widest model's name for a tensor of the size that keeps these layers; `widest`: its number of layers.

    None for the projection that has rows for all layers, in a size that drops some.

    >>> planned_name((0, 2), 3, "layers.1.mlp.up_proj.weight")
    'layers.2.mlp.up_proj.weight'
    """
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", tensor)
    if match is not None:
        return f"layers.{layers[int(match[1])]}.{match[2]}"
    return None if tensor == PER_LAYER_MODEL_PROJECTION and len(layers) < widest else tensor


def _segments(slice_: Slice, widths: dict[int, list[int]]) -> tuple[tuple[int, ...], ...]:
    """The widths of the feed-forward pieces that a size runs in each of its layers.

    >>> _segments(Slice("mid", (0, 2), (8, 16)), {0: [8, 16], 1: [16], 2: [8, 16]})
    ((8,), (8, 8))
    """
    segments = []
    for layer, width in zip(slice_.layers, slice_.ffn_sizes, strict=True):
        stops = [w for w in widths[layer] if w <= width]
        segments.append(tuple(stop - start for start, stop in zip([0, *stops], stops, strict=False)))
    return tuple(segments)


def _check_caches(config: TextConfig, slices: Sequence[Slice]) -> None:
    owners = set(config.kv_layers)
    first = slices[0]
    for slice_ in slices[1:]:
        if owners & set(slice_.layers) != owners & set(first.layers):
            raise SliceError(
                f"sizes {first.name} and {slice_.name}",
                found="different layers that own a KV cache",
                wanted="the same layers, so that a conversation can change its size",
                remedy="convert them to two bundles",
            )


def _prefixes(slices: Sequence[Slice]) -> tuple[str, ...]:
    """The prefixes of signatures: empty for the default size, otherwise the size's name in allowed characters.

    >>> _prefixes([Slice("E4B", (), ()), Slice("E2.98B (block-level)", (), ())])
    ('', 'E2.98B-block-level_')
    """
    names = [re.sub(r"[^A-Za-z0-9.]+", "-", slice_.name).strip("-.") for slice_ in slices]
    prefixes = ("", *(f"{name}_" for name in names[1:]))
    for name, slice_ in zip(names, slices, strict=True):
        if not name or names.count(name) > 1 or name.startswith("prefill"):
            raise SliceError("size name", found=slice_.name, wanted="distinct names that start with a letter or digit")
    return prefixes
