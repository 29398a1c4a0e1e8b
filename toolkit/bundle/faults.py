"""A fault of a bundle as a record: readers raise the first fault, the checker lists them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import BundleError, ToolkitError


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with `file` ("" for the bundle as a whole), at the place `fault` of it."""

    file: str
    fault: str
    found: str
    wanted: str | None

    @classmethod
    def of(cls, error: ToolkitError, file: str, place: str) -> Fault:
        """What an error says; `file` and `place` where it names none. Files lie in one directory, so a name will do."""
        return cls(
            file if error.file is None else Path(error.file).name, error.place or place, error.found, error.wanted
        )

    def error(self, file: Path | str | None = None, *, remedy: str | None = None) -> BundleError:
        """The same as an exception about `file`, by default the fault's own."""
        where = (self.file or None) if file is None else file
        return BundleError(self.fault, file=where, found=self.found, wanted=self.wanted, remedy=remedy)
