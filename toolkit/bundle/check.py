"""Checks a bundle directory against its format, and reports every fault that it can find. It writes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.base.errors import BundleError, GraphError, system_reason
from toolkit.base.files import CHUNK_BYTES, Advance, Progress, hash_file
from toolkit.base.strict_json import read_bounded
from toolkit.bundle.chat import ChatTemplate, read_template
from toolkit.bundle.check_shard import row_faults
from toolkit.bundle.faults import Fault
from toolkit.bundle.judged import graph_faults
from toolkit.bundle.lock import lock_faults
from toolkit.bundle.manifest import (
    CHAT_TEMPLATE,
    EMBEDDER,
    LOCK,
    MANIFEST_NAME,
    TEXT_DECODER,
    TEXT_GROUPS,
    TOKENIZER,
    FileRecord,
    Manifest,
)
from toolkit.bundle.manifest_json import load_manifest_bytes, parse_manifest
from toolkit.bundle.ple_shards import HEADER_BYTES, ShardHeader, check_sequence, is_shard_name, read_header, shard_name
from toolkit.bundle.prompting import Prompting, turn_end_token, undrawable
from toolkit.bundle.signatures import SignatureShape, buffer_faults, bundle_signatures, shapes_of, signature_faults
from toolkit.bundle.tokenizer import MAX_TOKENIZER_BYTES, Tokenizer
from toolkit.bundle.tokenizer_file import tokenizer_faults
from toolkit.tflite.reader import read_tflite

REQUIRED = (TEXT_DECODER, EMBEDDER, shard_name(0), TOKENIZER)


def check_directory(bundle: Path, *, progress: Progress | None = None) -> list[Fault]:
    """Every fault of a bundle directory."""
    faults: list[Fault] = []
    try:
        data = load_manifest_bytes(bundle)
    except BundleError as error:
        return [Fault(MANIFEST_NAME, "file", error.found, error.wanted)]
    manifest = parse_manifest(data, faults)
    if manifest is None:
        return faults
    faults += _entry_faults(bundle, manifest)
    readable = {name for name in manifest.files if _is_regular(bundle / name)}
    shards = sorted(filter(is_shard_name, readable))
    # The rows of shards are read twice: for the hash of the file, and one by one.
    bytes_ = sum((bundle / name).stat().st_size for name in (*readable, *shards)) - HEADER_BYTES * len(shards)
    advance = Advance(bytes_, progress)
    whole: set[str] = set()
    for name in sorted(readable):
        damages = _content_faults(bundle / name, manifest.files[name], advance)
        whole |= set() if damages else {name}
        faults += damages
    wanted = bundle_signatures(manifest)
    for name in (*wanted, *undescribed_graphs(manifest)):
        if name in readable:
            faults += _graph_faults(bundle / name, wanted.get(name))
    faults += _shard_faults(bundle, manifest, shards, whole, advance)
    if LOCK in readable:
        faults += lock_faults(bundle / LOCK, manifest)
    if TOKENIZER in readable:
        faults += _tokenizer_faults(bundle / TOKENIZER, manifest)
    if CHAT_TEMPLATE in readable:
        faults += _text_faults(bundle / CHAT_TEMPLATE)
    if not faults and CHAT_TEMPLATE in readable:
        faults += _prompt_faults(bundle, manifest)
    return faults


def left_out(bundle: Path, manifest: Manifest) -> tuple[str, ...]:
    """The groups of which this copy has no file, as after `push --groups`; never those that text needs."""
    return tuple(
        name
        for name, group in manifest.groups.items()
        if group.kind not in TEXT_GROUPS and not any((bundle / file).exists() for file in group.files)
    )


def undescribed_graphs(manifest: Manifest) -> tuple[str, ...]:
    """The .tflite files of a bundle that the format does not describe; nothing runs them."""
    known = bundle_signatures(manifest)
    return tuple(name for name in sorted(manifest.files) if name.endswith(".tflite") and name not in known)


def _entry_faults(bundle: Path, manifest: Manifest) -> list[Fault]:
    """Faults for files that are missing (unless their whole group is), not regular files, or not in the manifest."""
    elsewhere = {file for group in left_out(bundle, manifest) for file in manifest.groups[group].files}
    faults = [Fault(name, "file", "not in the manifest", None) for name in REQUIRED if name not in manifest.files]
    entries = set(os.listdir(bundle))
    for name in sorted(manifest.files.keys() - elsewhere):
        if name not in entries:
            faults.append(Fault(name, "file", "missing", f"{manifest.files[name].bytes} bytes"))
        elif not _is_regular(bundle / name):
            faults.append(Fault(name, "file", "a link, a directory or a device", "a regular file"))
    for name in sorted(entries - manifest.files.keys() - {MANIFEST_NAME}):
        faults.append(Fault(name, "file", "not in the manifest", None))
    return faults


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _content_faults(path: Path, record: FileRecord, advance: Advance) -> list[Fault]:
    """Faults for content that differs from the manifest, with the byte range of each damaged chunk."""
    try:
        found = hash_file(path, advance=advance)
    except OSError as error:
        return [Fault(path.name, "file", system_reason(error), None)]
    faults = []
    if found.size != record.bytes:
        faults.append(Fault(path.name, "size", f"{found.size} bytes", f"{record.bytes} bytes"))
    damaged = [i for i, (a, b) in enumerate(zip(found.chunks, record.chunks, strict=False)) if a != b]
    for i in damaged:
        begin, end = i * CHUNK_BYTES, min((i + 1) * CHUNK_BYTES, found.size)
        faults.append(Fault(path.name, f"bytes {begin} to {end}", f"sha256 {found.chunks[i]}", record.chunks[i]))
    if not faults and found.sha256 != record.sha256:
        faults.append(Fault(path.name, "sha256", found.sha256, record.sha256))
    return faults


def _graph_faults(path: Path, wanted: Mapping[str, SignatureShape] | None) -> list[Fault]:
    """Faults of a graph; `wanted`: None for one that the format does not describe."""
    try:
        content = read_tflite(path)
    except GraphError as error:
        return [Fault.of(error, path.name, "graph")]
    faults = buffer_faults(path.name, content)
    if wanted is None:
        return faults
    faults += signature_faults(path.name, shapes_of(content), wanted)
    return faults or graph_faults(path, wanted)


def _tokenizer_faults(path: Path, manifest: Manifest) -> list[Fault]:
    """Faults in the form of the tokenizer's file, and tower token ids that no token has."""
    towers = {"vision": manifest.vision, "audio": manifest.audio}
    spelled = {
        f"{group} {key}": token
        for group, tower in towers.items()
        if tower is not None
        for key, token in tower.markers().items()
    }
    try:
        data = read_bounded(path, BundleError, MAX_TOKENIZER_BYTES)
    except BundleError as error:
        return [Fault.of(error, path.name, "size")]
    return tokenizer_faults(path.name, data, manifest.text.vocab_size, spelled)


def _shard_faults(
    bundle: Path, manifest: Manifest, shards: Sequence[str], whole: set[str], advance: Advance
) -> list[Fault]:
    """Faults of PLE shards: wrong headers, wrong order, or the shapes of another model.

    Rows are checked only in the shards in `whole`, whose hashes are right; the other shards have a fault already.
    """
    paths = [bundle / name for name in shards]
    faults: list[Fault] = []
    headers: list[ShardHeader] = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except BundleError as error:
            faults.append(Fault.of(error, path.name, "shard"))
    if faults or not paths:
        return faults
    try:
        check_sequence(paths, headers)
    except BundleError as error:
        return [Fault.of(error, paths[0].name, "shard")]
    text, layout = manifest.text, headers[0].layout
    wanted = (text.ple_vocab_size, text.num_layers, text.ple_size)
    found = (layout.vocab_size, layout.layers, layout.width)
    if found != wanted:
        faults.append(Fault(paths[0].name, "rows, layers and width", str(found), f"{wanted}, as in the manifest"))
    for path, header in zip(paths, headers, strict=True):
        if path.name in whole:
            faults += row_faults(path, header, advance)
    return faults


def _prompt_faults(bundle: Path, manifest: Manifest) -> list[Fault]:
    """Faults of the chat template: invalid, a turn's end that is no stop token, or tokens that a session refuses."""
    faults = []
    try:
        tokenizer = Tokenizer(bundle / TOKENIZER)
        prompting = Prompting.of(tokenizer, manifest)
        template = ChatTemplate.open(bundle / CHAT_TEMPLATE, bos_token=prompting.bos_token)
        stops, token = manifest.text.stop_token_ids, turn_end_token(template, (bundle / TOKENIZER).read_bytes())
        refused = undrawable(template, prompting, manifest.text.text_ids)
    except BundleError as error:
        return [Fault.of(error, CHAT_TEMPLATE, "template")]
    if token is not None and token not in stops:
        wanted = f"a stop token, one of {list(stops)}"
        faults.append(Fault(CHAT_TEMPLATE, "the end of a turn", f"token {token}", wanted))
    if refused is not None:
        conversation, token = refused
        found, wanted = f"token {token}", f"ids below {manifest.text.text_ids}, which stand for text"
        faults.append(Fault(CHAT_TEMPLATE, conversation.name, found, wanted))
    return faults


def _text_faults(path: Path) -> list[Fault]:
    try:
        read_template(path, BundleError)
    except BundleError as error:
        return [Fault.of(error, path.name, "text")]
    return []
