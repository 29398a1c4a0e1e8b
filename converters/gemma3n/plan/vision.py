"""Plans the vision group as two files: the encoder, and the adapter to the language model.

vision_encoder.tflite has `encode`: images f32[1, S, S, 3] -> features f32[1, T, 2048].
vision_adapter.tflite has `adapt`: features -> embeddings f32[1, T + 1, hidden], whose last row is the end of the image;
and `embed_1`: ids i32[1, 1] of the tower's own tokens -> embeddings f32[1, 1, hidden].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from converters.gemma3n.checkpoint import Gemma3nTensors
from converters.gemma3n.config.processor import read_image_size
from converters.gemma3n.config.vision import (
    STEM_BIAS,
    VisionConfig,
    parse_vision_config,
    require_vision_tensors,
    vision_tensors,
)
from converters.gemma3n.graphs.vision.adapter import vision_adapter_graph, vision_token_graph
from converters.gemma3n.graphs.vision.encoder import vision_encoder_graph
from converters.gemma3n.plan.tower import tower_config
from converters.gemma3n.plan.vision_source import VisionSource
from converters.plan import GraphFiles, PlannedTower
from toolkit.bundle.manifest import VISION_ADAPTER, VISION_ENCODER, VisionRecord
from toolkit.quant.recipe import Recipe
from toolkit.tflite.graph import Signature
from toolkit.tflite.writer import TfliteLayout, layout_files


def read_vision_config(checkpoint: Gemma3nTensors) -> VisionConfig:
    """The config of a checkpoint's tower, with its tensors checked; CheckpointError if it has no such tower."""
    values, path = tower_config(checkpoint, "vision")
    config = parse_vision_config(values, checkpoint.config, path)
    config = replace(config, stem_bias=STEM_BIAS in checkpoint.tensors)
    require_vision_tensors(config, checkpoint.tensors, str(checkpoint.path))
    return config


def vision_signatures(config: VisionConfig, image_size: int) -> Mapping[str, tuple[Signature, ...]]:
    """The signatures of each file."""
    encoder = (Signature("encode", vision_encoder_graph(config, image_size)),)
    adapter = (Signature("adapt", vision_adapter_graph(config)), Signature("embed_1", vision_token_graph(config)))
    return {VISION_ENCODER: encoder, VISION_ADAPTER: adapter}


def vision_layouts(config: VisionConfig, recipe: Recipe, image_size: int) -> Mapping[str, TfliteLayout]:
    """The layouts of both files; `recipe` is f32, vision-f16 or vision-int8, or covers the same weights.

    Their weights are read through a `VisionSource`.
    """
    return layout_files(vision_signatures(config, image_size), recipe)


def open_vision(
    checkpoint: Gemma3nTensors, recipe: Recipe, image_size: int | None = None
) -> PlannedTower[VisionRecord]:
    """Plan the vision tower for images of one size in pixels, by default that of the checkpoint's processor."""
    config = read_vision_config(checkpoint)
    size = read_image_size(checkpoint.path, config.soft_tokens) if image_size is None else image_size
    record = VisionRecord(
        begin_token_id=config.begin_token_id,
        soft_token_id=config.soft_token_id,
        end_token_id=config.end_token_id,
        vocab_offset=config.vocab_offset,
        vocab_size=config.vocab_size,
        image_size=size,
        soft_tokens=config.soft_tokens,
        feature_size=config.hidden_size,
    )
    parameters = sum(math.prod(shape) for shape in vision_tensors(config).values())
    files = GraphFiles(vision_layouts(config, recipe, size), VisionSource(checkpoint, config))
    return PlannedTower(record, recipe, parameters, files)
