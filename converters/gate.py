"""The quality gate: compares a bundle with the checkpoint it was made from, size by size and tower by tower.

`convert` ends with its short form, `verify` is its long form. Nothing here prints: progress and reports go to the
caller.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from converters.family import Checkpoint, StageProgress
from converters.slices import Slice
from converters.thresholds import Thresholds, thresholds_for
from converters.verify import (
    LONG_TOKENS,
    SHORT_TOKENS,
    Passage,
    SizeReport,
    VerifyReport,
    built_in_text,
    judged_in,
    sequences_of,
    verify,
)
from converters.verify_towers import TowerReport, verify_tower
from toolkit.base.elements import element_of
from toolkit.bundle.footprint import read_types
from toolkit.bundle.manifest import EMBEDDER, TEXT_DECODER, SizeRecord
from toolkit.bundle.ple_shards import read_header, shard_name
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import TOWERS, Medium
from toolkit.runtime.session import Session, SessionSettings
from toolkit.tflite.reader import read_tflite

_log = logging.getLogger(__name__)

_CHARACTER_BYTES = 4
"""The most bytes of a character in UTF-8; a token may be a single byte."""

Gate = Callable[[Path, Checkpoint], VerifyReport]
"""Compares the bundle in a directory with its checkpoint."""


@dataclass(frozen=True, slots=True)
class ShortGate:
    """The gate that `convert` ends with: for each size, just enough predictions for its limits to be meaningful."""

    settings: SessionSettings | None = None
    """How the bundle runs; None for the defaults of `Session`."""
    tokens: int = SHORT_TOKENS
    progress: StageProgress | None = None

    def __call__(self, path: Path, checkpoint: Checkpoint) -> VerifyReport:
        """Compare the bundle with its checkpoint (this is a `Gate`)."""
        return judge(path, checkpoint, self.settings, tokens=self.tokens, progress=self.progress)


def judge(
    path: Path,
    checkpoint: Checkpoint,
    settings: SessionSettings | None = None,
    *,
    tokens: int = LONG_TOKENS,
    text: str | None = None,
    sizes: Collection[str] | None = None,
    progress: StageProgress | None = None,
) -> VerifyReport:
    """Compare a bundle's sizes (all, or those named) with the checkpoint, on `text` or the built-in one.

    `progress` is called with each size and its percentage. UsageError if the text is too short, BundleError if the
    bundle cannot be from this checkpoint.
    """
    bundle = Bundle(path)
    manifest = bundle.manifest
    tokenizer = bundle.tokenizer()
    ids = tokenizer.encode_limited(built_in_text() if text is None else text)
    context, bos = manifest.text.context, manifest.text.bos_token_id
    sequences = sequences_of(ids, bos, context=context, tokens=tokens)
    judged = sum(judged_in(len(sequence)) for sequence in sequences)
    if judged < tokens:
        _log.warning("the text has %d predictions to judge, fewer than the %d wanted", judged, tokens)
    bounds = bounds_of(bundle)
    reports: dict[str, SizeReport] = {}
    with Session(bundle, settings) as session:
        for name in manifest.sizes if sizes is None else sizes:
            session.use(name)
            size = manifest.size(name)
            model = checkpoint.reference(Slice(name, size.layers, size.ffn_sizes))
            told = _percent(progress, name, "bundle")
            text_ids = manifest.text.text_ids
            reports[name] = verify(session, model, sequences, bounds[name], text_ids=text_ids, progress=told)
    predicted = [sequence[-judged_in(len(sequence)) :] for sequence in sequences]
    return VerifyReport(reports, passages=tuple(Passage(_readable(tokenizer, part), len(part)) for part in predicted))


def judge_towers(
    path: Path,
    checkpoint: Checkpoint,
    settings: SessionSettings | None = None,
    *,
    groups: Collection[str] | None = None,
    media: Sequence[Medium] = (),
    progress: StageProgress | None = None,
) -> dict[str, TowerReport]:
    """Compare a bundle's towers (all, or those of `groups`) with float32 towers of the checkpoint.

    The samples are `media`; a tower for which it has none gets a generated one. The float towers take up to 8 GB in the
    directory for temporary files. `progress` is called with each tower and its percentage, starting with 0.
    """
    bundle, settings = Bundle(path), settings or SessionSettings()
    reports: dict[str, TowerReport] = {}
    for group in TOWERS:
        if group not in bundle.manifest.groups or (groups is not None and group not in groups):
            continue
        told = _percent(progress, group, "embed")
        if told is not None:
            told("write", 0, 1)
        with tempfile.TemporaryDirectory(prefix="gemma-edge-verify-") as scratch:
            reports[group] = verify_tower(
                bundle,
                group,
                checkpoint,
                Path(scratch),
                media=[medium for medium in media if medium.group == group],
                threads=settings.threads,
                backend=settings.backend,
                activations=settings.activations,
                progress=told,
            )
    return reports


def _readable(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of some ids, without incomplete characters at either end, where the sequence was cut."""
    most = min(_CHARACTER_BYTES, len(ids))
    texts = [tokenizer.decode(list(ids[begin : len(ids) - end])) for begin in range(most) for end in range(most)]
    return min(texts, key=lambda text: text.count("\ufffd"))


def _percent(progress: StageProgress | None, name: str, second: str) -> Callable[[str, int, int], None] | None:
    """The progress function for work in two halves of about equal length; `second`: the name of the second half."""
    if progress is None:
        return None
    tell = partial(progress, name)
    return lambda half, done, of: tell(50 * (half == second) + 50 * done // of, 100)


def bounds_of(bundle: Bundle) -> Mapping[str, Thresholds]:
    """The bounds for the predictions of each size, by the types of the weights that it reads, embedding tables too.

    Not by the recipe: it may have rules that no weight follows.
    """
    decoder, embedder = (read_tflite(bundle.path / name).model for name in (TEXT_DECODER, EMBEDDER))
    tables = {*read_types(embedder, *embedder.signatures), read_header(bundle.path / shard_name(0)).layout.element.name}

    def bounds(size: SizeRecord) -> Thresholds:
        counts = read_types(decoder, size.decode)
        codes = {name: count for name, count in counts.items() if element_of(name).quantised}
        return thresholds_for({*counts, *tables}, {name: count / sum(codes.values()) for name, count in codes.items()})

    return {name: bounds(size) for name, size in bundle.manifest.sizes.items()}
