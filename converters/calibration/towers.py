"""Calibrates the towers of a bundle: rounds each matrix for the inputs that it gets from pictures or sounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from converters.calibration.calibrate import is_work_of, mark_work, remove_work
from converters.calibration.media import KINDS, CalibrationMedia, decoded, spaced
from converters.calibration.rounding import Piece, PieceRounder, Rounding, weight_pieces
from converters.calibration.tower_run import (
    LARGE_BYTES,
    GraphRun,
    Named,
    Stop,
    bytes_between,
    joined,
    resting_place,
    stops,
)
from converters.family import F32, Checkpoint
from converters.plan import GraphFiles, Plan, PlannedFiles, PlannedTower
from toolkit.base.blas import single_threaded_blas
from toolkit.base.errors import UsageError
from toolkit.base.files import Advance, Progress, require_room, scratch_beside
from toolkit.base.weights import Weight
from toolkit.bundle.lock import Lock
from toolkit.bundle.manifest import TOWER_FILES, AudioRecord, VisionRecord
from toolkit.media.pixels import pixels
from toolkit.quant.rounded import RoundedWeights
from toolkit.runtime.media_prompt import Medium, TowerName
from toolkit.tflite.segments import SegmentedGraph

_log = logging.getLogger(__name__)

ROWS = 8192
"""Rows of inputs that are measured of a matrix at most, as many as tokens of a text."""
MEDIA = 1024
"""Pictures, or pieces of sounds, that are measured at most."""
_FEW = 16
_LENGTHS = 4  # of sounds; a graph is made for each
_BETWEEN_BYTES = 2 << 30  # for the values of all media between two segments

Tower = PlannedTower[VisionRecord] | PlannedTower[AudioRecord]


def calibrated_groups(plan: Plan, media: CalibrationMedia) -> tuple[TowerName, ...]:
    """The towers of a plan that can be calibrated with some media.

    Towers that cannot be are named in a warning; UsageError, with the reasons, if that is all of them.
    """
    groups, reasons = [], []
    for group, kind in KINDS.items():
        reason = _reason_against(plan, group, kind, media)
        if reason is None:
            groups.append(group)
        elif reason:
            reasons.append(reason)
    if not groups:
        found = "; ".join(reasons) or "a bundle without vision and audio"
        raise UsageError("calibration media", file=media.folder, found=found, remedy="leave it out")
    for reason in reasons:
        _log.warning("calibration with %s: %s", media.folder, reason)
    return tuple(groups)


def _reason_against(plan: Plan, group: TowerName, kind: str, media: CalibrationMedia) -> str | None:
    """Why a tower cannot be calibrated; None if it can be, empty if nothing suggests that it should be."""
    there, files = group in plan.groups, bool(media.files.get(group))
    if not there:
        return f"the {kind} are left out, because {group} is not converted" if files else ""
    if not files:
        return f"no {kind}, so {group} is rounded as without calibration"
    if not weight_pieces(tower_files(plan, group).layouts.values()):
        return f"{group} has no quantised matrices: its recipe keeps floats"
    return None


def tower_files(plan: Plan, group: TowerName) -> GraphFiles:
    """The files of a plan that have a tower."""
    encoder = TOWER_FILES[group][0]
    return next(item for item in plan.files if isinstance(item, GraphFiles) and encoder in item.layouts)


@dataclass(frozen=True, slots=True)
class TowerCalibration:
    """A calibration of a bundle's towers.

    media: those of the towers that `calibrated_groups` names. `output`: the bundle, beside which rounded weights are
    kept until it is complete. `progress` gets the number of operations done and their total.
    """

    media: CalibrationMedia
    output: Path
    workers: int = 2
    progress: Progress | None = None

    def round(self, plan: Plan, checkpoint: Checkpoint, lock: Lock) -> None:
        """Round the matrices of a plan's towers, all of them or those that an interrupted run has left.

        lock: that of the bundle, calibration media included: it says whether what is in the directory is of the same
        bundle.
        """
        found = {group: self._files(plan, group) for group in self.media.files}
        every = [piece for files in found.values() for some in files.values() for piece in some]
        directory = media_directory(self.output)
        _prepare(directory, lock)
        require_room(directory, sum(piece.codes for piece in every))
        rounded = RoundedWeights(directory)
        advance = Advance(sum(piece.cost(ROWS) for piece in every), self.progress)
        with single_threaded_blas(), ThreadPoolExecutor(self.workers, thread_name_prefix="calibrate") as pool:
            rounder = PieceRounder(rounded, Rounding(pool), lambda piece: advance(piece.cost(ROWS)))
            for group, pieces in found.items():
                if not all(rounded.has(p.weight, p.first_row, p.height) for some in pieces.values() for p in some):
                    self._round(plan, group, pieces, checkpoint, rounder)

    def rounded(self, plan: Plan) -> Plan:
        """A plan of this bundle with the matrices of its towers as they are rounded."""
        rounded = RoundedWeights(media_directory(self.output))
        changed = {tower_files(plan, group).names for group in self.media.files}

        def changing(files: PlannedFiles) -> PlannedFiles:
            if isinstance(files, GraphFiles) and files.names in changed:
                return replace(files, rounded=rounded)
            return files

        return replace(plan, files=tuple(map(changing, plan.files)))

    def _files(self, plan: Plan, group: TowerName) -> Mapping[str, Sequence[Piece]]:
        return weight_pieces(tower_files(plan, group).layouts.values())

    def _round(
        self,
        plan: Plan,
        group: TowerName,
        pieces: Mapping[str, Sequence[Piece]],
        checkpoint: Checkpoint,
        rounder: PieceRounder,
    ) -> None:
        record = plan.groups[group].runtime
        assert isinstance(record, (VisionRecord, AudioRecord))
        media = decoded(self.media, record, MEDIA)
        if len(media) < _FEW:
            _log.warning("%d %s to calibrate with; a few hundred would be better", len(media), KINDS[group])
        lengths = [] if isinstance(record, VisionRecord) else frame_lengths(media, record)
        tower = checkpoint.float_tower(record, lengths)
        calls = _calls(tower.record, media)
        with scratch_beside(media_directory(self.output).with_suffix(".segments")) as scratch:
            TowerRounder(tower, pieces, rounder, scratch).round(calls)
        for some in pieces.values():
            for piece in some:
                rounder.tell(piece)  # tables, which nothing is multiplied by


@dataclass(frozen=True, slots=True)
class TowerSignatures:
    """The signatures of encoder and adapter that take some media of one shape; `inputs` makes the encoder's."""

    signatures: tuple[str, str]
    media: Sequence[Medium]
    inputs: Callable[[Medium], Named]


@dataclass(frozen=True, slots=True)
class TowerRounder:
    """Takes media through the two files of a float tower, and rounds matrix by matrix on the way."""

    tower: Tower
    pieces: Mapping[str, Sequence[Piece]]
    rounder: PieceRounder
    scratch: Path
    large: int = LARGE_BYTES
    """As for `resting_place`."""

    def round(self, calls: Sequence[TowerSignatures]) -> None:
        files = self.tower.files
        weights = {p.weight.name: p.weight for layout in files.layouts.values() for p in layout.placements}
        graphs = [
            [SegmentedGraph(layout, call.signatures[stage]) for call in calls]
            for stage, layout in enumerate(files.layouts.values())
        ]
        pairs = [
            [(inputs, inputs) for inputs in map(call.inputs, media)]
            for call, media in zip(calls, self._within_memory(graphs[0], calls), strict=True)
        ]
        for stage in graphs:
            runs = [
                GraphRun.on(graph, files.source, self.rounder.rounded, self.scratch, some)
                for graph, some in zip(stage, pairs, strict=True)
            ]
            places = [stops(graph, self.pieces) for graph in stage]
            matrices = [[place.matrices for place in some] for some in places]
            assert all(some == matrices[0] for some in matrices), "graphs of one tower multiply in the same order"
            for step in zip(*places, strict=True):
                for run, place in zip(runs, step, strict=True):
                    run.advance(resting_place(run.graph, run.at, place.at, self.large))
                self._round_at(runs, step, weights)
            pairs = [run.results() for run in runs]

    def _within_memory(
        self, graphs: Sequence[SegmentedGraph], calls: Sequence[TowerSignatures]
    ) -> list[Sequence[Medium]]:
        """The media of each call: fewer, at equal distances, if the values between two segments would take too much."""
        sizes = [bytes_between(graph, stops(graph, self.pieces), self.large) for graph in graphs]
        total = sum(2 * size * len(call.media) for size, call in zip(sizes, calls, strict=True))
        found: list[Sequence[Medium]] = []
        for media in (call.media for call in calls):
            count = max(1, len(media) * _BETWEEN_BYTES // max(total, _BETWEEN_BYTES))
            found.append(spaced(media, count))
        return found

    def _round_at(self, runs: Sequence[GraphRun], places: Sequence[Stop], weights: Mapping[str, Weight]) -> None:
        """Round the matrices of a place, which each run has its own number for."""
        matrices, most = places[0].matrices, -(-ROWS // sum(len(run.plain) for run in runs))
        rows = [run.rows(place.at, matrices, most) for run, place in zip(runs, places, strict=True)]
        inputs: dict[int, F32] = {}
        for matrix in matrices:
            tensor = runs[0].graph.products[matrix][1]
            if tensor not in inputs:
                inputs = {tensor: joined([pair for some in rows for pair in some[matrix]])}
            values: F32 | None = None
            for piece in self.pieces[matrix]:
                if not self.rounder.has(piece):
                    values = self._matrix(weights[matrix]) if values is None else values
                    self.rounder.round(piece, inputs[tensor], len(inputs[tensor]) // 2, values[slice(*piece.rows)])
                self.rounder.tell(piece)

    def _matrix(self, weight: Weight) -> F32:
        """A matrix as the graph has it."""
        parts = []
        for part in weight.parts:
            if part.axes is None:
                found = self.tower.files.source.read(part.tensor, part.rows, part.columns)
            else:
                found = self.tower.files.source.read(part.tensor).transpose(part.axes)
            parts.append(found.reshape(-1, weight.shape[1]))
        return np.concatenate(parts)


def frame_lengths(media: Sequence[Medium], record: AudioRecord) -> list[int]:
    """A few lengths in mel frames, whole tokens each, at equal ranks among those of the sounds; the least is one's own.

    Graphs of just these lengths take sounds that are cut to them, so that hardly any row that is measured lies after
    the end of a sound.
    """
    token = record.frames_per_token
    whole = sorted(max(token, len(medium.values) // token * token) for medium in media)
    return sorted(set(spaced(whole, _LENGTHS)))


def _calls(record: VisionRecord | AudioRecord, media: Sequence[Medium]) -> list[TowerSignatures]:
    if isinstance(record, VisionRecord):
        return [TowerSignatures(("encode", "adapt"), media, _image)]
    sounds: dict[int, list[Medium]] = {length: [] for length in record.frame_lengths}
    for medium in media:
        fitting = [length for length in record.frame_lengths if length <= len(medium.values)]
        sounds[fitting[-1] if fitting else record.frame_lengths[0]].append(medium)
    return [
        TowerSignatures((f"encode_{length}", f"adapt_{length}"), some, partial(_sound, length, record.mel_bins))
        for length, some in sounds.items()
        if some
    ]


def _image(medium: Medium) -> Named:
    """The inputs of the encoder for an image."""
    return {"images": pixels(medium.values.astype(np.uint8, copy=False))}


def _sound(length: int, bins: int, medium: Medium) -> Named:
    """The inputs of the encoder of one length, for the beginning of a sound."""
    assert medium.mask is not None
    mel = np.zeros((1, length, bins), np.float32)
    mask = np.zeros((1, length), np.bool_)
    mel[0, : len(medium.values)] = medium.values[:length]
    mask[0, : len(medium.mask)] = medium.mask[:length]
    return {"src_inputs": mel, "mask": mask}


def _prepare(directory: Path, lock: Lock) -> None:
    """Make a directory, or empty it unless it is of this very calibration, here."""
    if not is_work_of(directory, lock):
        remove_work(directory)
        directory.mkdir()
        mark_work(directory, lock)


def media_directory(output: Path) -> Path:
    """The hidden directory beside a bundle where the calibration of its towers keeps its work."""
    return output.with_name(f".{output.name}.media-calibration")
