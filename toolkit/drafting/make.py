"""Makes the group `drafter` of a bundle: lets the model write, fits, writes the files, and counts accepted drafts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BundleError, UsageError
from toolkit.base.files import hash_file, write_bytes
from toolkit.bundle.lock import DrafterSettings
from toolkit.bundle.manifest import DRAFTER, DRAFTER_TEXT, DrafterRecord
from toolkit.bundle.write import GroupDraft
from toolkit.drafting.acceptance import measure_acceptance
from toolkit.drafting.examples import Examples
from toolkit.drafting.fit import Problem, fit
from toolkit.drafting.graph import write_drafter
from toolkit.drafting.passages import dump_passages, write_passages
from toolkit.litertlm.exported_drafter import ExportedDrafter
from toolkit.runtime.backends import BACKENDS
from toolkit.runtime.backends.interface import ModelFile
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.drafts.drafter import Embeddings
from toolkit.runtime.session import Session, SessionSettings

_log = logging.getLogger(__name__)

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

FIT = "fit"
"""In place of a drafter's checkpoint: the drafter that is made of the bundle."""
HEAD_TOKENS = 8192
"""With all rows of a large output matrix, a draft would take a third of the time of the step that it is to save."""
EPOCHS = 24
LEAST_ACCEPTED = 0.7
"""A step that checks three drafts takes 1.30 times as long as one that checks none in int8, and 1.64 times in int4 per
channel; three drafts of an eightieth of a step each add 0.04 (docs/speculative.md)."""
MEASURED_STEPS = 1024

StageProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the total."""


def fit_settings(drafter: Path | str | None, tokens: int | None) -> DrafterSettings | None:
    """How the chosen `drafter` is fitted, if it is FIT; else None. UsageError for a number of tokens without a fit."""
    if drafter == FIT:
        return DrafterSettings() if tokens is None else DrafterSettings(tokens)
    if tokens is not None:
        raise UsageError("tokens for a drafter", found=f"{tokens}, and no drafter to fit", remedy="add --drafter fit")
    return None


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a drafter is made."""

    session: SessionSettings | None = None
    """How the model runs that writes the text; the size in it is ignored."""
    progress: StageProgress = field(default=lambda _stage, _done, _total: None)
    """Called with the stages `write` and `fit`."""
    least_accepted: float = LEAST_ACCEPTED
    """A drafter is left out if the model would accept fewer of its drafts in a step, on average."""


AS_USUAL = Drafting()


def make_drafter(
    path: Path,
    output: Path,
    settings: DrafterSettings,
    *,
    size: str | None = None,
    how: Drafting = AS_USUAL,
) -> GroupDraft | None:
    """Write a drafter for a size of the bundle at `path` (None: its default) into the directory `output`.

    If the drafter would cost more time than it saves, its files are removed, a warning says why, and None is returned.
    BundleError for a bundle without `draft_tokens`.
    """
    bundle = Bundle(path)
    text = bundle.manifest.text
    if text.draft_tokens is None:
        remedy = "convert it again with --drafter fit, or --draft-tokens 3"
        raise BundleError(file=path, found="no signature verify", wanted="one, which checks drafts", remedy=remedy)
    used = how.session or SessionSettings()
    wanted = SessionSettings(size, used.threads, used.weight_cache)
    written = 0

    def wrote(count: int) -> None:
        nonlocal written
        written += count
        how.progress("write", min(written, settings.tokens), settings.tokens)

    with Session(bundle, wanted) as opened:
        passages = write_passages(bundle, opened, settings.tokens, progress=wrote)
        name = opened.size
    examples, kept_text = Examples.of(passages), dump_passages(passages)
    del passages  # their states are in `examples` now
    runtime = BACKENDS[0].start(wanted.backend_options)
    try:
        embedding = Embeddings.of_bundle(bundle, runtime)
        head_ids = _head_ids(examples, bundle.drawable_ids(bundle.tokenizer()))
        # Both Gemma families embed by the rows of the output matrix, times the root of the hidden size.
        head = embedding(head_ids) * np.float32(text.hidden_size**-0.5)
        problem = Problem(examples, embedding, head, head_ids, settings.hidden_units, EPOCHS)
        rows = _judging_rows(examples, text.draft_tokens)
        drafter = fit(problem, threads=wanted.threads, progress=lambda done, total: how.progress("fit", done, total))
        write_drafter(output / DRAFTER, drafter, text)
        write_bytes(output / DRAFTER_TEXT, kept_text)
        found = hash_file(output / DRAFTER)
        file = ModelFile(output / DRAFTER, found.sha256, found.size)
        acceptance = measure_acceptance(file, embedding, examples, rows, text.draft_tokens, wanted.backend_options)
    finally:
        runtime.close()
    record = DrafterRecord(name, acceptance, len(rows))
    if record.accepted < how.least_accepted:
        _log.warning(
            "no drafter: the model would accept %.2f of its %d drafts in a step, and below %.1f it costs more time "
            "than it saves",
            record.accepted, text.draft_tokens, how.least_accepted,
        )  # fmt: skip
        (output / DRAFTER).unlink()
        (output / DRAFTER_TEXT).unlink()
        return None
    return GroupDraft("drafter", (DRAFTER, DRAFTER_TEXT), 0, record)


def drafter_for_export(
    bundle: Path,
    scratch: Path,
    settings: DrafterSettings,
    *,
    size: str | None = None,
    how: Drafting = AS_USUAL,
) -> ExportedDrafter | None:
    """`make_drafter` for a file that is exported; None for one that would not pay."""
    group = make_drafter(bundle, scratch, settings, size=size, how=how)
    return None if group is None else ExportedDrafter(scratch / DRAFTER, settings)


def _head_ids(examples: Examples, limit: int) -> I64:
    """The `limit` tokens that may be drafted, sorted: the most frequent ones of the text, then the lowest ids."""
    counts = np.bincount(examples.following[examples.fitted()], minlength=limit)[:limit]
    order = np.lexsort((np.arange(limit), -counts))
    return np.sort(order[: min(limit, HEAD_TOKENS)]).astype(np.int64)


def _judging_rows(examples: Examples, drafts: int) -> I64:
    """Rows that the drafter is judged by, evenly spread; BundleError if there are none, or none to fit to."""
    rows = examples.judging(drafts)
    if not len(rows) or not len(examples.fitted()):
        raise BundleError("drafter", found="no held-out text", wanted="some", remedy="let the model write more text")
    picked = np.linspace(0, len(rows) - 1, min(len(rows), MEASURED_STEPS)).astype(np.int64)
    return rows[picked]
