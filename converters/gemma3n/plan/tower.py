"""Code shared by the plans of both towers."""

from __future__ import annotations

from typing import Literal

from converters.gemma.tensors import group_of
from converters.gemma3n.checkpoint import Gemma3nTensors
from converters.gemma3n.config.text import CONDITIONAL_GENERATION
from toolkit.base.errors import CheckpointError


def tower_config(checkpoint: Gemma3nTensors, group: Literal["vision", "audio"]) -> tuple[object, str]:
    """The values of config.json, and its path for errors; CheckpointError if the checkpoint has no such tower."""
    if not any(group_of(name) == group for name in checkpoint.tensors):
        found = f"{checkpoint.architecture} without {group} tensors"
        wanted = f"{CONDITIONAL_GENERATION} with its {group} tower"
        raise CheckpointError(file=checkpoint.path, found=found, wanted=wanted)
    return checkpoint.configs.config, str(checkpoint.configs.config_path)
