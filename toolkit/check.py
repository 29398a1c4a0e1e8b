"""Checks any file or directory that this toolkit writes against its format, and reports every fault it can find.

It reads only.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.base.errors import BundleError
from toolkit.base.files import Progress
from toolkit.bundle.check import check_directory
from toolkit.bundle.check_shard import check_shard
from toolkit.bundle.faults import Fault
from toolkit.bundle.ple_shards import is_shard_name
from toolkit.litertlm.check import check_litertlm


def check(path: Path | str, *, progress: Progress | None = None) -> list[Fault]:
    """All faults of a bundle directory, a .litertlm or one PLE shard; BundleError if nothing exists at `path`."""
    target = Path(path)
    if target.is_dir():
        return check_directory(target, progress=progress)
    if target.is_file():
        return check_shard(target, progress=progress) if is_shard_name(target.name) else check_litertlm(target)
    raise BundleError(
        file=path, found="no such file or directory", remedy="name a bundle directory, a .litertlm file or a PLE shard"
    )
