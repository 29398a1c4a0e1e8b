"""The tensors of a Gemma 4 drafter, and the shape that each must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from converters.gemma4.assistant.config import AssistantConfig
from converters.gemma4.tensors import LAYER_SCALAR
from converters.huggingface.safetensors import TensorInfo
from converters.huggingface.tensor_reader import FLOAT_DTYPES
from toolkit.base.errors import CheckpointError

EMBEDDING = "embed_tokens.weight"
CENTROIDS, TOKEN_ORDERING = "masked_embedding.centroids.weight", "masked_embedding.token_ordering"
"""The clusters of tokens. They are checked and left out: all tokens are scored."""
_HEAD = "lm_head.weight"
_PREFIX = "model."


def assistant_tensors(config: AssistantConfig) -> dict[str, tuple[int, ...]]:
    """The name, without the decoder's prefix, and shape of each tensor."""
    decoder = config.decoder
    hidden = decoder.hidden_size
    tensors: dict[str, tuple[int, ...]] = {
        EMBEDDING: (decoder.vocab_size, hidden),
        "norm.weight": (hidden,),
        "pre_projection.weight": (hidden, 2 * config.target_hidden_size),
        "post_projection.weight": (config.target_hidden_size, hidden),
    }
    for index, layer in enumerate(decoder.layers):
        dim = decoder.heads(layer.attention).dim
        names: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "pre_feedforward_layernorm.weight": (hidden,),
            "post_feedforward_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (decoder.num_heads * dim, hidden),
            "self_attn.o_proj.weight": (hidden, decoder.num_heads * dim),
            "self_attn.q_norm.weight": (dim,),
            "mlp.gate_proj.weight": (layer.ffn_size, hidden),
            "mlp.up_proj.weight": (layer.ffn_size, hidden),
            "mlp.down_proj.weight": (hidden, layer.ffn_size),
            LAYER_SCALAR: (1,),
        }
        tensors |= {f"layers.{index}.{name}": shape for name, shape in names.items()}
    if config.num_centroids is not None:
        tensors |= {CENTROIDS: (config.num_centroids, hidden), TOKEN_ORDERING: (decoder.vocab_size,)}
    return tensors


def require_tensors(
    needed: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, TensorInfo],
    is_readable: Callable[[TensorInfo], bool],
    what: str,
) -> tuple[dict[str, TensorInfo], TensorInfo | None]:
    """The tensors by name, and a saved copy of the output matrix; one CheckpointError lists what is not as needed."""
    found = {name.removeprefix(_PREFIX): info for name, info in stored.items()}
    head = found.pop(_HEAD, None)
    faults = [f"no {name}" for name in needed if name not in found]
    faults += [f"unknown {info.name}" for name, info in found.items() if name not in needed]
    for name, info in found.items():
        if name in needed and info.shape != needed[name]:
            faults.append(f"{name} {list(info.shape)} instead of {list(needed[name])}")
        elif name != TOKEN_ORDERING and not is_readable(info):
            faults.append(f"{name} of {info.dtype}, not {', '.join(FLOAT_DTYPES)}")
    if faults:
        more = f"; {len(faults) - 3} more" if len(faults) > 3 else ""
        wanted = "exactly the tensors that config.json implies"
        raise CheckpointError("tensors", file=what, found="; ".join(faults[:3]) + more, wanted=wanted)
    return found, head
