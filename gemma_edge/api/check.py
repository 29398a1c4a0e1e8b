"""`gemma_edge.check`: every hash, bound and reference of what this toolkit writes."""

from __future__ import annotations

from pathlib import Path

from toolkit import check as checker
from toolkit.base.files import Progress
from toolkit.bundle.faults import Fault


def check(path: Path | str, *, progress: Progress | None = None) -> tuple[Fault, ...]:
    """Every fault of a bundle's directory, a .litertlm file or one PLE shard; nothing for a sound one.

    Reads only. `progress` gets the bytes that are done, and all there are. BundleError where nothing is at `path`.

    >>> import gemma_edge
    >>> gemma_edge.check(bundle)
    ()
    """
    return tuple(checker.check(path, progress=progress))
