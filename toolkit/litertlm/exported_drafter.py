"""A drafter that is made for one export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.files import hash_file
from toolkit.bundle.lock import DrafterSettings
from toolkit.bundle.manifest import CheckpointRecord
from toolkit.litertlm.container import FilePart


@dataclass(frozen=True, slots=True)
class ExportedDrafter:
    """The file of a drafter that is not part of the bundle, and how it was fitted or which checkpoint it comes from."""

    path: Path
    made_from: DrafterSettings | CheckpointRecord

    @property
    def settings(self) -> DrafterSettings | None:
        """How it was fitted."""
        return self.made_from if isinstance(self.made_from, DrafterSettings) else None

    @property
    def assistant(self) -> CheckpointRecord | None:
        """The checkpoint that it comes from."""
        return self.made_from if isinstance(self.made_from, CheckpointRecord) else None

    @property
    def part(self) -> FilePart:
        """The file as a part of an export."""
        found = hash_file(self.path)
        return FilePart(self.path, found.size, found.sha256)


DrafterMaker = Callable[[Path], ExportedDrafter | None]
"""Writes a drafter into a directory; None for one that would not pay."""
