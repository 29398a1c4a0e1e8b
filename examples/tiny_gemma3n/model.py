"""A compact Gemma 3n text model in torch for training: any MatFormer size of one set of weights.

Weights are in a dict under Hugging Face's names (`model.layers.3.mlp.gate_proj.weight`, ...). train.py compares this
model with transformers' Gemma3nForCausalLM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, LAYERS, FFN, HEADS, KV_HEADS, HEAD_DIM, WINDOW = 256, 10, 512, 4, 2, 64, 64
PLE, LAUREL, ALTUP, VOCAB, PLE_VOCAB, SOFTCAP, EPS = 64, 16, 4, 3328, 3072, 30.0, 1e-6
KV_LAYERS, COEF_CLIP, SPARSITY, SPARSE_LAYERS, MAX_POSITIONS = 6, 120.0, 0.95, 3, 32768
SPARSITY_Z = 1.6448536269514722  # Phi^-1(0.95)
THETA = {"sliding_attention": 1e4, "full_attention": 1e6}
TYPES = ("sliding_attention", "full_attention") * (LAYERS // 2)

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """A MatFormer slice: the layers of the large model that it keeps, and the feed-forward width of each."""

    name: str
    layers: tuple[int, ...]
    ffn_sizes: tuple[int, ...]


ALL = tuple(range(LAYERS))
SIZES = (
    Size("small", (0, 1, 2, 3, 4, 5, 8, 9), (256,) * 8),
    Size("mid-narrow", ALL, (256,) * 10),
    Size("mid-wide", ALL, (256, 256, 512, 512, 512, 512, 512, 512, 256, 256)),
    Size("large", ALL, (512,) * 10),
)


def initial_weights(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    weights = {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN, std=0.05),
        "model.embed_tokens_per_layer.weight": normal(PLE_VOCAB, LAYERS * PLE, std=0.05),
        "model.per_layer_model_projection.weight": normal(LAYERS * PLE, HIDDEN, std=HIDDEN**-0.5),
        "model.per_layer_projection_norm.weight": torch.ones(PLE),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for j in range(ALTUP - 1):
        for kind in ("projections", "unembed_projections"):
            weights[f"model.altup_{kind}.{j}.weight"] = normal(HIDDEN, HIDDEN, std=HIDDEN**-0.5)
    for i in range(LAYERS):
        linear = {
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "mlp.gate_proj": (FFN, HIDDEN),
            "mlp.up_proj": (FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
            "laurel.linear_left": (LAUREL, HIDDEN),
            "laurel.linear_right": (HIDDEN, LAUREL),
            "per_layer_input_gate": (PLE, HIDDEN),
            "per_layer_projection": (HIDDEN, PLE),
        }
        layer = {f"{name}.weight": normal(*shape, std=shape[1] ** -0.5) for name, shape in linear.items()}
        # The router's inputs are divided by HIDDEN: for the routing to depend on the token, its weights must be large.
        layer["altup.modality_router.weight"] = normal(ALTUP, HIDDEN, std=1.0)
        layer["altup.prediction_coefs.weight"] = normal(ALTUP**2, ALTUP, std=0.02)
        layer["altup.correction_coefs.weight"] = normal(ALTUP, ALTUP, std=0.02)
        layer["altup.correct_output_scale"] = torch.ones(HIDDEN)
        for name, size, value in (
            ("altup.router_norm", HIDDEN, 1.0),
            ("input_layernorm", HIDDEN, 1.0),
            ("post_attention_layernorm", HIDDEN, 0.5),
            ("pre_feedforward_layernorm", HIDDEN, 1.0),
            ("post_feedforward_layernorm", HIDDEN, 0.5),
            ("post_per_layer_input_norm", HIDDEN, 0.2),
            ("laurel.post_laurel_norm", HIDDEN, 0.3),
            ("self_attn.q_norm", HEAD_DIM, 0.35),  # the attention scale is 1: q_norm carries 1/sqrt(head_dim)
            ("self_attn.k_norm", HEAD_DIM, 0.35),
        ):
            layer[f"{name}.weight"] = torch.full((size,), value)
        weights |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return weights


def rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return (wide if weight is None else wide * weight.float()).to(x.dtype)


def match_magnitude(x: Tensor, reference: Tensor) -> Tensor:
    """x scaled to the root mean square of `reference` (last axis)."""
    wide, target = x.float(), reference.float().square().mean(-1, keepdim=True).sqrt()
    return (wide * target * torch.rsqrt(wide.square().mean(-1, keepdim=True).clamp(min=1e-5))).to(x.dtype)


def rope_table(length: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = theta ** (-torch.arange(0, HEAD_DIM, 2, device=device, dtype=torch.float32) / HEAD_DIM)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [batch, heads, length, head_dim]; half-split rotation."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)


def attend_locally(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Sliding-window attention in blocks: the queries of a block see that block and the previous one.

    The length must be a multiple of the window.
    """
    count, blocks = q.shape[1], q.shape[2] // window

    def pairs(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, window, 0)).unflatten(2, (blocks + 1, window))
        return torch.cat((x[:, :, :-1], x[:, :, 1:]), 3).flatten(1, 2)

    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)
    inside = (key <= query) & (key > query - window)
    first = torch.arange(blocks, device=q.device)[:, None, None] == 0  # its block before is padding
    mask = (inside & ~(first & (key < window))).repeat(count, 1, 1)
    q = q.unflatten(2, (blocks, window)).flatten(1, 2)
    out = F.scaled_dot_product_attention(q, pairs(k), pairs(v), attn_mask=mask[None], scale=1.0)
    return out.unflatten(1, (count, blocks)).flatten(2, 3)


def router(w: Weights, x: Tensor) -> Tensor:
    normed = rms(x, w["altup.router_norm.weight"]) / HIDDEN
    return torch.tanh(F.linear(normed, w["altup.modality_router.weight"]).float())


def layer(
    w: Weights,
    streams: tuple[Tensor, ...],
    ple: Tensor,
    rope: tuple[Tensor, Tensor],
    window: int | None,
    shared: tuple[Tensor, Tensor] | None,
    ffn_size: int,
    sparse: bool,
    mask: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """One decoder layer. `streams`: ALTUP x [batch, length, HIDDEN]; `w`: the layer's weights without prefix.

    `mask`: bool[length, keys], only for streams of the last positions in a layer that reads the keys of another.
    """
    coefs = F.linear(router(w, streams[0]), w["altup.prediction_coefs.weight"].float().clamp(-COEF_CLIP, COEF_CLIP))
    predicted = []
    for out in range(ALTUP):
        total = streams[out].float()
        for j in range(ALTUP):
            total = total + coefs[..., out * ALTUP + j, None] * streams[j].float()
        predicted.append(total.to(streams[0].dtype))
    active = predicted[0]
    normed = rms(active, w["input_layernorm.weight"])
    low = F.linear(F.linear(normed, w["laurel.linear_left.weight"]), w["laurel.linear_right.weight"])
    laurel = normed + rms(low, w["laurel.post_laurel_norm.weight"])

    q = heads(F.linear(normed, w["self_attn.q_proj.weight"]))
    q = rotate(rms(q, w["self_attn.q_norm.weight"]), *rope)
    if shared is None:
        k = heads(F.linear(normed, w["self_attn.k_proj.weight"]))
        k = rotate(rms(k, w["self_attn.k_norm.weight"]), *rope)
        shared = (k, rms(heads(F.linear(normed, w["self_attn.v_proj.weight"]))))
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in shared)
    if window is None:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=1.0)
    else:
        attended = attend_locally(q, k, v, window)
    attended = F.linear(attended.transpose(1, 2).flatten(2), w["self_attn.o_proj.weight"])
    gated = active + rms(attended, w["post_attention_layernorm.weight"])
    hidden = (gated + laurel) * math.sqrt(0.5)

    normed = rms(hidden, w["pre_feedforward_layernorm.weight"])
    gate = F.linear(normed, w["mlp.gate_proj.weight"][:ffn_size])
    if sparse:  # the statistics are over the active width only
        wide = gate.float()
        cutoff = wide.mean(-1, keepdim=True) + SPARSITY_Z * wide.std(-1, keepdim=True, unbiased=False)
        gate = F.relu(wide - cutoff).to(gate.dtype)
    up = F.linear(normed, w["mlp.up_proj.weight"][:ffn_size])
    down = F.linear(F.gelu(gate, approximate="tanh") * up, w["mlp.down_proj.weight"][:, :ffn_size])
    activated = hidden + rms(down, w["post_feedforward_layernorm.weight"])

    clipped = w["altup.correction_coefs.weight"].float().clamp(-COEF_CLIP, COEF_CLIP)
    coefs = F.linear(router(w, activated), clipped) + 1.0
    innovation = activated.float() - active.float()
    corrected = [(predicted[j].float() + coefs[..., j, None] * innovation).to(active.dtype) for j in range(ALTUP)]
    x = F.linear(corrected[0] * w["altup.correct_output_scale"], w["per_layer_input_gate.weight"])
    x = F.linear(F.gelu(x, approximate="tanh") * ple, w["per_layer_projection.weight"])
    x = rms(x, w["post_per_layer_input_norm.weight"])
    return (corrected[0], *(stream + x for stream in corrected[1:])), shared


def layer_weights(weights: Weights, index: int) -> Weights:
    prefix = f"model.layers.{index}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def embed_inputs(w: Weights, ids: Tensor, given: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
    """The AltUp streams and per-layer inputs [batch, length, LAYERS, PLE] of ids [batch, length].

    `given`: [batch, length, HIDDEN], the towers' embeddings for ids that are not of text (PLE_VOCAB and above).
    """
    embedded = F.embedding(ids, w["model.embed_tokens.weight"]) * math.sqrt(HIDDEN)
    if given is not None:
        embedded = torch.where(ids[..., None] < PLE_VOCAB, embedded, given)
    rows = torch.where(ids < PLE_VOCAB, ids, 0)
    table = F.embedding(rows, w["model.embed_tokens_per_layer.weight"]) * math.sqrt(PLE)
    projected = F.linear(embedded, w["model.per_layer_model_projection.weight"]) * HIDDEN**-0.5
    projected = rms(projected.unflatten(-1, (LAYERS, PLE)), w["model.per_layer_projection_norm.weight"])
    ple = (projected + table.unflatten(-1, (LAYERS, PLE))) * math.sqrt(0.5)
    others = (F.linear(embedded, w[f"model.altup_projections.{j}.weight"]) for j in range(ALTUP - 1))
    return (embedded, *(match_magnitude(x, embedded) for x in others)), ple


def unembed(w: Weights, streams: tuple[Tensor, ...]) -> Tensor:
    """Logits f32 [batch, length, VOCAB]."""
    total = streams[0].float()
    for j in range(ALTUP - 1):
        x = F.linear(streams[j + 1], w[f"model.altup_unembed_projections.{j}.weight"])
        total = total + match_magnitude(x, streams[0]).float()
    normed = rms((total / ALTUP).to(streams[0].dtype), w["model.norm.weight"])
    logits = F.linear(normed, w["model.embed_tokens.weight"])
    return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)


class Functions:
    """The three parts of the forward pass, compiled or not."""

    def __init__(self, *, compiled: bool) -> None:
        torch._dynamo.config.recompile_limit = 32  # a layer has 12 forms: window, width, sparsity, K/V
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
        wrap = partial(torch.compile, dynamic=False) if compiled else (lambda function: function)
        self.embed, self.layer, self.unembed, self.loss = (wrap(f) for f in (embed_inputs, layer, unembed, loss_of))


def loss_of(w: Weights, streams: tuple[Tensor, ...], targets: Tensor, shares: Tensor | None = None) -> Tensor:
    """Mean cross entropy; if `shares` are given (f32, shaped like the targets), they weight the targets."""
    logits = unembed(w, streams).flatten(0, 1)
    if shares is None:
        return F.cross_entropy(logits, targets.flatten())
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none") * shares.flatten()
    return losses.sum() / shares.sum().clamp(min=1.0)


def run_layers(
    functions: Functions, w: Weights, ids: Tensor, size: Size, given: Tensor | None = None
) -> tuple[Tensor, ...]:
    streams: tuple[Tensor, ...]
    streams, ple = functions.embed({k: v for k, v in w.items() if ".layers." not in k}, ids, given)
    length = ids.shape[1]
    ropes = {kind: rope_table(length, theta, ids.device) for kind, theta in THETA.items()}
    shared: dict[str, tuple[Tensor, Tensor]] = {}
    for i, ffn_size in zip(size.layers, size.ffn_sizes, strict=True):
        kind = TYPES[i]
        streams, kv = functions.layer(
            layer_weights(w, i), streams, ple[:, :, i], ropes[kind], WINDOW if kind == "sliding_attention" else None,
            shared[kind] if i >= KV_LAYERS else None, ffn_size, i < SPARSE_LAYERS,
        )  # fmt: skip
        shared[kind] = kv
    return streams


def forward_logits(w: Weights, ids: Tensor, size: Size) -> Tensor:
    functions = Functions(compiled=False)
    return unembed(w, run_layers(functions, w, ids, size))


def forward_loss(
    functions: Functions,
    w: Weights,
    rows: Tensor,
    size: Size,
    given: Tensor | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of predicting rows[:, 1:] from rows[:, :-1].

    `given`: the towers' embeddings for rows[:, :-1] (see embed_inputs); `shares`: how much each of rows[:, 1:] counts.
    """
    head = {k: v for k, v in w.items() if ".layers." not in k}
    return functions.loss(head, run_layers(functions, w, rows[:, :-1], size, given), rows[:, 1:], shares)
