"""Finds a checkpoint's directory: the one given, or a repository on the Hugging Face Hub, downloaded to its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.base.errors import CheckpointError, EnvironmentFault

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(?:@[^@]+)?", re.ASCII)

# Only the files that a conversion reads: repositories often have the same weights in other formats too.
_HUB_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)

_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapters.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)

NOT_CHECKPOINTS: Mapping[str, str] = {
    "adapter_config.json": "this is a LoRA adapter: name its base model, and this with --adapter",
    "manifest.json": "this looks like a bundle, which is converted already: gemma-edge run, verify and export read it",
    ".gguf": "GGUF holds weights that are quantised already: convert the checkpoint that it was made of",
    ".litertlm": "a .litertlm is converted already: gemma-edge check reads it",
    ".task": "a .task is converted already: convert the checkpoint that it was made of",
}
"""Hints for files that are often mistaken for a checkpoint, by name or suffix."""


def locate_checkpoint(path_or_id: str | os.PathLike[str], more_files: Sequence[str] = ()) -> Path:
    """Return the directory itself, or for `owner/name` the directory to which the Hub's repository was downloaded.

    `more_files`: names to download in addition to those that any checkpoint may have.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if path.exists():
        remedy = NOT_CHECKPOINTS.get(path.suffix)
        wanted = "the directory that holds config.json"
        raise CheckpointError(file=path, found="a file", wanted=wanted, remedy=remedy)
    path = _download(_hub_id(path_or_id, "a checkpoint's"), (*_HUB_FILES, *more_files))
    if not path.is_dir():
        raise CheckpointError(
            str(path_or_id),
            found="a repository without any file of a checkpoint",
            wanted="config.json, *.safetensors and tokenizer.json",
            remedy="GGUF and .litertlm files are converted already: name the repository they were made of",
        )
    return path


def locate_adapter(path_or_id: str | os.PathLike[str]) -> tuple[Path, str]:
    """The directory of an adapter, downloaded if it is an id, and its name: the id, or the directory's own name."""
    path = Path(path_or_id)
    if path.is_dir():
        return path, path.resolve().name
    if path.exists():
        raise CheckpointError(file=path, found="a file", wanted="the directory that holds adapter_config.json")
    found = _download(_hub_id(path_or_id, "an adapter's"), _ADAPTER_FILES)
    if not found.is_dir():
        wanted = "adapter_config.json, and adapter_model.safetensors or adapters.safetensors"
        raise CheckpointError(str(path_or_id), found="a repository without an adapter", wanted=wanted)
    return found, str(path_or_id)


def _hub_id(path_or_id: str | os.PathLike[str], whose: str) -> str:
    if not isinstance(path_or_id, str) or not _HUB_ID.fullmatch(path_or_id):
        wanted = f"{whose} directory or a Hugging Face id owner/name"
        raise CheckpointError(file=path_or_id, found="no such directory", wanted=wanted)
    return path_or_id


def _download(hub_id: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # classes of the client, of httpx and of the system
        raise EnvironmentFault(
            hub_id,
            found=f"no such directory, and no download ({type(error).__name__})",
            wanted="a directory, or a Hugging Face id while online",
            remedy="check the spelling, the network, and for gated models the licence and `hf auth login`",
        ) from error
