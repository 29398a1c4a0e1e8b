"""The list of model families; finds the family of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from converters.family import Assistant, Checkpoint, Family
from converters.gemma3n.family import GEMMA3N
from converters.gemma4.family import GEMMA4
from converters.huggingface.adapters.adapter import Adapter
from converters.huggingface.adapters.choice import AdapterChoice
from converters.huggingface.adapters.open import open_adapter
from converters.huggingface.configs import CheckpointConfigs, read_configs
from converters.huggingface.hub.locate import LocatedCheckpoint, locate_checkpoint
from converters.huggingface.safetensors import SafetensorsFile
from toolkit.base.errors import CheckpointError
from toolkit.base.files import Progress
from toolkit.base.strict_json import JsonObject

FAMILIES: tuple[Family, ...] = (GEMMA3N, GEMMA4)


def open_checkpoint(
    path_or_id: str | os.PathLike[str],
    families: Sequence[Family] = FAMILIES,
    adapters: Sequence[AdapterChoice] = (),
    *,
    judge: Callable[[Checkpoint], object] = lambda _: None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Open the checkpoint in a directory; for `owner/name[@revision]`, download it from Hugging Face first.

    `adapters` are merged into its tensors, in this order. Before weights are downloaded, the checkpoint is opened with
    their headers alone and given to `judge`, which raises if the download is not worth it. `progress` gets the number
    of bytes downloaded and their total. CheckpointError if it is not a checkpoint, of no known family, or invalid, or
    if an adapter cannot be merged into it; EnvironmentFault without a network.
    """
    located = _locate(path_or_id, families)
    if not located.is_here:
        with _open(located, families, adapters, located.open_remote(), progress) as headers:
            judge(headers)
        located.download(progress)
    return _open(located, families, adapters, None, progress)


def open_headers(
    path_or_id: str | os.PathLike[str], families: Sequence[Family] = FAMILIES, adapters: Sequence[AdapterChoice] = ()
) -> Checkpoint:
    """Like `open_checkpoint`, but without downloading weights: the parts that are read come from the Hub each time."""
    located = _locate(path_or_id, families)
    return _open(located, families, adapters, None if located.is_here else located.open_remote(), None)


def _locate(path_or_id: str | os.PathLike[str], families: Sequence[Family]) -> LocatedCheckpoint:
    return locate_checkpoint(path_or_id, [name for family in families for name in family.files])


def _open(
    located: LocatedCheckpoint,
    families: Sequence[Family],
    adapters: Sequence[AdapterChoice],
    remote_files: tuple[SafetensorsFile, ...] | None,
    progress: Progress | None,
) -> Checkpoint:
    opened: list[Adapter] = []
    try:
        for choice in adapters:
            opened.append(open_adapter(choice, progress))
        configs = replace(read_configs(located.path, opened, located.name), remote_files=remote_files)
        family = family_of(configs, families)
        checkpoint = family.open(configs)
        if tuple(checkpoint.adapters) != tuple(opened):
            checkpoint.close()
            raise CheckpointError(
                "adapters", file=configs.path, found="some", wanted=f"none for a model of {family.name}"
            )
        return checkpoint
    except BaseException:
        for adapter in opened:
            adapter.close()
        raise


def family_of(configs: CheckpointConfigs, families: Sequence[Family] = FAMILIES) -> Family:
    """The family of the checkpoint's architecture or model_type; if there is none, CheckpointError lists the known."""
    config = JsonObject(configs.config, str(configs.config_path), CheckpointError)
    stated = config.array("architectures") if config.has("architectures") else None
    if stated is None:
        kind = config.value("model_type") if config.has("model_type") else None
        family = next((family for family in families if kind in family.model_types), None)
        return family or config.refuse("architectures", kind, _known(families))
    for family in families:
        if len(stated) == 1 and stated[0] in family.architectures:
            return family
    if stated in [[kind.architecture] for family in families for kind in family.assistants]:
        remedy = "put it into a bundle of that model with gemma-edge convert CHECKPOINT -o BUNDLE --drafter DIR"
        found = f"{stated[0]}, a drafter for another model"
        raise CheckpointError("architectures", file=configs.config_path, found=found, remedy=remedy)
    config.refuse("architectures", stated, _known(families))


def open_assistant(
    path_or_id: str | os.PathLike[str], families: Sequence[Family] = FAMILIES, *, progress: Progress | None = None
) -> Assistant:
    """Open the checkpoint of a drafter in a directory, or for `owner/name[@revision]` the one downloaded from the Hub.

    CheckpointError if it is no checkpoint, or not one of a drafter that a family knows.
    """
    located = _locate(path_or_id, families)
    configs = read_configs(located.path, (), located.name)
    config = JsonObject(configs.config, str(configs.config_path), CheckpointError)
    kinds = {kind.architecture: kind for family in families for kind in family.assistants}
    stated = config.array("architectures") if config.has("architectures") else [None]
    if len(stated) != 1 or not isinstance(stated[0], str) or stated[0] not in kinds:
        config.refuse("architectures", stated, f"a drafter's: {' or '.join(kinds)}")
    located.download(progress)
    return kinds[stated[0]].open(configs)


def require_drafts_for(assistant: Assistant, architecture: str, families: Sequence[Family] = FAMILIES) -> None:
    """CheckpointError unless the family of the model with this architecture has drafters of this kind."""
    for family in families:
        if architecture in family.architectures:
            if assistant.architecture in [kind.architecture for kind in family.assistants]:
                return
            known = " or ".join(kind.architecture for kind in family.assistants)
            wanted = f"{known}, for {architecture}" if known else f"none, because none is published for {architecture}"
            remedy = "fit one with --drafter fit"
            raise CheckpointError(
                "drafter", file=assistant.path, found=assistant.architecture, wanted=wanted, remedy=remedy
            )


def _known(families: Sequence[Family]) -> str:
    return " or ".join(name for family in families for name in family.architectures)


def recipe_names(role: str, families: Sequence[Family] = FAMILIES) -> tuple[str, ...]:
    """The names of the built-in recipes for a role, of all families."""
    return tuple(dict.fromkeys(name for family in families for name in family.recipe_names.get(role, ())))
