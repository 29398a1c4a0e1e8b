"""Puts the checkpoint of a drafter into exports: docs/speculative.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from converters.families import FAMILIES, open_assistant
from converters.family import Family
from converters.lock import described
from toolkit.base.errors import BundleError, errors_about
from toolkit.base.files import Progress
from toolkit.bundle.manifest import DRAFTER, CheckpointRecord
from toolkit.bundle.manifest_json import read_manifest
from toolkit.litertlm.exported_drafter import ExportedDrafter


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
        with errors_about(file=str(assistant)):
            record = described(CheckpointRecord(opened.name, opened.fingerprint()), described_as)
        opened.write(scratch / DRAFTER, manifest)
    return ExportedDrafter(scratch / DRAFTER, record)
