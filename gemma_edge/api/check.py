"""`gemma_edge.check`: checks every hash, bound and reference of a bundle or a .litertlm."""

from __future__ import annotations

from pathlib import Path

from toolkit import check as checker
from toolkit.base.files import Progress
from toolkit.bundle.faults import Fault


def check(path: Path | str, *, progress: Progress | None = None) -> tuple[Fault, ...]:
    """All faults of a bundle directory, a .litertlm file or one PLE shard; empty if there are none.

    It reads only. `progress` gets the bytes done and the total. BundleError if nothing exists at `path`.

    >>> import gemma_edge
    >>> gemma_edge.check(bundle)
    ()
    """
    return tuple(checker.check(path, progress=progress))
