"""An open adapter: its updates by the names that the training program gave the model's parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converters.huggingface.adapters.updates import Update
from converters.huggingface.safetensors import SafetensorsFile
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject, shorten
from toolkit.bundle.manifest import AdapterRecord

_HASHED_BYTES = 1 << 20

Targets = Callable[[Collection[str]], Collection[str]]
"""From the modules' paths in the trained model, selects the modules that the adapter's config names."""


def no_targets(modules: Collection[str]) -> Collection[str]:
    """The `Targets` of an adapter whose config names none."""
    return ()


@dataclass(frozen=True, slots=True)
class AdapterUpdates:
    """The content of an adapter's two files, whichever program wrote them."""

    by_parameter: Mapping[str, tuple[Update, ...]]
    """Updates, in order, by the parameter's name in the trained model, such as `model.layers.0.mlp.up_proj.weight`."""
    low_rank_modules: frozenset[str]
    """The modules that have LoRA factors."""
    targets: Targets = no_targets
    """The modules of the checkpoint that the config names, which must have factors."""
    embedding_is_head: bool = False
    """Whether the program trains a tied output matrix and the token embedding as one matrix."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An open adapter with its scale; `name` is its directory's name or its Hugging Face id."""

    name: str
    path: Path
    scale: float
    sha256: str
    updates: AdapterUpdates
    file: SafetensorsFile = field(repr=False)

    @property
    def record(self) -> AdapterRecord:
        """The adapter's record for manifests."""
        return AdapterRecord(self.name, self.scale, self.sha256)

    def require_unchanged(self) -> None:
        """Raise CheckpointError if the file of weights has changed since it was opened."""
        self.file.require_unchanged()

    def close(self) -> None:
        """Close the file of weights."""
        self.file.close()


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter's open files, for the reader of one of the forms."""

    path: Path
    config: JsonObject
    file: SafetensorsFile
    scale: float

    def refuse(self, found: str, wanted: str | None = None, remedy: str | None = None) -> CheckpointError:
        """The error for a tensor that cannot be merged."""
        return CheckpointError(file=self.file.path, found=found, wanted=wanted, remedy=remedy)

    def unknown(self, name: str) -> CheckpointError:
        """The error for a tensor of an unknown form."""
        return self.refuse(f"a tensor of an unknown form, {shorten(name)}", remedy=MERGE_ELSEWHERE)


MERGE_ELSEWHERE = "merge it with the program that trained it, save the whole model, and convert that"


def hash_adapter(config: Path, weights: Path) -> str:
    """The sha256, in hex, of both files' sha256 digests, the config's first."""
    digest = hashlib.sha256()
    for path in (config, weights):
        part = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(_HASHED_BYTES):
                part.update(block)
        digest.update(part.digest())
    return digest.hexdigest()
