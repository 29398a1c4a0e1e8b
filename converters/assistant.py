"""Puts the checkpoint of a drafter into bundles and exports: docs/speculative.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from converters.families import FAMILIES, open_assistant, require_drafts_for
from converters.family import Assistant, Family
from converters.lock import described
from converters.plan import PlannedDrafter
from toolkit.base.errors import BundleError, errors_about
from toolkit.base.files import Progress
from toolkit.bundle.manifest import DRAFTER, CheckpointRecord, DrafterRecord, TextRecord
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.write import GroupDraft
from toolkit.litertlm.exported_drafter import ExportedDrafter


@dataclass(frozen=True, slots=True)
class AssistantChoice:
    """A drafter that was published for a model: its directory, or its Hugging Face id."""

    source: str | os.PathLike[str]
    described_as: CheckpointRecord | None = None
    """What a lock calls it, and the hash that it must have; None: named after its directory."""

    @property
    def path(self) -> Path:
        """Where it is, if it is a directory."""
        return Path(self.source)


class OpenedAssistant:
    """The checkpoint of a drafter, open for a conversion."""

    def __init__(self, assistant: Assistant, choice: AssistantChoice, families: Sequence[Family]) -> None:
        """CheckpointError if it is not the one that a lock wants."""
        self.path = assistant.path
        self._assistant = assistant
        self._families = families
        self.record = _record(assistant, choice)

    def plan(self, text: TextRecord, recipe: str, architecture: str) -> PlannedDrafter:
        """Plan its file for a bundle with this record and text recipe; CheckpointError if it is for another model."""
        require_drafts_for(self._assistant, architecture, self._families)
        return self._assistant.plan(text, recipe, text.context_buckets)

    def write(self, planned: PlannedDrafter, directory: Path, size: str) -> GroupDraft:
        """Write its file into a directory, not atomically; `size`: the size that it drafts for."""
        planned.files.write(directory)
        self._assistant.require_unchanged()
        record = DrafterRecord(size, checkpoint=self.record, caches=planned.caches)
        return GroupDraft("drafter", (DRAFTER,), planned.parameters, record)

    def close(self) -> None:
        """Close all files."""
        self._assistant.close()


def open_chosen(
    choice: AssistantChoice, families: Sequence[Family] = FAMILIES, *, progress: Progress | None = None
) -> OpenedAssistant:
    """Open a drafter's checkpoint, downloaded if need be; CheckpointError if it is not one, or not a lock's.

    `progress` gets the bytes downloaded and their total.
    """
    opened = open_assistant(choice.source, families, progress=progress)
    try:
        return OpenedAssistant(opened, choice, families)
    except BaseException:
        opened.close()
        raise


def assistant_for_export(
    bundle: Path,
    assistant: str | os.PathLike[str],
    scratch: Path,
    *,
    families: Sequence[Family] = FAMILIES,
    described_as: CheckpointRecord | None = None,
    progress: Progress | None = None,
) -> ExportedDrafter:
    """Write the drafter of an export of a bundle into the directory `scratch`.

    `assistant`: the drafter's directory or Hugging Face id; `described_as`: what a lock calls it, and its hash.
    BundleError for a bundle without `draft_tokens`; CheckpointError for another drafter, or one for another model.
    `progress` gets the bytes downloaded and their total.
    """
    manifest = read_manifest(bundle)
    if manifest.text.draft_tokens is None:
        remedy = "convert it again with --draft-tokens 3"
        raise BundleError(file=bundle, found="no signature verify", wanted="one, to check drafts with", remedy=remedy)
    with closing(open_assistant(assistant, families, progress=progress)) as opened:
        record = _record(opened, AssistantChoice(assistant, described_as))
        require_drafts_for(opened, manifest.architecture, families)
        opened.plan(manifest.text, manifest.quant["text"].recipe).files.write(scratch)
        opened.require_unchanged()
    return ExportedDrafter(scratch / DRAFTER, record)


def _record(assistant: Assistant, choice: AssistantChoice) -> CheckpointRecord:
    with errors_about(file=str(choice.source)):
        return described(CheckpointRecord(assistant.name, assistant.fingerprint()), choice.described_as)
