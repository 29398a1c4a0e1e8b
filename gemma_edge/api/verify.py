"""`gemma_edge.verify`: a bundle's predictions against its checkpoint's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from converters.families import FAMILIES, open_checkpoint
from converters.family import Checkpoint, Family
from converters.gate import GateProgress, judge, judge_towers
from converters.verify import LONG_TOKENS, VerifyReport
from toolkit.media.source import MediaSource
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import MediaFile, read_media
from toolkit.runtime.session import SessionSettings

_log = logging.getLogger(__name__)


def verify(
    bundle: Path | str,
    checkpoint: Checkpoint | Path | str,
    *,
    text: str | None = None,
    tokens: int = LONG_TOKENS,
    sizes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    images: Sequence[MediaSource] = (),
    audio: Sequence[MediaSource] = (),
    session: SessionSettings | None = None,
    families: Sequence[Family] = FAMILIES,
    progress: GateProgress | None = None,
    tower_progress: GateProgress | None = None,
) -> VerifyReport:
    """Hold a bundle against the checkpoint it was made of: the long form of the gate that `convert` ends with.

    text: what is predicted, and of it `tokens` tokens; None is a built-in text.
    sizes: those judged; None is all.
    groups: towers judged besides the text, at full size minutes and 8 GB of scratch space; None is all of the bundle.
    images, audio: what the towers are judged on; a tower without any, on a built-in sample.
    session: how the bundle is run.
    progress, tower_progress: get a size or a tower, percent done, and 100.

    `passed` of the report says whether every measure is in bounds. BundleError, CheckpointError and UsageError for what
    cannot be judged.

    >>> import gemma_edge
    >>> report = gemma_edge.verify(bundle, checkpoint, sizes=["small"], tokens=64)
    >>> report.passed, list(report.sizes)
    (True, ['small'])
    """
    opened = Bundle(bundle)
    manifest = opened.manifest
    for name in sizes or ():
        manifest.size(name)
    allowed = opened.allowed_groups(groups)
    files = [MediaFile("vision", image) for image in images] + [MediaFile("audio", sound) for sound in audio]
    media = read_media(opened, files, allowed)
    path = opened.path
    given = open_checkpoint(checkpoint, families) if isinstance(checkpoint, (Path, str)) else nullcontext(checkpoint)
    with given as found:
        if found.fingerprint() != manifest.checkpoint.sha256:
            made_from = f"{manifest.checkpoint.name} with sha256 {manifest.checkpoint.sha256[:16]}..."
            _log.warning("the bundle was not made from %s but from %s", found.path, made_from)
        wanted = None if sizes is None else list(dict.fromkeys(sizes))
        report = judge(path, found, session, tokens=tokens, text=text, sizes=wanted, progress=progress)
        towers = judge_towers(path, found, session, groups=allowed, media=media, progress=tower_progress)
        return replace(report, towers=towers)
