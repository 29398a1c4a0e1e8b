"""A compact Gemma 4 text model in torch for training, and its first weights, made from those of the tiny Gemma 3n.

Weights are in a dict under Hugging Face's names (`model.layers.3.mlp.gate_proj.weight`, ...). train4.py compares this
model with transformers' Gemma4ForCausalLM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from model import Weights, attend_locally, layer_weights, rms, rotate
from torch import Tensor

HIDDEN, LAYERS, FFN, HEADS, KV_HEADS, WINDOW = 256, 10, 256, 4, 2, 64
PLE, VOCAB, SOFTCAP, EPS, KV_LAYERS, MAX_POSITIONS = 64, 3080, 30.0, 1e-6, 6, 32768
TYPES = ("sliding_attention", "full_attention") * (LAYERS // 2)
HEAD_DIM = {"sliding_attention": 64, "full_attention": 128}
THETA = {"sliding_attention": 1e4, "full_attention": 1e6}
ROTATED = {"sliding_attention": 32, "full_attention": 16}
"""How many angles of a head turn with the position: all of a sliding layer, a quarter of a full one."""

RopeTable = tuple[Tensor, Tensor]


def ffn_size(index: int) -> int:
    """The layers that read another's keys and values are twice as wide (use_double_wide_mlp)."""
    return FFN if index < KV_LAYERS else 2 * FFN


def rope_table(length: int, kind: str, device: torch.device) -> RopeTable:
    """Cosines and sines [length, head_dim / 2]; the angles of a full layer after the first ROTATED are zero."""
    half = HEAD_DIM[kind] // 2
    frequencies = THETA[kind] ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    frequencies = torch.where(torch.arange(half, device=device) < ROTATED[kind], frequencies, 0.0)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def layer(
    w: Weights, x: Tensor, ple: Tensor, rope: RopeTable, window: int | None, shared: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One decoder layer. x: [batch, length, HIDDEN]; ple: [batch, length, PLE].

    `w`: the layer's weights without prefix; `shared`: the keys and values [batch, KV_HEADS, length, head_dim] of
    another layer, for one that has none.
    """
    head_dim = w["self_attn.q_norm.weight"].shape[0]

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    normed = rms(x, w["input_layernorm.weight"])
    q = rotate(rms(heads(F.linear(normed, w["self_attn.q_proj.weight"])), w["self_attn.q_norm.weight"]), *rope)
    if shared is None:
        k = rms(heads(F.linear(normed, w["self_attn.k_proj.weight"])), w["self_attn.k_norm.weight"])
        shared = (rotate(k, *rope), rms(heads(F.linear(normed, w["self_attn.v_proj.weight"]))))
    k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in shared)
    if window is None:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    else:
        attended = attend_locally(q, k, v, window)
    attended = F.linear(attended.transpose(1, 2).flatten(2), w["self_attn.o_proj.weight"])
    x = x + rms(attended, w["post_attention_layernorm.weight"])

    normed = rms(x, w["pre_feedforward_layernorm.weight"])
    gate = F.gelu(F.linear(normed, w["mlp.gate_proj.weight"]), approximate="tanh")
    down = F.linear(gate * F.linear(normed, w["mlp.up_proj.weight"]), w["mlp.down_proj.weight"])
    x = x + rms(down, w["post_feedforward_layernorm.weight"])

    gate = F.gelu(F.linear(x, w["per_layer_input_gate.weight"]), approximate="tanh")
    projected = F.linear(gate * ple, w["per_layer_projection.weight"])
    x = x + rms(projected, w["post_per_layer_input_norm.weight"])
    return x * w["layer_scalar"], shared


def embed_inputs(w: Weights, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [batch, length, HIDDEN] and per-layer inputs [batch, length, LAYERS, PLE] of ids [batch, length]."""
    embedded = F.embedding(ids, w["model.embed_tokens.weight"]) * math.sqrt(HIDDEN)
    table = F.embedding(ids, w["model.embed_tokens_per_layer.weight"]) * math.sqrt(PLE)
    projected = F.linear(embedded, w["model.per_layer_model_projection.weight"]) * HIDDEN**-0.5
    projected = rms(projected.unflatten(-1, (LAYERS, PLE)), w["model.per_layer_projection_norm.weight"])
    return embedded, (projected + table.unflatten(-1, (LAYERS, PLE))) * math.sqrt(0.5)


def unembed(w: Weights, x: Tensor) -> Tensor:
    """Logits f32 [batch, length, VOCAB]."""
    logits = F.linear(rms(x, w["model.norm.weight"]), w["model.embed_tokens.weight"])
    return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)


def loss_of(w: Weights, x: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
    """Mean cross entropy; `shares` (f32, shaped like the targets) weight the targets."""
    losses = F.cross_entropy(unembed(w, x).flatten(0, 1), targets.flatten(), reduction="none") * shares.flatten()
    return losses.sum() / shares.sum().clamp(min=1.0)


class Functions:
    """The three parts of the forward pass, compiled or not."""

    def __init__(self, *, compiled: bool) -> None:
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
        wrap = partial(torch.compile, dynamic=False) if compiled else (lambda function: function)
        self.embed, self.layer, self.loss = (wrap(function) for function in (embed_inputs, layer, loss_of))


def head_weights(w: Weights) -> Weights:
    return {name: tensor for name, tensor in w.items() if ".layers." not in name}


def run_layers(functions: Functions, w: Weights, ids: Tensor) -> Tensor:
    """The last layer's output [batch, length, HIDDEN]; the length is a multiple of WINDOW."""
    x, ple = functions.embed(head_weights(w), ids)
    ropes = {kind: rope_table(ids.shape[1], kind, ids.device) for kind in HEAD_DIM}
    shared: dict[str, tuple[Tensor, Tensor]] = {}
    for i, kind in enumerate(TYPES):
        x, shared[kind] = functions.layer(
            layer_weights(w, i), x, ple[:, :, i], ropes[kind], WINDOW if kind == "sliding_attention" else None,
            shared[kind] if i >= KV_LAYERS else None,
        )  # fmt: skip
    return x


def forward_logits(w: Weights, ids: Tensor) -> Tensor:
    return unembed(w, run_layers(Functions(compiled=False), w, ids))


def forward_loss(functions: Functions, w: Weights, rows: Tensor, shares: Tensor) -> Tensor:
    """Mean cross entropy of predicting rows[:, 1:] from rows[:, :-1]; `shares`: how much each of rows[:, 1:] counts."""
    loss: Tensor = functions.loss(head_weights(w), run_layers(functions, w, rows[:, :-1]), rows[:, 1:], shares)
    return loss
