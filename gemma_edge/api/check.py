"""`gemma_edge.check`: checks every hash, bound and reference of a bundle or a .litertlm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit import check as checker
from toolkit.base.files import Progress
from toolkit.base.signatures import read_truster
from toolkit.bundle.faults import Fault


def check(path: Path | str, *, trust: Sequence[Path | str] = (), progress: Progress | None = None) -> tuple[Fault, ...]:
    """All faults of a bundle directory, a .litertlm file or one PLE shard; empty if there are none.

    Nothing is written, except that a bundle which a killed process had moved aside is put back.

    `trust`: files with Ed25519 public keys in PEM or OpenSSH format, one of which must have signed
    the .litertlm. `progress` gets the bytes done and the total. BundleError if nothing exists at `path`; UsageError for
    a file of another kind, for a file in `trust` that is not a key, or for `trust` with what cannot be signed.

    >>> import gemma_edge
    >>> gemma_edge.check(bundle)
    ()
    """
    keys = [read_truster(Path(key)) for key in trust]
    return tuple(checker.check(path, trust=keys, progress=progress))
