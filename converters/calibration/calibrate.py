"""Calibrates a bundle: passes the text through each of its sizes, and rounds matrix by matrix on the way."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.calibration.divergence import BundleModel
from converters.calibration.rounder import Rounder
from converters.calibration.rounding import (
    Piece,
    PieceRounder,
    Rounding,
    copied_tensors,
    decoder_files,
    decoder_pieces,
    pass_tokens,
)
from converters.calibration.text import (
    CalibrationChoice,
    CalibrationText,
    dump_calibration_text,
    read_calibration_text,
    write_calibration_text,
)
from converters.family import Checkpoint
from converters.plan import Plan
from converters.slices import Slice
from toolkit.base.beside import beside
from toolkit.base.blas import single_threaded_blas
from toolkit.base.environment import libraries
from toolkit.base.errors import BundleError, UsageError
from toolkit.base.files import Advance, Progress, require_room, write_bytes
from toolkit.base.outputs import Output
from toolkit.bundle.lock import Lock, lock_line, read_lock
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.write import BUNDLE
from toolkit.quant.rounded import RoundedWeights

_log = logging.getLogger(__name__)

TOKENS = 8192
"""Tokens that are measured at most, fewer of a wide model: the forward of more takes longer than rounding."""
SEQUENCE = 512
"""Tokens of a sequence: the sliding window of Google's models, so that no masked attention score is computed."""
_LEAST_TOKENS = 64
_KEY, _TEXT = "key", "text.calibration.json"


def measured_tokens(pieces: Mapping[str, Sequence[Piece]]) -> int:
    """How many tokens of a text are measured: whole sequences that fit a forward pass twice."""
    return min(TOKENS, max(1, pass_tokens(pieces) // (2 * SEQUENCE)) * SEQUENCE)


def sequences_of(
    text: CalibrationText, tokenizer: Tokenizer, bos_token_id: int, *, tokens: int = TOKENS
) -> list[NDArray[np.int32]]:
    """The text as sequences of `tokens` in all that begin with bos, spread over it if it is longer than needed.

    UsageError for a text shorter than a paragraph.
    """
    ids = tokenizer.encode_limited(text.text)
    if len(ids) < _LEAST_TOKENS:
        wanted = f"at least {_LEAST_TOKENS}, better {tokens:,}"
        raise UsageError("calibration", found=f"a text of {len(ids)} tokens", wanted=wanted)
    if len(ids) < tokens // 2:
        _log.warning("the text to calibrate with has %d tokens; %d would be better", len(ids), tokens)
    length = SEQUENCE - 1
    count = min(tokens // SEQUENCE, -(-len(ids) // length))
    spare = max(0, len(ids) - count * length)
    starts = [i * length + spare * i // max(1, count - 1) for i in range(count)]
    return [np.array([bos_token_id, *ids[start : start + length]], np.int32) for start in starts]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A plan whose matrices are rounded, and the mean divergence on the sequences that were to be judged, in nats.

    The divergence is that of the last size, and None without such sequences.
    """

    plan: Plan
    divergence: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration of one bundle.

    `directory`: where rounded weights are kept until the bundle is complete; see `work_directory`. What an interrupted
    run of the same calibration has left there is used; what another calibration has left is removed.
    `progress` gets the number of operations done and their total.
    """

    text: CalibrationText
    sequences: Sequence[NDArray[np.int32]]
    directory: Path
    workers: int = 2
    progress: Progress | None = None

    def round(
        self,
        plan: Plan,
        slices: Sequence[Slice],
        checkpoint: Checkpoint,
        lock: Lock,
        judged: Sequence[NDArray[np.int32]] = (),
    ) -> Calibrated:
        """The plan with the matrices of its text decoder rounded against what the text gives them.

        lock: that of the bundle without a calibration, with the hash of its tokenizer: it says whether what is in the
            directory is of the same bundle.
        judged: sequences that nothing is rounded against, to measure the divergence on.
        """
        files, pieces = decoder_files(plan), decoder_pieces(plan)
        every = [piece for some in pieces.values() for piece in some]
        prepare_work(self.directory, self.text, lock)
        require_room(self.directory, sum(piece.codes for piece in every))
        rounded = RoundedWeights(self.directory)
        tokens = sum(map(len, self.sequences))
        advance = Advance(sum(piece.cost(tokens) for piece in every), self.progress)
        with single_threaded_blas(), ThreadPoolExecutor(self.workers, thread_name_prefix="calibrate") as pool:
            keep = PieceRounder(rounded, Rounding(pool), lambda piece: advance(piece.cost(tokens)))
            rounder = Rounder(pieces, keep, tokens)
            divergence = None
            if judged or not all(rounded.has(piece.weight, piece.first_row, piece.height) for piece in every):
                for run in checkpoint.calibration_passes(slices):
                    twice = [*self.sequences, *self.sequences]
                    hidden = np.concatenate(run.model.hidden_states(twice, product=partial(rounder.product, run)))
                    rounder.round_head(run, hidden)
                    if judged:
                        # A pass of its own: a product's last bits depend on how many rows it has, and so would codes.
                        static = plan.recipes["text"].static_activations
                        divergence = BundleModel(run, pieces, copied_tensors(plan), keep, static).divergence(judged)
        changed = replace(files, rounded=rounded)
        files_after = tuple(changed if item is files else item for item in plan.files)
        return Calibrated(replace(plan, files=files_after), divergence)


def prepare_work(directory: Path, text: CalibrationText, lock: Lock) -> None:
    """Make a directory, or empty it unless it is of this very calibration, here."""
    if _kept(directory, lock) != text:
        remove_work(directory)
        directory.mkdir()
        write_bytes(directory / _TEXT, dump_calibration_text(text))
        mark_work(directory, lock)


def text_for(
    choice: CalibrationChoice, directory: Path, lock: Lock, write: Callable[[], CalibrationText]
) -> CalibrationText:
    """The given text; or the model's own, which an interrupted run has kept in `directory` or `write` returns."""
    if isinstance(choice, CalibrationText):
        return choice
    return _kept(directory, lock) or write()


def _kept(directory: Path, lock: Lock) -> CalibrationText | None:
    """The text that a directory keeps, if it belongs to a calibration of this bundle with these libraries."""
    return read_calibration_text(directory / _TEXT) if is_work_of(directory, lock) else None


def is_work_of(directory: Path, lock: Lock) -> bool:
    """Whether a directory holds the work of a calibration of this bundle with these libraries."""
    key = directory / _KEY
    return key.is_file() and key.read_text() == _key(lock)


def mark_work(directory: Path, lock: Lock) -> None:
    """Say in a directory which bundle's calibration it is of."""
    (directory / _KEY).write_text(_key(lock))


def _key(lock: Lock) -> str:
    """What determines the result besides the text: the lock, and the libraries that compute, and decode media."""
    versions = libraries()
    used = versions if lock.calibration_media is not None else ("numpy", "blas", "litert")
    made_with = " ".join([lock_line(replace(lock, calibration=None)), *(versions[name] for name in used)])
    return hashlib.sha256(made_with.encode()).hexdigest()


def remove_work(*directories: Path) -> None:
    """Remove the directories of a calibration, once its bundle is complete, or is not wanted."""
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def work_directory(output: Path) -> Path:
    """The hidden directory beside a bundle where its calibration keeps its work, for a run that is interrupted."""
    place = beside(output, ".calibration")
    return place.with_name(f".{place.name}")


def restore_text(output: Path) -> None:
    """Write the text beside a bundle whose process was killed before it could: the calibration's work still has it."""
    kept = work_directory(output) / _TEXT
    with suppress(BundleError, UsageError):  # no bundle, or a file that is not ours in the text's place
        # unlike Path.is_file, False for a name that is too long, and below a directory that may not be searched
        if os.path.isfile(kept) and read_lock(output).calibration == (text := read_calibration_text(kept)).sha256:
            write_calibration_text(Output(output, BUNDLE), text)
