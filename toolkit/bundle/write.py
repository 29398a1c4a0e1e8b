"""Writes a bundle: files into a temporary directory, their hashes, the manifest last, then one rename."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import toolkit
from toolkit.base.errors import BundleError, UsageError
from toolkit.base.files import BackgroundHasher, FileHash, atomic_directory, hash_file, safe_name, write_bytes
from toolkit.bundle.lock import Lock, completed, dump_lock
from toolkit.bundle.manifest import (
    LOCK,
    MANIFEST_NAME,
    CheckpointRecord,
    FileRecord,
    GroupKind,
    GroupRecord,
    GroupRuntime,
    Manifest,
    QuantRecord,
    SizeRecord,
)
from toolkit.bundle.manifest_json import dump_manifest, read_manifest

GENERATOR = f"gemma-edge {toolkit.__version__}"


@dataclass(frozen=True, slots=True)
class GroupDraft:
    """Files that are loaded together, how many of the checkpoint's weights they hold, and what a runtime must know."""

    kind: GroupKind
    files: tuple[str, ...]
    parameters: int
    runtime: GroupRuntime | None = None
    """None for both kinds of embeddings."""


@dataclass(frozen=True, slots=True)
class BundleDraft:
    """The manifest before the sizes and hashes of its files are known."""

    architecture: str
    checkpoint: CheckpointRecord
    sizes: Mapping[str, SizeRecord]
    default_size: str
    quant: Mapping[str, QuantRecord]
    groups: Mapping[str, GroupDraft]
    lock: Lock | None = None
    """The bundle's lock without hashes; None for a bundle without one."""


def write_bundle(
    path: Path | str,
    fill: Callable[[Path], BundleDraft],
    *,
    accept: Callable[[Path], None] | None = None,
    hasher: BackgroundHasher | None = None,
) -> Manifest:
    """Write a bundle to `path`: `fill` writes the files into an empty directory, which is renamed once it is complete.

    `accept` gets the complete directory before the rename, and raises to reject it. `hasher` has the hashes of the
    files that `fill` added to it. An older bundle at `path` is replaced; any other directory that is not empty is an
    error. After an error, `path` is unchanged.
    """
    target = Path(path)
    require_bundle_or_nothing(target)
    with atomic_directory(target, replace=True) as partial:
        draft = fill(partial)
        manifest = describe(draft, partial, hash_file if hasher is None else hasher.hash)
        if draft.lock is not None:
            manifest = _locked(manifest, draft.lock, partial)
        write_bytes(partial / MANIFEST_NAME, dump_manifest(manifest))
        if accept is not None:
            accept(partial)
    return manifest


def require_bundle_or_nothing(path: Path) -> None:
    """UsageError unless nothing is at `path`, or an empty directory, or a bundle without any other files in it."""
    if not path.exists():
        return
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if path.is_dir() and not entries:
        return
    wanted = "a new directory, an empty one, or a bundle to replace"
    remedy = "choose another directory, or remove this one"
    try:
        known = {MANIFEST_NAME, *read_manifest(path).files}
    except BundleError as error:
        raise UsageError(file=path, found="a directory that is no bundle", wanted=wanted, remedy=remedy) from error
    strangers = [name for name in entries if name not in known]
    if strangers:
        raise UsageError(
            file=path, found=f"a bundle with {', '.join(strangers[:3])} in it", wanted=wanted, remedy=remedy
        )


def describe(draft: BundleDraft, directory: Path, hash_of: Callable[[Path], FileHash] = hash_file) -> Manifest:
    """The manifest of the files in `directory`."""
    files: dict[str, FileRecord] = {}
    for entry in sorted(directory.iterdir()):
        name = safe_name(entry.name, f"a file of the bundle in {directory}")
        if entry.is_symlink() or not entry.is_file():
            raise BundleError(file=entry, found="not a regular file")
        found = hash_of(entry)
        files[name] = FileRecord(found.size, found.sha256, found.chunks)
    return Manifest(
        generator=GENERATOR,
        architecture=draft.architecture,
        checkpoint=draft.checkpoint,
        sizes=dict(draft.sizes),
        default_size=draft.default_size,
        quant=dict(draft.quant),
        groups={name: _group(name, group, files) for name, group in sorted(draft.groups.items())},
        files=files,
    )


def _locked(manifest: Manifest, lock: Lock, directory: Path) -> Manifest:
    """Write the lock, and list it in the manifest."""
    write_bytes(directory / LOCK, dump_lock(completed(lock, manifest)))
    found = hash_file(directory / LOCK)
    files = {**manifest.files, LOCK: FileRecord(found.size, found.sha256, found.chunks)}
    return replace(manifest, files=dict(sorted(files.items())))


def _group(name: str, draft: GroupDraft, files: Mapping[str, FileRecord]) -> GroupRecord:
    missing = [file for file in draft.files if file not in files]
    if missing:
        raise BundleError(f"group {name}", found=f"no file {', '.join(missing)}")
    size = sum(files[file].bytes for file in draft.files)
    return GroupRecord(draft.kind, draft.files, draft.parameters, size, draft.runtime)
