"""Makes a bundle or a .litertlm again, from its lock and its checkpoint, with the same bytes; or says what differs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from converters.assistant import AssistantChoice, assistant_for_export
from converters.calibration.calibrate import restore_text
from converters.calibration.media import CalibrationMedia, counted, read_calibration_media, require_locked
from converters.calibration.text import CalibrationText, calibration_output, locked_calibration_text
from converters.convert import convert
from converters.families import FAMILIES
from converters.family import Family
from converters.huggingface.adapters.choice import AdapterChoice
from converters.lock import locked_recipes, locked_slices
from converters.request import ConvertRequest
from toolkit.base.activations import Activations
from toolkit.base.environment import ENVIRONMENT, environment_differences, write_environment
from toolkit.base.errors import BundleError, QualityError, UsageError
from toolkit.base.files import Progress, scratch_beside
from toolkit.base.outputs import Output
from toolkit.bundle.lock import Lock, LockedExport, differences, locked_output, read_lock
from toolkit.bundle.write import BUNDLE, GENERATOR
from toolkit.drafting.make import AS_USUAL, Drafting, drafter_for_export
from toolkit.litertlm import tables
from toolkit.litertlm.export import LITERTLM as EXPORT
from toolkit.litertlm.export import ExportOptions, Target, export_litertlm
from toolkit.litertlm.exported_drafter import DrafterMaker
from toolkit.litertlm.header import Header, read_header
from toolkit.litertlm.lock_section import read_lock as read_exported_lock
from toolkit.litertlm.schema import ModelType

_log = logging.getLogger(__name__)

LITERTLM = ".litertlm"
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was made again, and the lock that it was made from."""

    path: Path
    lock: Lock
    calibration: CalibrationText | None
    """The text that it was calibrated with."""


def rebuild(
    source: Path,
    checkpoint: Path | str,
    output: Path,
    *,
    adapters: Sequence[AdapterChoice] = (),
    calibration: Path | None = None,
    calibration_media: Path | None = None,
    force: bool = False,
    families: Sequence[Family] = FAMILIES,
    progress: Progress | None = None,
    calibration_progress: Progress | None = None,
    download_progress: Progress | None = None,
    drafting: Drafting = AS_USUAL,
    assistants: Sequence[Path | str] = (),
) -> Rebuilt:
    """Make again what a lock describes. `source`: the lock, or a bundle or .litertlm that contains it.

    Beside the output, its environment is written, and the text that a bundle was calibrated with.
    `calibration`: the file with the text of a calibrated bundle; None for the built-in text, or the file beside.
    `calibration_media`: the folder with the pictures and sounds that the towers were calibrated with.
    `assistants`: the checkpoints of drafters: of the bundle's, and then of the export's own, where these are of one.
    UsageError or CheckpointError if this version, the checkpoint or the text is not the lock's; QualityError if the
    bytes differ, and nothing is written then.
    """
    is_export = source.suffix == LITERTLM and source.is_file()
    read = (source, checkpoint, *(item.source for item in adapters), calibration, calibration_media, *assistants)
    inputs = tuple(Path(path) for path in read if path is not None)
    target = Output(output, EXPORT if is_export else BUNDLE, inputs, force)
    target.require()
    ENVIRONMENT.require(target)
    restore_text(locked_output(source))
    header = read_header(source) if is_export else None
    lock = read_lock(source) if header is None else _lock_in(header, source)
    if lock.generator != GENERATOR:
        wanted = f"{lock.generator}, which the lock was made with"
        raise UsageError("version", file=source, found=GENERATOR, wanted=wanted, remedy="install that version")
    if lock.calibration is None and calibration is not None:
        raise UsageError("calibration", file=source, found="a lock without calibration", remedy="leave out the text")
    text = None if lock.calibration is None else locked_calibration_text(lock.calibration, source, calibration)
    if text is not None and lock.export is None:
        calibration_output(target).require()
    media = _locked_media(lock, source, calibration_media)
    chosen = _assistants(lock, source, assistants)
    work = _Work(
        source, checkpoint, adapters, text, media, families, force, progress, calibration_progress, download_progress,
        drafting, chosen,
    )  # fmt: skip
    if lock.export is None:
        work.bundle(lock, output)
    elif header is None:
        raise UsageError(
            file=source, found="the lock of an export, without its hashes", wanted=f"the {LITERTLM} itself"
        )
    else:
        with scratch_beside(output) as scratch:
            work.bundle(replace(lock, export=None), scratch / "bundle")
            work.export(lock.export, header, scratch / "bundle", output)
    write_environment(target)
    return Rebuilt(output, lock, text)


@dataclass(frozen=True, slots=True)
class _Work:
    source: Path
    checkpoint: Path | str
    adapters: Sequence[AdapterChoice]
    text: CalibrationText | None
    media: CalibrationMedia | None
    families: Sequence[Family]
    force: bool
    progress: Progress | None
    calibration_progress: Progress | None
    download_progress: Progress | None
    drafting: Drafting
    assistants: Mapping[str, AssistantChoice]
    """The drafters' checkpoints, by fingerprint."""

    def bundle(self, lock: Lock, output: Path) -> None:
        """Convert the checkpoint as the lock says."""

        def accept(directory: Path) -> None:
            self._require_equal(differences(read_lock(directory), lock))

        assistant = None if lock.assistant is None else self.assistants[lock.assistant.sha256]
        request = ConvertRequest(
            checkpoint=self.checkpoint,
            output=output,
            recipes=locked_recipes(lock),
            groups=lock.groups,
            sizes=locked_slices(lock),
            context=lock.context,
            prefill_sizes=lock.prefill_sizes,
            shard_bytes=lock.shard_bytes,
            audio_seconds=lock.audio_seconds,
            draft_tokens=lock.draft_tokens,
            drafter=lock.drafter or assistant,
            workers=os.cpu_count() or 1,
            adapters=tuple(self.adapters),
            calibration=self.text,
            calibration_media=self.media,
            described_as=lock.checkpoint,
            force=self.force,
        )
        convert(
            request,
            families=self.families,
            gate=None,
            accept=accept,
            progress=self.progress,
            calibration_progress=self.calibration_progress,
            download_progress=self.download_progress,
            drafting=self.drafting,
        )

    def export(self, made_with: LockedExport, wanted: Header, bundle: Path, output: Path) -> None:
        """Export the bundle as the lock says, but without a signature."""
        options = ExportOptions(
            made_with.size,
            made_with.groups,
            cast(ModelType, made_with.model_type),
            cast("Activations | None", made_with.activations),
            cast(Target, made_with.target),
            force=self.force,
            sampling=made_with.sampling,
            drafter=self._drafter(made_with, bundle),
        )

        def accept(file: Path) -> None:
            found, expected = _parts(read_header(file)), _parts(wanted)
            places = sorted(found.keys() | expected.keys())
            self._require_equal(
                [
                    (place, found.get(place, "nothing"), expected.get(place, "nothing"))
                    for place in places
                    if found.get(place) != expected.get(place)
                ]
            )

        export_litertlm(bundle, output, options, accept=accept)

    def _drafter(self, made_with: LockedExport, bundle: Path) -> DrafterMaker | None:
        """What makes the export's own drafter again, if it has one."""
        if made_with.drafter is not None:
            return partial(
                drafter_for_export, bundle, settings=made_with.drafter, size=made_with.size, how=self.drafting
            )
        if made_with.assistant is None:
            return None
        return partial(
            assistant_for_export,
            bundle,
            self.assistants[made_with.assistant.sha256].source,
            families=self.families,
            described_as=made_with.assistant,
            progress=self.download_progress,
        )

    def _require_equal(self, differing: Sequence[tuple[str, str, str]]) -> None:
        """Raise QualityError, naming the first differences, if there are any; all of them are logged."""
        if not differing:
            return
        for place, found, wanted in differing[:_MOST_NAMED]:
            _log.warning("%s: found %s, wanted %s", place, found, wanted)
        # A lock may lie alone, with its environment beside itself, or in its bundle, with the environment beside that.
        elsewhere = environment_differences(self.source) or environment_differences(locked_output(self.source))
        names = ", ".join(place for place, _, _ in differing[:_MOST_NAMED])
        more = f" and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
        raise QualityError(
            file=self.source,
            found=f"other bytes than the lock's in {names}{more}",
            remedy=f"rebuild it where it was made: {'; '.join(elsewhere)}" if elsewhere else None,
        )


def _locked_media(lock: Lock, source: Path, folder: Path | None) -> CalibrationMedia | None:
    """The media of a lock; UsageError unless a folder is given just where the lock wants one, and holds just them."""
    if lock.calibration_media is None:
        if folder is not None:
            found = "a lock of towers that were not calibrated"
            raise UsageError("calibration media", file=source, found=found, remedy="leave the folder out")
        return None
    if folder is None:
        remedy = "name their folder with --calibrate-media"
        wanted = f"{counted(lock.calibration_media)}, as the lock says"
        raise UsageError("calibration media", file=source, found="none", wanted=wanted, remedy=remedy)
    return require_locked(read_calibration_media(folder), lock.calibration_media)


def _assistants(lock: Lock, source: Path, given: Sequence[Path | str]) -> Mapping[str, AssistantChoice]:
    """The drafters' checkpoints that the lock wants, by fingerprint; UsageError unless as many are given."""
    exported = None if lock.export is None else lock.export.assistant
    records = {record.sha256: record for record in (lock.assistant, exported) if record is not None}
    if not records and given:
        raise UsageError("drafter", file=source, found="a lock without a drafter's checkpoint", remedy="leave it out")
    if len(records) != len(given):
        names = " and ".join(record.name for record in records.values())
        remedy = "name its directory with --drafter" if len(records) == 1 else "name each with --drafter, in this order"
        found = ", ".join(map(str, given)) or "none"
        raise UsageError("drafter", file=source, found=found, wanted=f"{names}, as the lock says", remedy=remedy)
    pairs = zip(records.values(), given, strict=True)
    return {record.sha256: AssistantChoice(path, described_as=record) for record, path in pairs}


def _lock_in(header: Header, file: Path) -> Lock:
    lock = read_exported_lock(file, header.metadata)
    if lock is None:
        raise BundleError(file=file, found="no lock", remedy="export it with this version from a bundle that has one")
    return lock


def _parts(header: Header) -> Mapping[str, str]:
    """The hash of each section by its label, and what the header says beside."""
    own = (tables.HEADER_SHA256, tables.SIGNATURE)
    system = {key: value for key, value in header.metadata.system.items() if key not in own}
    return {**system, **{section.label: section.items.get(tables.SHA256, "") for section in header.metadata.sections}}
