"""Writes a bundle: files into a temporary directory, hashes of them, the manifest last, and then one rename."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import toolkit
from toolkit.base.errors import BundleError
from toolkit.base.files import BackgroundHasher, FileHash, atomic_directory, hash_file, safe_name, write_bytes
from toolkit.base.outputs import Output, OutputKind
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
    """Files that are loaded together, how many of the checkpoint's weights they hold, what a runtime must know."""

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
    """The bundle's lock without hashes; None for a bundle without a lock."""


def write_bundle(
    path: Path | str,
    fill: Callable[[Path], BundleDraft],
    *,
    extend: Callable[[Path, BundleDraft], BundleDraft] | None = None,
    accept: Callable[[Path], None] | None = None,
    hasher: BackgroundHasher | None = None,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> Manifest:
    """Write a bundle to `path`: `fill` writes its files into an empty directory, which is renamed when it is complete.

    `extend` gets the result of `fill` as a bundle that can be run; it may write more files, and returns the new draft.
    `accept` gets the complete directory before the rename, and raises to reject it. `hasher` has the hashes of the
    files that `fill` added to it. An older bundle at `path` is replaced; any other directory that is not empty, only
    with `force`; one of the `inputs`, never. After an error, `path` is unchanged.
    """
    output = Output(Path(path), BUNDLE, tuple(inputs), force)
    with atomic_directory(output.require(), replace=True) as partial:
        draft = fill(partial)
        hash_of = cache(hash_file if hasher is None else hasher.hash)
        if extend is not None:
            write_bytes(partial / MANIFEST_NAME, dump_manifest(describe(draft, partial, hash_of)))
            draft = extend(partial, draft)
            (partial / MANIFEST_NAME).unlink()
        manifest = describe(draft, partial, hash_of)
        if draft.lock is not None:
            manifest = _locked(manifest, draft.lock, partial)
        write_bytes(partial / MANIFEST_NAME, dump_manifest(manifest))
        if accept is not None:
            accept(partial)
        output.require()  # what is at the path may have changed since
    return manifest


def _stranger(path: Path) -> str | None:
    """Says what a directory with files in it is, if it is not a bundle without other files; otherwise None."""
    try:
        known = {MANIFEST_NAME, *read_manifest(path).files}
    except BundleError:
        return "a directory that is not a bundle"
    strangers = sorted(entry.name for entry in path.iterdir() if entry.name not in known)
    return f"a bundle with {', '.join(strangers[:3])} in it" if strangers else None


BUNDLE = OutputKind("a bundle", _stranger, is_directory=True, other_endings=(".litertlm", ".tflite", ".task"))


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
