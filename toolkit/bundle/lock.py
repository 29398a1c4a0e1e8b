"""The lock of a bundle (docs/formats/lock.md): everything that determines its bytes, and the hashes of its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, cast

from toolkit.base.errors import BundleError, UsageError
from toolkit.base.json_types import Ascending, Fits, MayBeAbsent, Range
from toolkit.base.strict_json import parse_json, read_bounded, read_record, shorten, without_format
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import LOCK, CheckpointRecord, Manifest, QuantRecord, SamplingRecord
from toolkit.bundle.manifest_json import drop_defaults, drop_sampling_defaults, manifest_digest
from toolkit.bundle.manifest_values import MAX_DIMENSION, MAX_LAYERS, DraftTokens, Name, Sha256, SizeName, Text

FORMAT = "gemma-edge-lock/1"
MAX_LOCK_BYTES = 16 * 1024 * 1024

Positions = Annotated[int, Range(2, MAX_DIMENSION)]
Group = Literal["text", "vision", "audio"]
_TOWERS: tuple[Group, ...] = ("vision", "audio")
LEAST_DRAFTER_TOKENS = 600
"""This many tokens make at least five passages, one of which is held out."""


@dataclass(frozen=True, slots=True)
class LockedSize:
    """A size of the bundle: the checkpoint's layers that it keeps, and the feed-forward width of each."""

    name: SizeName
    layers: Annotated[tuple[Annotated[int, Range(0, MAX_LAYERS - 1)], ...], Ascending()]
    ffn_sizes: tuple[Annotated[int, Range(1, MAX_DIMENSION)], ...]


@dataclass(frozen=True, slots=True)
class DrafterSettings:
    """What determines a drafter, besides the model that it is fitted to."""

    tokens: Annotated[int, Range(LEAST_DRAFTER_TOKENS, 2**32)] = 8192
    """How many tokens the model writes greedily for the drafter to be fitted to."""
    hidden_units: Annotated[int, Range(2, 2**16), Fits(lambda number: number % 2 == 0, "an even number")] = 2048
    """An even number, because they are stored in pairs."""

    def __post_init__(self) -> None:
        """UsageError for what a lock cannot hold; the types above refuse it in a lock."""
        if self.tokens < LEAST_DRAFTER_TOKENS:
            raise UsageError("tokens for a drafter", found=self.tokens, wanted=f"at least {LEAST_DRAFTER_TOKENS}")
        if self.hidden_units % 2:
            raise UsageError("hidden units of a drafter", found=self.hidden_units, wanted="an even number")


@dataclass(frozen=True, slots=True)
class LockedMedia:
    """The pictures and sounds that the towers' inputs were measured on: the hash of their hashes, and how many."""

    sha256: Sha256
    pictures: Annotated[int, Range(0, 2**32)]
    sounds: Annotated[int, Range(0, 2**32)]


@dataclass(frozen=True, slots=True)
class LockedExport:
    """What an export was made with."""

    size: SizeName
    groups: tuple[Name, ...]
    model_type: Text
    activations: Text | None
    target: Text
    sampling: Annotated[SamplingRecord | None, MayBeAbsent()] = None
    """None for the bundle's."""
    drafter: Annotated[DrafterSettings | None, MayBeAbsent()] = None
    """How the export's own drafter was fitted; None if it has the bundle's, an assistant, or none."""
    assistant: Annotated[CheckpointRecord | None, MayBeAbsent()] = None
    """The drafter's checkpoint that the export's own drafter is of."""


@dataclass(frozen=True, slots=True)
class Lock:
    """What was converted, how, by which version of gemma-edge, and the hashes of the result."""

    generator: Text
    checkpoint: CheckpointRecord
    calibration: Sha256 | None
    """The hash of the text that activations were measured on; None without calibration."""
    groups: tuple[Group, ...]
    sizes: tuple[LockedSize, ...]
    """The default size first."""
    recipes: Mapping[Name, QuantRecord]
    context: Positions
    prefill_sizes: Annotated[tuple[Positions, ...], Ascending()]
    shard_bytes: Annotated[int, Range(1, 2**50)]
    audio_seconds: tuple[Annotated[float, Range(0, 1e6)], ...]
    """Empty if the model family chooses them."""
    files: Mapping[Name, Sha256]
    """Every file of the bundle except its manifest and this lock."""
    manifest: Sha256 | None
    """The hash that the manifest would have without this lock in its list; None only before it is known."""
    export: LockedExport | None
    """None for a bundle."""
    draft_tokens: Annotated[DraftTokens | None, MayBeAbsent()] = None
    """How many drafts a step of speculative decoding checks; None for a bundle without it."""
    drafter: Annotated[DrafterSettings | None, MayBeAbsent()] = None
    """How the bundle's drafter was fitted, even if it was left out as too slow; None if none was asked for."""
    assistant: Annotated[CheckpointRecord | None, MayBeAbsent()] = None
    """The checkpoint of the bundle's drafter, if that was published."""
    calibration_media: Annotated[LockedMedia | None, MayBeAbsent()] = None
    """What the towers were calibrated with; None if they were not."""


def locked_groups(towers: Container[str]) -> tuple[Group, ...]:
    """The groups that a lock names, of a bundle with these towers."""
    return ("text", *(tower for tower in _TOWERS if tower in towers))


def completed(lock: Lock, manifest: Manifest) -> Lock:
    """The lock with the hashes of the files; `manifest` must list all files except the lock."""
    files = {name: record.sha256 for name, record in manifest.files.items()}
    return replace(lock, files=files, manifest=manifest_digest(manifest))


def dump_lock(lock: Lock) -> bytes:
    """Encode a lock as a file in canonical JSON: equal locks give equal bytes."""
    return (json.dumps(_value(lock), indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def lock_line(lock: Lock) -> str:
    """The lock's JSON in one line, as a section of a .litertlm holds it."""
    return json.dumps(_value(lock), separators=(",", ":"), sort_keys=True, allow_nan=False)


def _value(lock: Lock) -> dict[str, object]:
    value = {"format": FORMAT, **dataclasses.asdict(lock)}
    drop_defaults(value["recipes"])
    for key in ("draft_tokens", "drafter", "assistant", "calibration_media"):
        if value[key] is None:
            del value[key]
    if lock.export is not None:
        drop_sampling_defaults(value["export"]["sampling"])
        for key in ("drafter", "assistant"):
            if value["export"][key] is None:
                del value["export"][key]
    return value


def parse_lock(data: bytes, file: Path | str = LOCK) -> Lock:
    """Read a lock strictly; BundleError for the first fault."""
    fields = without_format(parse_json(data, str(file), BundleError), FORMAT, str(file), BundleError)
    return read_record(fields, Lock, str(file), BundleError)


def read_lock(path: Path) -> Lock:
    """Read the lock in a bundle's directory, or the lock file at `path`; BundleError if there is none."""
    file = path / LOCK if path.is_dir() else path
    if not file.exists():
        found = f"no {LOCK}" if path.is_dir() else "no such file"
        raise BundleError(file=path, found=found, remedy=f"name a bundle, a .litertlm or a {LOCK}")
    return parse_lock(read_bounded(file, BundleError, MAX_LOCK_BYTES), file)


def locked_output(path: Path) -> Path:
    """What a lock at `path` is of, to find what is kept beside it: the bundle of a lock.json, otherwise `path`."""
    return path.parent if path.name == LOCK else path


def lock_faults(path: Path, manifest: Manifest) -> list[Fault]:
    """Faults of a bundle's lock: a wrong form, and what differs from the manifest."""
    try:
        lock = read_lock(path)
    except BundleError as error:
        return [Fault.of(error, path.name, "lock")]
    others = {name: record for name, record in manifest.files.items() if name != LOCK}
    text = manifest.text
    wanted = replace(
        completed(lock, replace(manifest, files=others)),
        generator=manifest.generator,
        checkpoint=manifest.checkpoint,
        groups=locked_groups(manifest.groups),
        sizes=_sizes(manifest, [size.name for size in lock.sizes]),
        recipes=manifest.quant,
        context=text.context,
        prefill_sizes=text.prefill_sizes,
        draft_tokens=text.draft_tokens,
        export=None,
    )
    return [Fault(path.name, place, found, wanted) for place, found, wanted in differences(lock, wanted)]


def _sizes(manifest: Manifest, order: Sequence[str]) -> tuple[LockedSize, ...]:
    """The sizes of a manifest, the default one first, then in the order of a lock, which a manifest does not keep."""

    def rank(name: str) -> tuple[bool, int]:
        return name != manifest.default_size, order.index(name) if name in order else len(order)

    sizes = [(name, manifest.sizes[name]) for name in sorted(manifest.sizes, key=rank)]
    return tuple(LockedSize(name, size.layers, size.ffn_sizes) for name, size in sizes)


def differences(found: Lock, wanted: Lock) -> list[tuple[str, str, str]]:
    """Every value that differs: its place, the value found, and the value wanted."""
    return list(_compare("", json.loads(lock_line(found)), json.loads(lock_line(wanted))))


def _compare(place: str, found: object, wanted: object) -> Iterator[tuple[str, str, str]]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from _compare(f"{place} {key}".strip(), found.get(key, "nothing"), wanted.get(key, "nothing"))
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for i, (one, other) in enumerate(zip(found, cast("list[object]", wanted), strict=True)):
            yield from _compare(f"{place}[{i}]", one, other)
    elif found != wanted:
        yield place, shorten(found), shorten(wanted)
