"""Contradictions between parts of a manifest that are each valid on their own (docs/formats/manifest.md)."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator

from toolkit.base.files import CHUNK_BYTES
from toolkit.base.layout import ceil_div
from toolkit.base.strict_json import shorten
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import (
    DRAFTER,
    DRAFTER_TEXT,
    GROUP_NAMES,
    MANIFEST_NAME,
    RESERVED_PREFIX,
    TOWER_FILES,
    AudioRecord,
    DrafterRecord,
    Manifest,
    TextRecord,
    VisionRecord,
)

_TEXT = "groups text runtime"


def contradictions(manifest: Manifest) -> Iterator[Fault]:
    """All contradictions in the manifest, in the order of its parts."""
    faults = list(_kind_faults(manifest))
    if faults:
        # The other checks rely on the records of these groups.
        yield from faults
        return
    yield from _text_faults(manifest)
    yield from _tower_faults(manifest)
    yield from _drafter_faults(manifest)
    yield from _size_faults(manifest)
    yield from _file_faults(manifest)


def _fault(place: str, found: object, wanted: str) -> Fault:
    return Fault(MANIFEST_NAME, place, str(found), wanted)


def _kind_faults(manifest: Manifest) -> Iterator[Fault]:
    if "text" not in manifest.groups:
        yield _fault("groups", ", ".join(manifest.groups) or "none", "text among them")
    for name, group in manifest.groups.items():
        if name in GROUP_NAMES and group.kind != name:
            yield _fault(f"groups {name} kind", group.kind, f"{name}, because its name is that of a kind")


def _text_faults(manifest: Manifest) -> Iterator[Fault]:
    text = manifest.text
    yield from _bound_faults(text)
    for bucket in text.prefill_buckets:
        if bucket not in text.context_buckets or bucket < text.prefill_sizes[-1]:
            yield _fault(f"{_TEXT} prefill_buckets", bucket, "context buckets that hold the largest prefill")
    if text.draft_tokens is not None and text.draft_tokens >= text.prefill_sizes[-1]:
        yield _fault(f"{_TEXT} draft_tokens", text.draft_tokens, f"less than {text.prefill_sizes[-1]}, a prefill")
    if not 1 <= len(text.kv_caches) <= text.num_layers:
        yield _fault(
            f"{_TEXT} kv_caches",
            f"{len(text.kv_caches)} entries",
            f"1 to {text.num_layers}, the number of layers",
        )
    for i, cache in enumerate(text.kv_caches):
        least = text.context if cache.window is None else min(text.context, cache.window + text.prefill_sizes[-1])
        if len(cache.shape) != 4 or cache.shape[0] != 1 or not least <= cache.shape[2] <= text.context:
            rows = f"{least}" if least == text.context else f"{least} to {text.context}"
            yield _fault(
                f"{_TEXT} kv_caches[{i}] shape",
                shorten(list(cache.shape)),
                f"[1, kv_heads, {rows}, head_dim]",
            )
    names = Counter(name for cache in text.kv_caches for name in (cache.key, cache.value))
    for name, count in names.items():
        if count > 1:
            yield _fault(f"{_TEXT} kv_caches", f"{name} {count} times", "each name once")


def _bound_faults(text: TextRecord) -> Iterator[Fault]:
    """Faults for numbers that exceed what other fields allow."""
    numbers = {
        "ple_vocab_size": (text.ple_vocab_size, text.vocab_size),
        "text_vocab_size": (text.text_ids, text.vocab_size),
        "bos_token_id": (text.bos_token_id, text.vocab_size - 1),
        "pad_token_id": (text.pad_token_id, text.vocab_size - 1),
    }
    for key, (number, most) in numbers.items():
        if number > most:
            yield _fault(f"{_TEXT} {key}", number, f"at most {most}")
    yield from _list_faults(f"{_TEXT} prefill_sizes", text.prefill_sizes, text.context)
    yield from _list_faults(f"{_TEXT} context_buckets", text.context_buckets, text.context - 1)
    yield from _list_faults(f"{_TEXT} prefill_buckets", text.prefill_buckets, text.context - 1)
    yield from _list_faults(f"{_TEXT} stop_token_ids", text.stop_token_ids, text.vocab_size - 1)


def _list_faults(place: str, ascending: tuple[int, ...], most: int) -> Iterator[Fault]:
    """A fault for the first number above `most`, if there is one."""
    first = bisect.bisect_right(ascending, most)
    if first < len(ascending):
        yield _fault(f"{place}[{first}]", ascending[first], f"at most {most}")


def _tower_faults(manifest: Manifest) -> Iterator[Fault]:
    vision, audio = manifest.vision, manifest.audio
    for name, files in TOWER_FILES.items():
        group = manifest.groups.get(name)
        if group is not None and sorted(group.files) != sorted(files):
            yield _fault(f"groups {name} files", ", ".join(group.files), " and ".join(files))
    towers: dict[str, VisionRecord | AudioRecord | None] = {"vision": vision, "audio": audio}
    for name, tower in towers.items():
        for key, found, wanted in () if tower is None else _token_faults(tower, manifest.text.vocab_size):
            yield _fault(f"groups {name} runtime {key}", found, wanted)
    if audio is not None:
        most = audio.soft_tokens * audio.frames_per_token
        yield from _list_faults("groups audio runtime frame_lengths", audio.frame_lengths, most)
    if vision is not None and audio is not None and _overlap(vision.table, audio.table):
        yield _fault(
            "groups audio runtime vocab_offset",
            audio.vocab_offset,
            f"no id from {vision.table[0]} to {vision.table[-1]}, vision's",
        )


def _drafter_faults(manifest: Manifest) -> Iterator[Fault]:
    drafter, drafts = manifest.drafter, manifest.text.draft_tokens
    if drafter is None:
        return
    files, wanted = manifest.groups["drafter"].files, (DRAFTER, DRAFTER_TEXT)[: 2 if drafter.checkpoint is None else 1]
    if sorted(files) != sorted(wanted):
        yield _fault("groups drafter files", ", ".join(files), " and ".join(wanted))
    if drafter.size not in manifest.sizes:
        yield _fault("groups drafter runtime size", drafter.size, " or ".join(manifest.sizes))
    if drafter.checkpoint is None:
        yield from _fitted_faults(drafter, drafts)
    else:
        yield from _published_faults(drafter, manifest.text)


def _fitted_faults(drafter: DrafterRecord, drafts: int | None) -> Iterator[Fault]:
    """Faults of the record of a drafter that was fitted."""
    place = "groups drafter runtime"
    if len(drafter.acceptance) != drafts:
        number = "as many as draft_tokens" if drafts is None else f"{drafts}, as draft_tokens"
        yield _fault(f"{place} acceptance", f"{len(drafter.acceptance)} numbers", number)
    if drafter.steps is None:
        yield _fault(f"{place} steps", "missing", "how many steps acceptance was measured on")
    if drafter.caches:
        yield _fault(f"{place} caches", ", ".join(drafter.caches), "none without the checkpoint of a drafter")


def _published_faults(drafter: DrafterRecord, text: TextRecord) -> Iterator[Fault]:
    """Faults of the record of a drafter that was published."""
    place = "groups drafter runtime"
    if text.draft_tokens is None:
        yield _fault(f"{_TEXT} draft_tokens", "missing", "how many drafts a step checks, because there is a drafter")
    if drafter.acceptance or drafter.steps is not None:
        yield _fault(place, "acceptance or steps", "neither beside checkpoint: they are of drafters that were fitted")
    if not drafter.caches:
        yield _fault(f"{place} caches", "none", "the caches that it reads")
    names = {name for cache in text.kv_caches for name in (cache.key, cache.value)}
    for name, count in Counter(drafter.caches).items():
        if name not in names or count > 1:
            yield _fault(f"{place} caches", f"{name} {count} times", "names of kv_caches, each once")


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _token_faults(tower: VisionRecord | AudioRecord, vocab_size: int) -> Iterator[tuple[str, int, str]]:
    """Key, value found and value wanted for each token id that does not fit."""
    if tower.table[-1] >= vocab_size:
        yield "vocab_size", tower.vocab_size, f"at most {vocab_size - tower.vocab_offset} from vocab_offset on"
    for key, token in tower.markers().items():
        if token >= vocab_size:
            yield key, token, f"0 to {vocab_size - 1}"
    own = {"end_token_id": tower.end_token_id}
    if isinstance(tower, AudioRecord):
        own["padding_token_id"] = tower.padding_token_id
    for key, token in own.items():
        if token not in tower.table:
            yield key, token, f"{tower.table[0]} to {tower.table[-1]}, the tower's table"


def _size_faults(manifest: Manifest) -> Iterator[Fault]:
    for name, size in manifest.sizes.items():
        if len(size.layers) != len(size.ffn_sizes):
            yield _fault(f"sizes {name}", f"{len(size.layers)} layers, {len(size.ffn_sizes)} widths", "as many of both")
        if size.prefix.startswith(RESERVED_PREFIX):
            yield _fault(f"sizes {name} prefix", size.prefix, f"none that starts with {RESERVED_PREFIX}")
    for prefix, count in Counter(size.prefix for size in manifest.sizes.values()).items():
        if count > 1:
            yield _fault("sizes", f"prefix {prefix!r} {count} times", "each prefix once")
    default = manifest.sizes.get(manifest.default_size)
    if default is None or default.prefix:
        yield _fault("default_size", manifest.default_size, "the size whose prefix is empty")
    layers = {layer for size in manifest.sizes.values() for layer in size.layers}
    if manifest.sizes and len(layers) != manifest.text.num_layers:
        yield _fault(
            f"{_TEXT} num_layers",
            manifest.text.num_layers,
            f"{len(layers)}, the layers of all sizes together",
        )


def _file_faults(manifest: Manifest) -> Iterator[Fault]:
    for name, count in Counter(name.lower() for name in manifest.files).items():
        if count > 1 or name == MANIFEST_NAME:
            yield _fault("files", name, "names that differ in more than case, and not the manifest's own")
    for name, file in manifest.files.items():
        chunks = ceil_div(file.bytes, CHUNK_BYTES)
        if len(file.chunks) != chunks:
            yield _fault(f"files {name} chunks", len(file.chunks), f"{chunks} for {file.bytes} bytes")
    for name, count in Counter(file for group in manifest.groups.values() for file in group.files).items():
        if count > 1 or name not in manifest.files:
            yield _fault("groups", f"{name} {count} times", "files of the bundle, each in one group")
    for name, group in manifest.groups.items():
        total = sum(manifest.files[file].bytes for file in group.files if file in manifest.files)
        if group.bytes != total:
            yield _fault(f"groups {name} bytes", group.bytes, f"{total}, the sum of its files")
