"""The text tensors of Gemma 3n, and the shape that each must have."""

from __future__ import annotations

from converters.gemma.tensors import decoder_tensors
from converters.gemma3n.config.text import TextConfig


def text_tensors(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor that the text model needs."""
    tensors, hidden = decoder_tensors(config), config.hidden_size
    for index in range(config.altup_num_inputs - 1):
        tensors[f"altup_projections.{index}.weight"] = (hidden, hidden)
        tensors[f"altup_unembed_projections.{index}.weight"] = (hidden, hidden)
    names = _layer_tensors(config)
    return tensors | {
        f"layers.{index}.{name}": shape for index in range(config.num_layers) for name, shape in names.items()
    }


def _layer_tensors(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of each layer that the other Gemma models do not have."""
    hidden, streams = config.hidden_size, config.altup_num_inputs
    return {
        "altup.correct_output_scale": (hidden,),
        "altup.correction_coefs.weight": (streams, streams),
        "altup.prediction_coefs.weight": (streams * streams, streams),
        "altup.modality_router.weight": (streams, hidden),
        "altup.router_norm.weight": (hidden,),
        "laurel.linear_left.weight": (config.laurel_rank, hidden),
        "laurel.linear_right.weight": (hidden, config.laurel_rank),
        "laurel.post_laurel_norm.weight": (hidden,),
    }
