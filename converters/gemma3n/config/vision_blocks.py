"""Parses the blocks of MobileNet-V5 from timm's arch strings or decoded arguments, and computes their tensor shapes.

Source: timm 1.0.31 models/mobilenetv5.py, _efficientnet_builder.py and _efficientnet_blocks.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject, shorten

# From timm's _gen_mobilenet_v5. Letters: r repeats; a, k kernels of the depthwise convolutions before and after the
# expansion (er: of the expansion itself); s stride; e expansion; c channels; h heads; d head size; v key/value stride.
STAGES: tuple[tuple[str, ...], ...] = (
    ("er_r1_k3_s2_e4_c128", "er_r2_k3_s1_e4_c128"),
    (
        "uir_r1_a3_k5_s2_e6_c256",
        "uir_r1_a5_k0_s1_e4_c256",
        "uir_r1_a3_k0_s1_e4_c256",
        "uir_r1_a5_k0_s1_e4_c256",
        "uir_r1_a3_k0_s1_e4_c256",
    ),
    (
        "uir_r1_a5_k5_s2_e6_c640",
        "uir_r7_a5_k0_s1_e4_c640",
        "uir_r1_a0_k0_s1_e1_c640",
        *("mqa_r1_k3_h12_v2_s1_d64_c640", "uir_r1_a0_k0_s1_e2_c640") * 14,
    ),
    (
        "uir_r1_a5_k5_s2_e6_c1280",
        *("mqa_r1_k3_h16_s1_d96_c1280", "uir_r1_a0_k0_s1_e2_c1280") * 19,
    ),
)

MAX_WIDTH = 1 << 16
_MAX_KERNEL = 31
_MAX_BLOCKS = 1 << 10
_STAGE_COUNTS = (2, 4)  # two are fused; with five strides, timm's output stride of 32 would cause dilation


@dataclass(frozen=True, slots=True)
class EdgeResidual:
    """A full convolution that expands and a pointwise convolution that projects, with a residual if shapes allow it."""

    in_channels: int
    expanded: int
    channels: int
    kernel: int
    stride: int


@dataclass(frozen=True, slots=True)
class InvertedResidual:
    """Universal inverted residual: up to two depthwise convolutions around a pointwise expansion, then a projection.

    A kernel of 0 means no convolution. The middle convolution has the stride; if it is missing, the first one has it.
    """

    in_channels: int
    expanded: int
    channels: int
    start_kernel: int
    middle_kernel: int
    stride: int


@dataclass(frozen=True, slots=True)
class MultiQueryAttention:
    """Many query heads over one head of keys and values; with a stride, keys and values are of every other position."""

    channels: int
    heads: int
    head_dim: int
    kernel: int
    kv_stride: int


Block = EdgeResidual | InvertedResidual | MultiQueryAttention


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is not below nine tenths of `channels` (timm's make_divisible).

    >>> [round_channels(c) for c in (3, 24, 27, 35.2, 1280)]
    [8, 24, 32, 32, 1280]
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def parse_stages(
    table: Sequence[Iterable[str]], stem_channels: int, multiplier: float = 1.0
) -> tuple[tuple[Block, ...], ...]:
    """Parse timm's arch strings, one sequence of strings for each stage; CheckpointError if one is not supported.

    >>> parse_stages([["er_r1_k3_s2_e4_c16"], ["mqa_r1_k3_h4_v2_s1_d8_c16"]], 8)
    Traceback (most recent call last):
    toolkit.base.errors.CheckpointError: stage 1: found a first stride of 1, wanted 2: each stage halves the resolution
    """
    decoded = [
        [JsonObject(block, None, CheckpointError, f"block {text}") for text in stage for block in decode_block(text)]
        for stage in table
    ]
    return stages_of(decoded, stem_channels, multiplier)


_FIELDS = re.compile(r"([a-z]+)(\d+(?:\.\d+)?)")
# For each kind of block and letter: timm's argument, its type, and its default if the letter may be missing.
_ARGUMENTS: dict[str, dict[str, tuple[str, type, float | None]]] = {
    "er": {"k": ("exp_kernel_size", int, None), "e": ("exp_ratio", float, None), "p": ("pw_kernel_size", int, 1)},
    "uir": {
        "a": ("dw_kernel_size_start", int, 0),
        "k": ("dw_kernel_size_mid", int, None),
        "p": ("dw_kernel_size_end", int, 0),
        "e": ("exp_ratio", float, None),
    },
    "mqa": {
        "k": ("dw_kernel_size", int, None),
        "h": ("num_heads", int, None),
        "d": ("key_dim", int, None),
        "v": ("kv_stride", int, 1),
    },
}
_COMMON: dict[str, tuple[str, type, float | None]] = {"s": ("stride", int, None), "c": ("out_chs", int, None)}


def decode_block(text: str) -> list[dict[str, object]]:
    """Decode an arch string to timm's arguments, once for each repeat.

    >>> decode_block("uir_r1_a3_k5_s2_e6_c24")[0]["dw_kernel_size_mid"], len(decode_block("mqa_r2_k3_h4_s1_d8_c32"))
    (5, 2)
    """
    kind, *fields = text.split("_")
    if kind not in _ARGUMENTS:
        raise CheckpointError(f"block {shorten(text)}", found=f"the kind {kind!r}", wanted=" or ".join(_ARGUMENTS))
    letters = _ARGUMENTS[kind] | _COMMON
    given: dict[str, str] = {}
    for field in fields:
        match = _FIELDS.fullmatch(field)
        if match is None or match[1] not in (*letters, "r") or match[1] in given:
            wanted = f"each of {', '.join((*letters, 'r'))} once, with a number"
            raise CheckpointError(f"block {shorten(text)}", found=repr(field), wanted=wanted)
        given[match[1]] = match[2]
    arguments: dict[str, object] = {"block_type": kind}
    for letter, (name, number, default) in letters.items():
        if letter not in given and default is None:
            raise CheckpointError(f"block {shorten(text)}", found=f"no {letter} with a number")
        value = given.get(letter, default)
        arguments[name] = int(str(value)) if number is int and str(value).isdigit() else float(str(value))
    if kind == "mqa":
        arguments["value_dim"] = arguments["key_dim"]
    repeats = given.get("r", "")
    if not repeats.isdigit() or not 1 <= int(repeats) <= _MAX_BLOCKS:
        raise CheckpointError(f"block {shorten(text)}", found=f"r{repeats}", wanted=f"r and 1 to {_MAX_BLOCKS}")
    return [dict(arguments) for _ in range(int(repeats))]


def stages_of(
    tables: Sequence[Sequence[JsonObject]], stem_channels: int, multiplier: float
) -> tuple[tuple[Block, ...], ...]:
    low, high = _STAGE_COUNTS
    if not low <= len(tables) <= high or not all(0 < len(stage) <= _MAX_BLOCKS for stage in tables):
        found = f"stages of {[len(stage) for stage in tables]} blocks"
        raise CheckpointError("vision tower", found=shorten(found), wanted=f"{low} to {high} stages with blocks")
    channels, stages = stem_channels, []
    for number, table in enumerate(tables):
        stage: list[Block] = []
        for index, arguments in enumerate(table):
            block = _read_block(arguments, channels, multiplier, first=index == 0)
            stage.append(block)
            channels = block.channels
        first = stage[0]
        stride = 1 if isinstance(first, MultiQueryAttention) else first.stride
        if stride != 2:
            wanted = "2: each stage halves the resolution"
            raise CheckpointError(f"stage {number}", found=f"a first stride of {stride}", wanted=wanted)
        stages.append(tuple(stage))
    return tuple(stages)


def _read_block(arguments: JsonObject, in_channels: int, multiplier: float, *, first: bool) -> Block:
    kind = arguments.string("block_type")
    if kind not in _ARGUMENTS:
        arguments.refuse("block_type", kind, " or ".join(_ARGUMENTS))
    channels = round_channels(arguments.integer("out_chs", 1, MAX_WIDTH) * multiplier)
    stride = arguments.integer("stride", 1, 2)
    stride = stride if first else 1  # EfficientNetBuilder: only the first block of a stage may have a stride
    arguments.expect("act_layer", None)
    arguments.expect("noskip", False)
    arguments.expect("se_ratio", 0, 0.0)
    block: Block
    if kind == "mqa":
        block = _read_attention(arguments, in_channels, channels, stride)
    else:
        expanded = round_channels(in_channels * arguments.number("exp_ratio", 1e-2, 1e2))
        if kind == "er":
            arguments.expect("pw_kernel_size", 1)
            arguments.expect("force_in_chs", 0)
            block = EdgeResidual(in_channels, expanded, channels, _kernel(arguments, "exp_kernel_size", 1), stride)
        else:
            arguments.expect("dw_kernel_size_end", 0)
            kernels = _kernel(arguments, "dw_kernel_size_start"), _kernel(arguments, "dw_kernel_size_mid")
            if stride > 1 and not any(kernels):
                arguments.refuse("stride", stride, "1 in a block without a depthwise convolution")
            block = InvertedResidual(in_channels, expanded, channels, *kernels, stride)
    arguments.finish()
    return block


def _read_attention(arguments: JsonObject, in_channels: int, channels: int, stride: int) -> MultiQueryAttention:
    if channels != in_channels or stride != 1:
        found = f"{in_channels} to {channels} channels, stride {stride}"
        arguments.refuse("block_type", f"mqa of {found}", "an unchanged number of channels and stride 1")
    heads, head_dim = arguments.integer("num_heads", 1, MAX_WIDTH), arguments.integer("key_dim", 1, MAX_WIDTH)
    arguments.expect("value_dim", head_dim)
    kv_stride = arguments.integer("kv_stride", 1, 2)
    return MultiQueryAttention(channels, heads, head_dim, _kernel(arguments, "dw_kernel_size", 1), kv_stride)


def _kernel(arguments: JsonObject, key: str, low: int = 0) -> int:
    kernel = arguments.integer(key, low, _MAX_KERNEL)
    if kernel and kernel % 2 == 0:
        arguments.refuse(key, kernel, "an odd number, or 0 for no convolution")
    return kernel


def block_tensors(block: Block) -> dict[str, tuple[int, ...]]:
    """The name (without the block's prefix) and shape of each tensor of a block."""
    if isinstance(block, EdgeResidual):
        return {
            "conv_exp.weight": (block.expanded, block.in_channels, block.kernel, block.kernel),
            "bn1.weight": (block.expanded,),
            "conv_pwl.weight": (block.channels, block.expanded, 1, 1),
            "bn2.weight": (block.channels,),
        }
    if isinstance(block, MultiQueryAttention):
        return _attention_tensors(block)
    tensors: dict[str, tuple[int, ...]] = {}
    if block.start_kernel:
        tensors |= normed_tensors("dw_start", (block.in_channels, 1, block.start_kernel, block.start_kernel))
    tensors |= normed_tensors("pw_exp", (block.expanded, block.in_channels, 1, 1))
    if block.middle_kernel:
        tensors |= normed_tensors("dw_mid", (block.expanded, 1, block.middle_kernel, block.middle_kernel))
    tensors |= normed_tensors("pw_proj", (block.channels, block.expanded, 1, 1))
    return tensors | {"layer_scale.gamma": (block.channels,)}


def _attention_tensors(block: MultiQueryAttention) -> dict[str, tuple[int, ...]]:
    width = block.heads * block.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "norm.weight": (block.channels,),
        "attn.query.proj.weight": (width, block.channels, 1, 1),
        "attn.key.proj.weight": (block.head_dim, block.channels, 1, 1),
        "attn.value.proj.weight": (block.head_dim, block.channels, 1, 1),
        "attn.output.proj.weight": (block.channels, width, 1, 1),
        "layer_scale.gamma": (block.channels,),
    }
    for kind in ("key", "value") if block.kv_stride > 1 else ():
        tensors[f"attn.{kind}.down_conv.weight"] = (block.channels, 1, block.kernel, block.kernel)
        tensors[f"attn.{kind}.norm.weight"] = (block.channels,)
    return tensors


def normed_tensors(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors of a convolution and of the norm after it (timm's ConvNormAct)."""
    return {f"{name}.conv.weight": shape, f"{name}.bn.weight": shape[:1]}
