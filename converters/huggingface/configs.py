"""Reads a checkpoint's config.json and generation_config.json once, for all code that needs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.huggingface.adapters.adapter import Adapter
from converters.huggingface.hub.locate import no_config
from converters.huggingface.safetensors import SafetensorsFile
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import read_json_file


@dataclass(frozen=True, slots=True)
class CheckpointConfigs:
    """The values of both files in the directory `path`, unchecked; the model family checks them."""

    path: Path
    config: object
    generation: object | None
    """The values of generation_config.json; None if the checkpoint has none."""
    adapters: tuple[Adapter, ...] = ()
    """Open adapters that the family merges into the tensors, in this order."""
    name: str = ""
    """The checkpoint's name in manifests: its directory's name, or its Hugging Face id and commit."""
    remote_files: tuple[SafetensorsFile, ...] | None = None
    """The files of weights if only their headers were downloaded, for a first look; None if they are in `path`."""

    @property
    def config_path(self) -> Path:
        """The path of config.json, for errors."""
        return self.path / "config.json"


def read_configs(path: Path, adapters: Sequence[Adapter] = (), name: str = "") -> CheckpointConfigs:
    """Read both files; CheckpointError if config.json is missing, or a file is not JSON.

    An adapter in the checkpoint's own directory must be one of `adapters`.
    """
    if not os.path.lexists(path / "config.json"):
        raise no_config(
            path, [*os.listdir(path), *(f"{item.parent.name}/config.json" for item in path.glob("*/config.json"))]
        )
    if not any(os.path.samefile(path, adapter.path) for adapter in adapters):
        _require_no_adapter(path)
    generation = path / "generation_config.json"
    return CheckpointConfigs(
        path,
        read_json_file(path / "config.json", CheckpointError),
        read_json_file(generation, CheckpointError) if generation.exists() else None,
        tuple(adapters),
        name or path.resolve().name,
    )


def _require_no_adapter(path: Path) -> None:
    """Raise CheckpointError if there is an adapter: transformers would add it to the full weights."""
    if os.path.lexists(path / "adapter_config.json"):
        raise CheckpointError(
            file=path / "adapter_config.json",
            found="a LoRA adapter beside the weights of a whole model, to which transformers would add it",
            remedy=f"merge it with --adapter {path}, or remove it if these weights contain it already",
        )
