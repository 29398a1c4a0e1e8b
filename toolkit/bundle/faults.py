"""A fault of a bundle as a record: readers raise the first fault, the checker lists them all."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.base.errors import BundleError


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with `file` ("" for the bundle as a whole)."""

    file: str
    fault: str
    found: str
    wanted: str | None

    def error(self, remedy: str | None = None) -> BundleError:
        """The same as an exception."""
        what = f"{self.file}: {self.fault}" if self.file else self.fault
        return BundleError(what, found=self.found, wanted=self.wanted, remedy=remedy)
