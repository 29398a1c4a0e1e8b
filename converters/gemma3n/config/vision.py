"""Reads the config of Gemma 3n's vision tower: the block table of its architecture, and the tensors that it implies.

Source: timm 1.0.31 models/mobilenetv5.py; transformers 5.23 models/gemma3n/configuration_gemma3n.py
(Gemma3nVisionConfig, Gemma3nConfig).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from converters.gemma.config_json import finish_section, section
from converters.gemma.tensors import require_group_tensors
from converters.gemma3n.config import defaults
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.config.vision_blocks import (
    MAX_WIDTH,
    STAGES,
    Block,
    block_tensors,
    normed_tensors,
    parse_stages,
    round_channels,
    stages_of,
)
from converters.huggingface.safetensors import TensorInfo
from toolkit.base.errors import CheckpointError, UsageError
from toolkit.base.strict_json import JsonObject

ARCHITECTURE = "mobilenetv5_300m_enc"

TOWER = "vision_tower.timm_model"
STEM_BIAS = f"{TOWER}.conv_stem.conv.bias"

STEM_CHANNELS = 64
FEATURES = 2048
"""The channels of the fused features, fixed in MobileNetV5Encoder."""
OUTPUT_RESOLUTION = 16
FUSION_EXPANSION = 2

# The only values that the graphs support; others would need other math.
_ONLY_VALUES: dict[str, tuple[object, ...]] = {
    "features_only": (False,),
    "in_chans": (3,),
    "msfa_indices": ([-2, -1],),
    "pad_type": ("same",),
    "se_from_exp": (True,),
    "stem_bias": (True,),
}
# mlx's conversions contain skip_vision, which only their own reader uses.
_WITHOUT_EFFECT = "architecture do_pooling label_names model_type num_classes skip_vision"
_TRAINING = "drop_path_rate drop_rate layer_scale_init_value num_classes"


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The config of MobileNet-V5's encoder and of its adapter to the language model."""

    stem_channels: int
    stem_bias: bool
    """Whether the stem has a bias; the first release of the checkpoints lacks it, and timm then uses zero."""
    stages: tuple[tuple[Block, ...], ...]
    output_resolution: int
    """The number of rows of soft tokens, and of soft tokens in each."""
    hidden_size: int
    rms_norm_eps: float
    vocab_size: int
    vocab_offset: int
    """The id of the first row of the tower's own embedding table."""
    text_hidden_size: int
    begin_token_id: int
    soft_token_id: int
    end_token_id: int

    @property
    def soft_tokens(self) -> int:
        """The number of positions of an image in a prompt: vision_soft_tokens_per_image."""
        return self.output_resolution * self.output_resolution

    @property
    def fused_channels(self) -> tuple[int, int]:
        """The channels of the last two stages."""
        return self.stages[-2][-1].channels, self.stages[-1][-1].channels

    @property
    def fusion_expanded(self) -> int:
        """The channels inside the fusion's feed-forward network."""
        return round_channels(sum(self.fused_channels) * FUSION_EXPANSION)

    @property
    def stride(self) -> int:
        """The distance in pixels between positions of the last stage."""
        return 2 << len(self.stages)

    def check_image_size(self, size: int) -> None:
        """Raise UsageError unless a square of `size` x `size` pixels divides evenly into positions and pools."""
        step = math.lcm(self.stride, self.stride // 2 * self.output_resolution)
        if size < step or size % step:
            raise UsageError("image size", found=f"{size} pixels", wanted=f"a multiple of {step}")


# --- config.json -----------------------------------------------------------------------------------------------------


def parse_vision_config(config: object, text: TextConfig, what: str) -> VisionConfig:
    """Parse the vision tower's config from a multimodal config.json; one CheckpointError lists all faults."""
    top = JsonObject(config, what, CheckpointError)
    vision = section(top, "vision_config", defaults.VISION)
    for key, value in (("model_type", "gemma3n_vision"), ("architecture", ARCHITECTURE)):
        if vision.string(key) != value:
            vision.refuse(key, vision.value(key), repr(value))
    vision.expect("hidden_size", FEATURES)
    arguments = vision.child("model_args") if vision.has("model_args") else JsonObject({}, what, CheckpointError)
    stem, stages, resolution = _read_tower(arguments)
    tokens = top.integer("vision_soft_tokens_per_image", 1, 1 << 20) if top.has("vision_soft_tokens_per_image") else 256
    if tokens != resolution**2:
        wanted = f"{resolution**2}, which follows from msfa_output_resolution"
        top.refuse("vision_soft_tokens_per_image", tokens, wanted)
    offset = vision.integer("vocab_offset", 0, text.vocab_size - 1)
    size = vision.integer("vocab_size", 1, text.vocab_size - offset)
    parsed = VisionConfig(
        stem_channels=stem,
        stem_bias=True,
        stages=stages,
        output_resolution=resolution,
        hidden_size=FEATURES,
        rms_norm_eps=vision.number("rms_norm_eps", 1e-12, 1e-1),
        vocab_size=size,
        vocab_offset=offset,
        text_hidden_size=text.hidden_size,
        begin_token_id=_token_id(top, "boi_token_id", 255_999, (0, text.vocab_size)),
        soft_token_id=_token_id(top, "image_token_id", 262_145, (0, text.vocab_size)),
        end_token_id=_token_id(top, "eoi_token_id", 262_144, (offset, offset + size)),
    )
    vision.ignore(_WITHOUT_EFFECT.split())
    finish_section(vision)
    return parsed


def _token_id(top: JsonObject, key: str, default: int, bounds: tuple[int, int]) -> int:
    """A token id; Gemma3nConfig's default if config.json has none. `bounds`: half-open."""
    if not top.has(key) and bounds[0] <= default < bounds[1]:
        return default
    return top.integer(key, bounds[0], bounds[1] - 1)


def _read_tower(arguments: JsonObject) -> tuple[int, tuple[tuple[Block, ...], ...], int]:
    """Read stem channels, stages and output resolution from `model_args`, the arguments of timm.create_model."""
    for key, values in _ONLY_VALUES.items():
        arguments.expect(key, *values)
    multiplier = arguments.number("channel_multiplier", 1e-3, 1e3) if arguments.has("channel_multiplier") else 1.0
    stem = arguments.integer("stem_size", 1, MAX_WIDTH) if arguments.has("stem_size") else STEM_CHANNELS
    fixed = arguments.flag("fix_stem") if arguments.has("fix_stem") else multiplier < 1
    resolution = (
        arguments.integer("msfa_output_resolution", 1, 1 << 10) if arguments.has("msfa_output_resolution") else 0
    )
    if arguments.has("layer_scale_init_value"):
        arguments.number("layer_scale_init_value", -1e6, 1e6)
    elif "layer_scale_init_value" in arguments.names():
        arguments.refuse("layer_scale_init_value", None, "a number: without layer scales the blocks differ")
    stem = stem if fixed else round_channels(stem * multiplier)
    if arguments.has("block_args"):
        stages = stages_of(_block_tables(arguments), stem, multiplier)
    else:
        stages = parse_stages(STAGES, stem, multiplier)
    arguments.ignore(_TRAINING.split())
    arguments.finish()
    return stem, stages, resolution or OUTPUT_RESOLUTION


def _block_tables(arguments: JsonObject) -> list[list[JsonObject]]:
    tables = []
    for s, stage in enumerate(arguments.array("block_args")):
        if not isinstance(stage, list):
            arguments.refuse("block_args", stage, "a list of stages, each a list of blocks")
        places = [f"{arguments.place} block_args[{s}][{n}]" for n in range(len(stage))]
        blocks = zip(stage, places, strict=True)
        tables.append([JsonObject(block, arguments.file, CheckpointError, place) for block, place in blocks])
    return tables


# --- tensors ---------------------------------------------------------------------------------------------------------


def vision_tensors(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor of the vision group."""
    features, hidden = config.hidden_size, config.text_hidden_size
    tensors: dict[str, tuple[int, ...]] = {f"{TOWER}.conv_stem.conv.weight": (config.stem_channels, 3, 3, 3)}
    if config.stem_bias:
        tensors[STEM_BIAS] = (config.stem_channels,)
    tensors[f"{TOWER}.conv_stem.bn.weight"] = (config.stem_channels,)
    for s, stage in enumerate(config.stages):
        for b, block in enumerate(stage):
            tensors |= {f"{TOWER}.blocks.{s}.{b}.{name}": shape for name, shape in block_tensors(block).items()}
    fusion = {
        **normed_tensors("pw_exp", (config.fusion_expanded, sum(config.fused_channels), 1, 1)),
        **normed_tensors("pw_proj", (features, config.fusion_expanded, 1, 1)),
    }
    tensors |= {f"{TOWER}.msfa.ffn.{name}": shape for name, shape in fusion.items()}
    return tensors | {
        f"{TOWER}.msfa.norm.weight": (features,),
        "embed_vision.embedding.weight": (config.vocab_size, features),
        "embed_vision.hard_embedding_norm.weight": (features,),
        "embed_vision.soft_embedding_norm.weight": (features,),
        "embed_vision.embedding_projection.weight": (hidden, features),
    }


def require_vision_tensors(config: VisionConfig, tensors: Mapping[str, TensorInfo], what: str) -> None:
    """Raise CheckpointError, listing tensors of the group that are missing, unknown or not as the table implies."""
    implied_by = f"{ARCHITECTURE} and config.json imply"
    require_group_tensors("vision", vision_tensors(config), tensors, what, implied_by=implied_by)
