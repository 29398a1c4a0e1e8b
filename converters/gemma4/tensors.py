"""The text tensors of Gemma 4, and the shape that each must have."""

from __future__ import annotations

from converters.gemma.tensors import decoder_tensors
from converters.gemma4.config import TextConfig

LAYER_SCALAR = "layer_scalar"
"""The factor that scales the residual stream after a layer: f32[1]. In transformers it is a buffer, so its name has no
suffix `.weight`."""


def text_tensors(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor that the text model needs."""
    scalars = {f"layers.{index}.{LAYER_SCALAR}": (1,) for index in range(config.num_layers)}
    return decoder_tensors(config) | scalars
