"""The pictures and sounds that the towers' inputs are measured on for calibration: the files of a folder."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from toolkit.base.errors import UsageError, system_reason
from toolkit.base.strict_json import open_regular, shorten
from toolkit.bundle.lock import LockedMedia
from toolkit.bundle.manifest import AudioRecord, VisionRecord
from toolkit.runtime.media_prompt import Medium, TowerName, read_image, read_sound

_log = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_FILES = 4096
MAX_FILE_BYTES = 1 << 30
SUFFIXES: Mapping[TowerName, tuple[str, ...]] = {
    "vision": (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    "audio": (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".wav"),
}
"""The endings of the names of pictures and of sounds, in lower case."""
KINDS: Mapping[TowerName, str] = {"vision": "pictures", "audio": "sounds"}
_READ_BYTES = 1 << 20
_DECODED_BYTES = 512 << 20  # 300 images of 768 x 768 pixels, or nearly three hours of sound
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """A picture or a sound, and the SHA-256 of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class CalibrationMedia:
    """The pictures and sounds of a folder, each once, in the order of their hashes: names and dates do not matter."""

    folder: Path
    files: Mapping[TowerName, tuple[CalibrationFile, ...]]

    @property
    def record(self) -> LockedMedia:
        """What a lock says of them."""
        counts = {group: len(self.files.get(group, ())) for group in KINDS}
        lines = (f"{group} {file.sha256}\n" for group in KINDS for file in self.files.get(group, ()))
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        return LockedMedia(digest, counts["vision"], counts["audio"])

    def of(self, groups: Collection[TowerName]) -> CalibrationMedia:
        """Those of some towers."""
        return CalibrationMedia(self.folder, {group: self.files[group] for group in groups})


def read_calibration_media(folder: Path) -> CalibrationMedia:
    """Find and hash the pictures and sounds that lie in a folder; nothing is decoded yet.

    Names that begin with a dot are passed over; other files and folders are, with a warning in the log. UsageError for
    a folder without pictures and sounds, and for a file that cannot be read.
    """
    found: dict[TowerName, dict[str, CalibrationFile]] = {group: {} for group in KINDS}
    others = []
    for path in _listed(folder):
        group = _group(path)
        if group is None:
            others.append(path.name)
        else:
            file = CalibrationFile(path, _sha256(path))
            found[group].setdefault(file.sha256, file)
    if others:
        named = ", ".join(shorten(name, 40) for name in others[:_MOST_NAMED])
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        _log.warning("%s: neither pictures nor sounds, and left out: %s%s", folder, named, more)
    if not any(found.values()):
        endings = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        raise UsageError(
            "calibration media", file=folder, found="no pictures or sounds", wanted=f"files that end in {endings}"
        )
    return CalibrationMedia(
        folder, {group: tuple(files[key] for key in sorted(files)) for group, files in found.items()}
    )


def require_locked(media: CalibrationMedia, locked: LockedMedia) -> CalibrationMedia:
    """The media of the kinds that a lock counts; UsageError, which says what differs, unless they are the lock's."""
    counts: Mapping[TowerName, int] = {"vision": locked.pictures, "audio": locked.sounds}
    chosen = media.of([group for group, count in counts.items() if count])
    found = chosen.record
    if found == locked:
        return chosen
    differs = f"{counted(found)} with sha256 {found.sha256}"
    wanted = f"{counted(locked)} with sha256 {locked.sha256}, as the lock says"
    raise UsageError("calibration media", file=media.folder, found=differs, wanted=wanted)


def counted(record: LockedMedia) -> str:
    """How many there are, in words."""
    return f"{record.pictures} pictures and {record.sounds} sounds"


def decoded(media: CalibrationMedia, record: VisionRecord | AudioRecord, most: int) -> Sequence[Medium]:
    """At most so many of the pictures, or pieces of the sounds, as a tower takes them, and no more than memory bears.

    UsageError for a file that is not what its name says, or that has changed since it was hashed.
    """
    found: list[Medium] = []
    group: TowerName = "vision" if isinstance(record, VisionRecord) else "audio"
    for file in media.files[group][:most]:
        if sum(medium.values.nbytes for medium in found) > _DECODED_BYTES:
            break
        if _sha256(file.path) != file.sha256:
            raise UsageError("calibration media", file=file.path, found="a file that has changed", remedy="try again")
        if isinstance(record, VisionRecord):
            found.append(read_image(file.path, record))
        else:
            found += read_sound(file.path, record)
    # A long sound has many pieces: of all of them, some are taken at equal distances.
    return spaced(found, most) if len(found) > most else found


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """So many of the items, in order and at equal distances; some of them repeatedly if there are fewer.

    >>> spaced("abcdef", 3), spaced("ab", 3)
    (['a', 'c', 'e'], ['a', 'a', 'b'])
    """
    return [items[i * len(items) // count] for i in range(count)]


def _listed(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = []
            for entry in entries:
                if not entry.name.startswith("."):
                    names.append(entry.name)
                if len(names) > MAX_FILES:
                    wanted = f"at most {MAX_FILES:,} files; a few hundred suffice"
                    raise UsageError("calibration media", file=folder, found="more files", wanted=wanted)
    except (OSError, ValueError) as error:
        raise UsageError("calibration media", file=folder, found=system_reason(error), wanted="a folder") from error
    return [folder / name for name in sorted(names)]


def _group(path: Path) -> TowerName | None:
    suffix = path.suffix.lower()
    return next((group for group, suffixes in SUFFIXES.items() if suffix in suffixes and not path.is_dir()), None)


def _sha256(path: Path) -> str:
    with open(open_regular(path, UsageError), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise UsageError(
                "calibration media", file=path, found=f"{size:,} bytes", wanted=f"at most {MAX_FILE_BYTES:,}"
            )
        digest = hashlib.sha256()
        try:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        except OSError as error:
            raise UsageError("calibration media", file=path, found=system_reason(error)) from error
    return digest.hexdigest()
