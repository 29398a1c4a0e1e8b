"""The faults of a bundle as records: readers raise the first one, the checker lists all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import BundleError, ToolkitError


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with `file` ("" for the bundle as a whole), at the place `fault` in it."""

    file: str
    fault: str
    found: str
    wanted: str | None

    @classmethod
    def of(cls, error: ToolkitError, file: str, place: str) -> Fault:
        """The fault that an error describes; `file` and `place` if it names none. Of a path, only the name is kept."""
        return cls(
            file if error.file is None else Path(error.file).name, error.place or place, error.found, error.wanted
        )

    def error(self, file: Path | str | None = None, *, remedy: str | None = None) -> BundleError:
        """The fault as an exception about `file`, which is by default the fault's own file."""
        where = (self.file or None) if file is None else file
        return BundleError(self.fault, file=where, found=self.found, wanted=self.wanted, remedy=remedy)
