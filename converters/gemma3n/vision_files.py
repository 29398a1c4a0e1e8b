"""The vision group of a checkpoint as two files: the encoder, and the adapter into the language model.

vision_encoder.tflite: `encode`, images f32[1, S, S, 3] -> features f32[1, T, 2048]; further sizes as `encode_S`.
vision_adapter.tflite: `adapt`, features -> embeddings f32[1, T + 1, hidden], the last row being the end of image;
`embed_1`, ids i32[1, 1] -> embeddings f32[1, 1, hidden], for the tower's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.gemma3n.groups import group_of
from converters.gemma3n.vision_adapter import vision_adapter_graph, vision_token_graph
from converters.gemma3n.vision_config import STEM_BIAS, VisionConfig, parse_vision_config, require_vision_tensors
from converters.gemma3n.vision_encoder import vision_encoder_graph
from toolkit.errors import CheckpointError, UsageError
from toolkit.quant.recipe import Recipe
from toolkit.strict_json import read_json_file
from toolkit.tflite.graph import Signature
from toolkit.tflite.writer import TfliteLayout, layout_files, write_tflite

VISION_ENCODER = "vision_encoder.tflite"
VISION_ADAPTER = "vision_adapter.tflite"

IMAGE_SIZES = (768,)
"""What transformers' processor resizes every image to; the tower was trained at 256 and 512 too."""


def read_vision_config(checkpoint: Checkpoint) -> VisionConfig:
    """The tower of a checkpoint, its tensors checked; CheckpointError for one without, or with another tower."""
    what = str(checkpoint.path)
    if not any(group_of(name) == "vision" for name in checkpoint.tensors):
        wanted = "Gemma3nForConditionalGeneration with its vision tower"
        raise CheckpointError(what, found=f"{checkpoint.architecture} without vision tensors", wanted=wanted)
    path = checkpoint.path / "config.json"
    config = parse_vision_config(read_json_file(path, CheckpointError), checkpoint.config, str(path))
    config = replace(config, stem_bias=STEM_BIAS in checkpoint.tensors)
    require_vision_tensors(config, checkpoint.tensors, what)
    return config


def vision_signatures(
    config: VisionConfig, image_sizes: Sequence[int] = IMAGE_SIZES
) -> Mapping[str, tuple[Signature, ...]]:
    """The signatures of each file; the first image size is the one that `encode` takes."""
    if not image_sizes or len(set(image_sizes)) != len(image_sizes):
        raise UsageError("image sizes", found=list(image_sizes), wanted="at least one, each once")
    names = ["encode", *(f"encode_{size}" for size in image_sizes[1:])]
    encoder = [
        Signature(name, vision_encoder_graph(config, size)) for name, size in zip(names, image_sizes, strict=True)
    ]
    adapter = (Signature("adapt", vision_adapter_graph(config)), Signature("embed_1", vision_token_graph(config)))
    return {VISION_ENCODER: tuple(encoder), VISION_ADAPTER: adapter}


def vision_layouts(
    config: VisionConfig, recipe: Recipe, image_sizes: Sequence[int] = IMAGE_SIZES
) -> Mapping[str, TfliteLayout]:
    """Both files, laid out; `recipe` is one of f32, vision-f16 and vision-int8, or covers the same weights."""
    return layout_files(vision_signatures(config, image_sizes), recipe)


def convert_vision(
    checkpoint: Checkpoint,
    directory: Path,
    recipe: Recipe,
    image_sizes: Sequence[int] = IMAGE_SIZES,
    *,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> VisionConfig:
    """Write both files into a directory; the caller owns its atomicity. `progress` gets weight bytes written."""
    config = read_vision_config(checkpoint)
    for name, layout in vision_layouts(config, recipe, image_sizes).items():
        write_tflite(directory / name, layout, checkpoint, workers=workers, progress=progress)
    return config
