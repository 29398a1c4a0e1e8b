"""The first weights of the tiny Gemma 4: those of the tiny Gemma 3n wherever the two architectures agree.

Carried over as they are: token and per-layer embeddings, the projections of per-layer embeddings, the sliding layers'
attention, norms. Feed-forward networks take the first FFN units of a layer that is not doubled: as a MatFormer, the
Gemma 3n works with these alone. Heads of the full layers are twice as wide here: the 64 components of a head of
Gemma 3n are placed so that those whose angle turns at a frequency that this model has too keep it; those that turn
slower do not turn here. AltUp and LAuReL have no counterpart.
"""

from __future__ import annotations

import torch
from model import Weights, layer_weights
from model4 import HEAD_DIM, HEADS, KV_HEADS, KV_LAYERS, LAYERS, TYPES, VOCAB, ffn_size
from torch import Tensor

TURN, END_OF_TURN = 4, 5
KEPT = 3072
"""Entries that both tokenizers have; the tokens after them are new here, and begin as the token that opens a turn."""
NEW = 0.02
"""The standard deviation of the components of wide heads that Gemma 3n lacks, as a share of the others'."""
POST_NORM = {"post_attention_layernorm": 1.0, "post_feedforward_layernorm": 1.0, "post_per_layer_input_norm": 0.3}
LAYER_SCALAR = 0.9


def wide_places() -> Tensor:
    """The place in a head of 128 of each component of a head of 64.

    Component j turns with j + 32 there, at theta^(-j/32), and with j + 64 here, at theta^(-j/64) if j < 16: so 0 to 7
    become 0, 2, ..., 14, and the others take places that do not turn.
    """
    firsts = [2 * j if j < 8 else j + 8 for j in range(32)]
    return torch.tensor(firsts + [first + 64 for first in firsts])


def widen_rows(matrix: Tensor, heads: int, generator: torch.Generator) -> Tensor:
    """A projection [heads * 64, n] to wide heads [heads * 128, n]; new rows are small and random."""
    narrow = matrix.unflatten(0, (heads, 64))
    wide = torch.randn(heads, 128, matrix.shape[1], generator=generator) * (NEW * narrow.std())
    wide[:, wide_places()] = narrow
    return wide.flatten(0, 1)


def widen_norm(weight: Tensor) -> Tensor:
    """The weight of a norm over a head. The mean square over 128 components is half of that over 64."""
    wide = torch.full((128,), weight.mean().item())
    wide[wide_places()] = weight
    return wide * 0.5**0.5


def attention(old: Weights, index: int, generator: torch.Generator) -> Weights:
    names = ["q_proj", "q_norm", "o_proj"] + (["k_proj", "v_proj", "k_norm"] if index < KV_LAYERS else [])
    kept = {name: old[f"self_attn.{name}.weight"] for name in names}
    if HEAD_DIM[TYPES[index]] == 128:
        for name in kept:
            if name.endswith("norm"):
                kept[name] = widen_norm(kept[name])
            elif name == "o_proj":  # the values, normalised over 128, are larger by the square root of two
                kept[name] = widen_rows(kept[name].T, HEADS, generator).T * 0.5**0.5
            else:
                kept[name] = widen_rows(kept[name], HEADS if name == "q_proj" else KV_HEADS, generator)
    return {f"self_attn.{name}.weight": tensor.contiguous() for name, tensor in kept.items()}


def carry_over(old: Weights, seed: int) -> Weights:
    """float32 weights of model4 from those of model (the text model's of the tiny Gemma 3n, in float32)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in ("embed_tokens", "embed_tokens_per_layer"):
        table = old[f"model.{name}.weight"]
        new = table[TURN] + torch.randn(VOCAB - KEPT, table.shape[1], generator=generator) * table.std() * 0.3
        weights[f"model.{name}.weight"] = torch.cat((table[:KEPT], new))
    for name in ("per_layer_model_projection", "per_layer_projection_norm", "norm"):
        weights[f"model.{name}.weight"] = old[f"model.{name}.weight"].clone()
    for index in range(LAYERS):
        before = layer_weights(old, index)
        layer = attention(before, index, generator)
        for name in ("gate_proj", "up_proj"):
            layer[f"mlp.{name}.weight"] = before[f"mlp.{name}.weight"][: ffn_size(index)].clone()
        layer["mlp.down_proj.weight"] = before["mlp.down_proj.weight"][:, : ffn_size(index)].contiguous()
        for name in ("input_layernorm", "pre_feedforward_layernorm", *POST_NORM):
            layer[f"{name}.weight"] = before[f"{name}.weight"] * POST_NORM.get(name, 1.0)
        scale = before["altup.correct_output_scale"]
        layer["per_layer_input_gate.weight"] = before["per_layer_input_gate.weight"] * scale
        layer["per_layer_projection.weight"] = before["per_layer_projection.weight"].clone()
        layer["layer_scalar"] = torch.tensor([LAYER_SCALAR])
        weights |= {f"model.layers.{index}.{name}": tensor for name, tensor in layer.items()}
    return weights
