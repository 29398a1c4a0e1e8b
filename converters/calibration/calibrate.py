"""Runs the calibration of a bundle: the text through each size of it, matrix by matrix."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.calibration.rounder import Rounder, pieces_of
from converters.calibration.text import (
    CalibrationChoice,
    CalibrationText,
    dump_calibration_text,
    read_calibration_text,
)
from converters.family import Checkpoint
from converters.plan import GraphFiles, Plan
from converters.slices import Slice
from toolkit.base.blas import blas_name, single_threaded_blas
from toolkit.base.errors import UsageError
from toolkit.base.files import Advance, Progress, require_room, write_bytes
from toolkit.bundle.lock import Lock, lock_line
from toolkit.bundle.manifest import TEXT_DECODER
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.quant.rounded import RoundedWeights

_log = logging.getLogger(__name__)

TOKENS = 8192
"""Tokens that are measured at most: the forward of more takes longer than rounding, and gains little."""
SEQUENCE = 512
"""Tokens of a sequence: the sliding window of Google's models, so that none is computed that it hides."""
_LEAST_TOKENS = 64
_KEY, _TEXT = "key", "text.calibration.json"


def sequences_of(text: CalibrationText, tokenizer: Tokenizer, bos_token_id: int) -> list[NDArray[np.int32]]:
    """The text as sequences that begin with bos, spread over it if it is longer than needed.

    UsageError for less than a paragraph.
    """
    ids = tokenizer.encode_limited(text.text)
    if len(ids) < _LEAST_TOKENS:
        wanted = f"at least {_LEAST_TOKENS}, better {TOKENS:,}"
        raise UsageError("calibration", found=f"a text of {len(ids)} tokens", wanted=wanted)
    if len(ids) < TOKENS // 2:
        _log.warning("the text to calibrate with has %d tokens; %d would be better", len(ids), TOKENS)
    length = SEQUENCE - 1
    count = min(TOKENS // SEQUENCE, -(-len(ids) // length))
    spare = max(0, len(ids) - count * length)
    starts = [i * length + spare * i // max(1, count - 1) for i in range(count)]
    return [np.array([bos_token_id, *ids[start : start + length]], np.int32) for start in starts]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration of one bundle.

    directory: where rounded weights are kept until the bundle is there; see `work_directory`. What an interrupted run
    of the same calibration has left there is used, and what another has left is removed.
    `progress` gets operations done, and their total.
    """

    text: CalibrationText
    sequences: Sequence[NDArray[np.int32]]
    directory: Path
    workers: int = 2
    progress: Progress | None = None

    def round(self, plan: Plan, slices: Sequence[Slice], checkpoint: Checkpoint, lock: Lock) -> Plan:
        """The plan with the matrices of its text decoder rounded against what the text gives them.

        lock: that of the bundle without a calibration: it says whether what is in the directory is of the same bundle.
        """
        files = next(item for item in plan.files if isinstance(item, GraphFiles) and TEXT_DECODER in item.layouts)
        pieces = pieces_of(files.layouts[TEXT_DECODER], files.source.shape)
        every = [piece for some in pieces.values() for piece in some]
        if not every:
            raise UsageError("calibration", found="a recipe without quantised matrices", wanted="int8 or coarser")
        self._prepare(lock, sum(piece.codes for piece in every))
        rounded = RoundedWeights(self.directory)
        tokens = sum(map(len, self.sequences))
        advance = Advance(sum(piece.cost(tokens) for piece in every), self.progress)
        with single_threaded_blas(), ThreadPoolExecutor(self.workers, thread_name_prefix="calibrate") as pool:
            rounder = Rounder(pieces, rounded, pool, advance)
            if not all(rounded.has(piece.weight, piece.first_row, piece.height) for piece in every):
                for run in checkpoint.calibration_passes(slices):
                    hidden = run.model.hidden_states(self.sequences, product=partial(rounder.product, run))
                    rounder.round_head(run, np.concatenate(hidden))
        changed = replace(files, rounded=rounded)
        return replace(plan, files=tuple(changed if item is files else item for item in plan.files))

    def _prepare(self, lock: Lock, codes: int) -> None:
        """Make the directory, or empty it unless it is of this very calibration, here."""
        if _kept(self.directory, lock) != self.text:
            remove_work(self.directory)
            require_room(self.directory, codes)
            self.directory.mkdir()
            write_bytes(self.directory / _TEXT, dump_calibration_text(self.text))
            (self.directory / _KEY).write_text(_key(lock))


def text_for(
    choice: CalibrationChoice, directory: Path, lock: Lock, write: Callable[[], CalibrationText]
) -> CalibrationText:
    """The text that is given; or the model's own: as an interrupted run has kept it, or what `write` gives."""
    if isinstance(choice, CalibrationText):
        return choice
    return _kept(directory, lock) or write()


def _kept(directory: Path, lock: Lock) -> CalibrationText | None:
    """The text of the calibration that a directory is of, if it is one of this bundle, here."""
    key = directory / _KEY
    if not key.is_file() or key.read_text() != _key(lock):
        return None
    return read_calibration_text(directory / _TEXT)


def _key(lock: Lock) -> str:
    """What determines the result, apart from the text."""
    made_with = f"{lock_line(replace(lock, calibration=None))} {np.__version__} {blas_name()}"
    return hashlib.sha256(made_with.encode()).hexdigest()


def remove_work(directory: Path) -> None:
    """Remove what a calibration keeps, once the bundle is there."""
    shutil.rmtree(directory, ignore_errors=True)


def work_directory(output: Path) -> Path:
    """Where the calibration of a bundle keeps what an interrupted run has done: hidden, beside it."""
    return output.with_name(f".{output.name}.calibration")
