"""What a push sends: the files of a bundle that are wanted, or a .litertlm, held against their hashes beforehand."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit import files
from toolkit.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest
from toolkit.bundle.manifest_json import read_manifest
from toolkit.errors import BundleError, UsageError
from toolkit.files import Advance, hash_file, safe_name
from toolkit.layout import ceil_div

PART = ".part"
"""Behind the name of a file that is not whole yet."""
OLD_MANIFEST = f"{MANIFEST_NAME}.old"
"""The manifest of the bundle that a push is taking apart."""

Step = Literal["check", "compare", "send", "verify"]
PushProgress = Callable[[Step, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class PushFile:
    """A local file, the name it gets on the device, and the sha256 of each ``chunk_bytes`` of it."""

    name: str
    path: Path
    size: int
    chunks: tuple[str, ...]
    chunk_bytes: int

    def __post_init__(self) -> None:
        safe_name(self.name, "file to push")

    def offset(self, chunk: int) -> int:
        """Where a chunk starts; the file's end for the one after the last."""
        return min(chunk * self.chunk_bytes, self.size)

    def length(self, chunk: int) -> int:
        """Bytes of a chunk: the last one is shorter."""
        return self.offset(chunk + 1) - self.offset(chunk)


@dataclass(frozen=True, slots=True)
class PushSource:
    """Files in the order in which they are sent; a bundle's manifest comes last."""

    folder: str | None
    """What a bundle's folder on the device is called; None: the one file lies in no folder of its own."""
    files: tuple[PushFile, ...]
    manifest: Manifest | None = None


def open_source(
    path: Path | str, groups: Collection[str] | None = None, progress: PushProgress | None = None
) -> PushSource:
    """The files of a bundle's ``groups`` (None: all) and those that are always needed, or a .litertlm; all hashed.

    BundleError if a file is not what the manifest says, before anything is sent.
    """
    found = Path(path)
    if found.is_dir():
        return _open_bundle(found, groups, progress)
    if found.suffix != ".litertlm" or not found.is_file():
        raise UsageError(str(path), found="neither", wanted="a bundle's directory or a .litertlm file")
    if groups is not None:
        raise UsageError("--groups", found=found.name, wanted="a bundle", remedy="a .litertlm goes as a whole")
    advance = Advance(found.stat().st_size, _step(progress, "check"))
    return PushSource(None, (_hashed(found, safe_name(found.name, "file name"), advance),))


def wanted_names(manifest: Manifest, groups: Collection[str] | None) -> tuple[str, ...]:
    """Files of the groups, and files of no group; UsageError for a group that the bundle lacks."""
    unknown = sorted(set(groups or ()) - manifest.groups.keys())
    if unknown:
        raise UsageError(f"group {unknown[0]}", found="no such group", wanted=" or ".join(manifest.groups))
    left_out = {
        name
        for group, record in manifest.groups.items()
        if groups is not None and group not in groups
        for name in record.files
    }
    return tuple(name for name in sorted(manifest.files) if name not in left_out)


def _open_bundle(bundle: Path, groups: Collection[str] | None, progress: PushProgress | None) -> PushSource:
    manifest = read_manifest(bundle)
    for name in manifest.files:
        _require_free_name(name)
    names = wanted_names(manifest, groups)
    advance = Advance(sum(manifest.files[name].bytes for name in names), _step(progress, "check"))
    found = [_hashed(bundle / name, name, advance, manifest.files[name]) for name in names]
    found.append(_hashed(bundle / MANIFEST_NAME, MANIFEST_NAME, lambda count: None))
    return PushSource(bundle.resolve().name, tuple(found), manifest)


def _hashed(path: Path, name: str, advance: Callable[[int], None], record: FileRecord | None = None) -> PushFile:
    remedy = "convert it again"
    if not path.is_file():
        raise BundleError(str(path), found="no such file", wanted="every file that is pushed", remedy=remedy)
    size = path.stat().st_size
    if record is not None and size != record.bytes:
        raise BundleError(str(path), found=f"{size:,} bytes", wanted=f"{record.bytes:,}", remedy=remedy)
    found = hash_file(path, advance=advance)
    if record is not None and (found.sha256, found.chunks) != (record.sha256, record.chunks):
        wanted = f"{record.sha256} and its chunks, as the manifest says"
        raise BundleError(str(path), found=f"sha256 {found.sha256}", wanted=wanted, remedy=remedy)
    assert len(found.chunks) == ceil_div(found.size, files.CHUNK_BYTES)
    return PushFile(name, path, found.size, found.chunks, files.CHUNK_BYTES)


def _require_free_name(name: str) -> None:
    """No file may stand where a push keeps its own; the device's file system may ignore case."""
    safe_name(name, f"{MANIFEST_NAME} files")
    if name.lower().endswith(PART) or name.lower() in (MANIFEST_NAME, OLD_MANIFEST):
        wanted = f"names other than {OLD_MANIFEST} and *{PART}, which a push keeps for itself"
        raise BundleError(f"{MANIFEST_NAME} files", found=name, wanted=wanted)


def _step(progress: PushProgress | None, step: Step) -> files.Progress | None:
    return None if progress is None else lambda done, total: progress(step, done, total)
