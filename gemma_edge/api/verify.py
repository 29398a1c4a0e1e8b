"""`gemma_edge.verify`: compares a bundle's predictions with its checkpoint's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from converters.behaviour import bundle_errors
from converters.families import FAMILIES, open_checkpoint
from converters.family import Checkpoint, Family, StageProgress
from converters.gate import judge, judge_towers
from converters.huggingface.adapters.choice import AdapterLike, adapter_choices
from converters.huggingface.hub.locate import with_revision
from converters.huggingface.prompt_files import template_directory
from converters.slices import Slice
from converters.verify import LONG_TOKENS, VerifyReport
from toolkit.base.errors import UsageError
from toolkit.base.files import Progress
from toolkit.base.warnings_once import each_warning_once
from toolkit.bundle.manifest import AdapterRecord, Manifest
from toolkit.media.source import MediaSource
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import MediaFile, read_media
from toolkit.runtime.session import SessionSettings

_log = logging.getLogger(__name__)


def verify(
    bundle: Path | str,
    checkpoint: Checkpoint | Path | str,
    *,
    revision: str | None = None,
    adapters: Sequence[AdapterLike] = (),
    text: str | None = None,
    tokens: int = LONG_TOKENS,
    sizes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    images: Sequence[MediaSource] = (),
    audio: Sequence[MediaSource] = (),
    session: SessionSettings | None = None,
    families: Sequence[Family] = FAMILIES,
    progress: StageProgress | None = None,
    tower_progress: StageProgress | None = None,
    download_progress: Progress | None = None,
) -> VerifyReport:
    """Compare a bundle with the checkpoint it was made from: the long form of the quality gate of `convert`.

    revision: a branch, tag or commit of a Hugging Face id.
    adapters: the adapters that were merged into it, as for `convert`.
    text: the text to predict; None for a built-in one. tokens: how many predictions to judge.
    sizes: the sizes to verify; None for all.
    groups: the parameter groups to verify; text is always verified, and each tower takes minutes and 8 GB of
        temporary space at full size. None for all that the bundle has.
    images, audio: samples for the towers; a tower without any uses a generated one.
    session: how the bundle is run.
    progress, tower_progress: called with a size or a tower, percent done, and 100; `download_progress` with the bytes
        downloaded and their total.

    The report's `passed` says whether all measures are within bounds, and all prompts the same as transformers'.
    BundleError, CheckpointError or UsageError if this cannot be verified.

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
    with ExitStack() as stack:
        if isinstance(checkpoint, (Path, str)):
            # A checkpoint on the Hub is judged twice: by its headers, and downloaded.
            stack.enter_context(each_warning_once("converters"))
            source, choices = with_revision(checkpoint, revision), adapter_choices(adapters)
            judge_headers = partial(_require_source, manifest, sizes)
            found = stack.enter_context(
                open_checkpoint(source, families, choices, judge=judge_headers, progress=download_progress)
            )
        else:
            found = checkpoint
        _require_source(manifest, sizes, found)
        if found.fingerprint() != manifest.checkpoint.sha256:
            made_from = f"{manifest.checkpoint.name} with sha256 {manifest.checkpoint.sha256[:16]}..."
            _log.warning("the bundle was not made from %s but from %s", found.path, made_from)
        wanted = None if sizes is None else list(dict.fromkeys(sizes))
        report = judge(path, found, session, tokens=tokens, text=text, sizes=wanted, progress=progress)
        towers = judge_towers(path, found, session, groups=allowed, media=media, progress=tower_progress)
        prompts = bundle_errors(path, template_directory(found.path, [adapter.path for adapter in found.adapters]))
        return replace(report, towers=towers, prompts=tuple(map(str, prompts)))


def _require_source(manifest: Manifest, sizes: Sequence[str] | None, checkpoint: Checkpoint) -> None:
    """An error for a checkpoint that the bundle cannot be from, as far as its headers tell.

    SliceError if it does not contain one of the sizes (None: all of the bundle's); UsageError unless it has the
    adapters that the bundle was made with, whatever they are called.
    """
    for name in manifest.sizes if sizes is None else sizes:
        size = manifest.size(name)
        checkpoint.reference(Slice(name, size.layers, size.ffn_sizes))
    made_from, given = manifest.checkpoint, [adapter.record for adapter in checkpoint.adapters]
    if [(item.scale, item.sha256) for item in given] != [(item.scale, item.sha256) for item in made_from.adapters]:
        raise UsageError(
            "adapters",
            found=_described(given),
            wanted=f"{_described(made_from.adapters)}, as the bundle was made with",
            remedy="name them with --adapter in this order" if made_from.adapters else None,
        )


def _described(adapters: Sequence[AdapterRecord]) -> str:
    names = (f"{item.name} with scale {item.scale:g} and sha256 {item.sha256[:16]}..." for item in adapters)
    return " and ".join(names) or "none"
