"""Finds a checkpoint or an adapter by its directory or its Hugging Face id, and says what else a name stands for."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.huggingface.hub.download import download
from converters.huggingface.hub.ranges import RemoteSafetensors
from converters.huggingface.hub.repository import HUB_ID, HubRepository, open_repository
from converters.huggingface.safetensors import INDEX_NAME, SINGLE_NAME, SafetensorsFile, open_files, shard_names
from toolkit.base.errors import CheckpointError, EnvironmentFault, UsageError
from toolkit.base.files import Progress

_SMALL_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    INDEX_NAME,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""What a conversion reads apart from weights: repositories often have the same weights in other formats too."""
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
    ".gguf": "GGUF holds weights that are quantised already: convert the checkpoint that it was made from",
    ".litertlm": "a .litertlm is converted already: gemma-edge check reads it",
    ".task": "a .task is converted already: convert the checkpoint that it was made from",
}
"""Hints for files that are often mistaken for a checkpoint, by name or suffix."""


def no_config(place: str | Path, names: Collection[str]) -> CheckpointError:
    """The error for a directory or repository without config.json; `names`: its files, with `/` if in a folder."""
    found = {part for name in names if "/" not in name for part in (name, Path(name).suffix)}
    remedy = next((text for name, text in NOT_CHECKPOINTS.items() if name in found), None)
    inner = sorted(
        name.removesuffix("/config.json") for name in names if name.count("/") == 1 and name.endswith("/config.json")
    )
    if inner:
        what = "name the checkpoint in it" if isinstance(place, Path) else "download one of its folders and name that"
        remedy = f"{what}: {', '.join(inner[-3:])}"
    wanted = "a checkpoint in Hugging Face's form: config.json, *.safetensors, tokenizer.json"
    return CheckpointError(file=place, found="no config.json", wanted=wanted, remedy=remedy)


@dataclass(frozen=True, slots=True)
class LocatedCheckpoint:
    """A checkpoint's directory and name. For one on the Hub, the directory has its small files, and its weights once
    they are downloaded."""

    path: Path
    name: str
    repository: HubRepository | None = None

    @property
    def is_here(self) -> bool:
        """Whether the weights are on this computer."""
        return self.repository is None or all(map(self.repository.cached, self._weights(self.repository)))

    def download(self, progress: Progress | None) -> None:
        """Download the weights that are missing."""
        if self.repository is not None:
            download(self.repository, self._weights(self.repository), progress)

    def open_remote(self) -> tuple[SafetensorsFile, ...]:
        """The files of weights on the Hub, of which only the headers are downloaded."""
        repository = self.repository
        assert repository is not None and repository.files is not None
        files = repository.files

        def open_file(name: str) -> SafetensorsFile:
            if name not in files:
                raise CheckpointError(file=repository.hub_id, found=f"no {name}", wanted=f"it, as {INDEX_NAME} says")
            return RemoteSafetensors(repository, files[name])

        return open_files(self.path, repository.has, open_file)

    def _weights(self, repository: HubRepository) -> list[str]:
        if repository.has(INDEX_NAME):
            return shard_names(self.path / INDEX_NAME)
        return [SINGLE_NAME]


def locate_checkpoint(path_or_id: str | os.PathLike[str], more_files: Sequence[str] = ()) -> LocatedCheckpoint:
    """The checkpoint in a directory, or for `owner/name[@revision]` on the Hub, whose small files are downloaded.

    `more_files`: names to download besides those that any checkpoint may have. A directory with exactly this name takes
    precedence. CheckpointError, with a hint, for anything else; EnvironmentFault without a network or without access.
    """
    path = Path(path_or_id)
    if os.path.isdir(path):  # also False for what cannot be a path
        return LocatedCheckpoint(path, path.resolve().name)
    if os.path.exists(path):
        remedy = NOT_CHECKPOINTS.get(path.suffix)
        wanted = "the directory that holds config.json"
        raise CheckpointError(file=path, found="a file", wanted=wanted, remedy=remedy)
    repository = open_repository(_hub_id(path_or_id, "a checkpoint's"))
    if not repository.has("config.json"):
        raise no_config(repository.hub_id, repository.names)
    download(repository, repository.matching([*_SMALL_FILES, *more_files]))
    located = LocatedCheckpoint(repository.folder, repository.pinned_name, repository)
    if repository.files is None and not located.is_here:
        raise EnvironmentFault(
            repository.hub_id, found="a partial download, while offline", remedy="resume it while online"
        )
    return located


def locate_adapter(path_or_id: str | os.PathLike[str], progress: Progress | None = None) -> tuple[Path, str]:
    """The directory of an adapter, downloaded if an id is given, and its name: the id, or the directory's name."""
    path = Path(path_or_id)
    if os.path.isdir(path):
        return path, path.resolve().name
    if os.path.exists(path):
        raise CheckpointError(file=path, found="a file", wanted="the directory that holds adapter_config.json")
    repository = open_repository(_hub_id(path_or_id, "an adapter's"))
    names = repository.matching(_ADAPTER_FILES)
    if "adapter_config.json" not in names:
        wanted = "adapter_config.json, and adapter_model.safetensors or adapters.safetensors"
        raise CheckpointError(repository.hub_id, found="a repository without an adapter", wanted=wanted)
    download(repository, names, progress)
    return repository.folder, repository.pinned_name


def with_revision(path_or_id: str | Path, revision: str | None) -> str | Path:
    """`ID@REVISION`; UsageError for a revision of a directory, or for two revisions."""
    if revision is None:
        return path_or_id
    if os.path.exists(path_or_id) or not isinstance(path_or_id, str) or "@" in path_or_id:
        found = f"{revision} for {path_or_id}"
        raise UsageError("revision", found=found, wanted="a Hugging Face id without a revision of its own")
    return f"{path_or_id}@{revision}"


def _hub_id(path_or_id: str | os.PathLike[str], whose: str) -> str:
    if not isinstance(path_or_id, str) or not HUB_ID.fullmatch(path_or_id):
        wanted = f"{whose} directory or a Hugging Face id owner/name"
        raise CheckpointError(file=path_or_id, found="no such directory", wanted=wanted)
    return path_or_id
