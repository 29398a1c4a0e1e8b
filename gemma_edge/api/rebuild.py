"""`gemma_edge.rebuild`: makes a bundle or a .litertlm again from its lock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converters.families import FAMILIES
from converters.family import Family
from converters.huggingface.adapters.choice import AdapterLike, adapter_choices
from converters.huggingface.hub.locate import with_revision
from converters.rebuild import Rebuilt
from converters.rebuild import rebuild as rebuild_from
from toolkit.base.files import Progress


def rebuild(
    lock: Path | str,
    output: Path | str,
    *,
    checkpoint: Path | str,
    revision: str | None = None,
    adapters: Sequence[AdapterLike] = (),
    calibrate: Path | str | None = None,
    calibration_media: Path | str | None = None,
    drafter: Path | str | Sequence[Path | str] = (),
    force: bool = False,
    families: Sequence[Family] = FAMILIES,
    progress: Progress | None = None,
    calibration_progress: Progress | None = None,
    download_progress: Progress | None = None,
) -> Rebuilt:
    """Make a bundle, or a .litertlm, again: `output` has the same bytes, or is not written.

    lock: a bundle's `lock.json`; or a bundle's directory or a .litertlm, which contain their lock.
    checkpoint: the one that the lock was made with: a directory, or a Hugging Face id.
    revision: a branch, tag or commit of a Hugging Face id.
    adapters: the adapters that were merged into it, as for `convert`.
    calibrate: the text that the bundle was calibrated with; None for the built-in one, or the file beside `lock`.
    calibration_media: the folder with the pictures and sounds that the towers were calibrated with.
    drafter: the checkpoint of a drafter that the bundle was converted with, or a .litertlm exported: a directory, or a
        Hugging Face id; where these are two, both, the bundle's first.
    force: replace a file or directory at `output` that gemma-edge did not write.
    families: the model families that the checkpoint may belong to.
    progress: called with the weight bytes done and their total; `calibration_progress` with operations;
        `download_progress` with the bytes downloaded and their total.

    UsageError for a lock of another version of gemma-edge, CheckpointError for another checkpoint, BundleError if
    `lock` is not a lock; QualityError, which names the files, if the bytes differ. A signature is not made again.

    >>> import gemma_edge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = gemma_edge.convert(checkpoint, folder + "/bundle", context=32, verify=False)
    ...     again = gemma_edge.rebuild(folder + "/bundle", folder + "/again", checkpoint=checkpoint)
    ...     manifests = [(made.path / "manifest.json").read_bytes(), (again.path / "manifest.json").read_bytes()]
    >>> manifests[0] == manifests[1]
    True
    """
    return rebuild_from(
        Path(lock),
        with_revision(checkpoint, revision),
        Path(output),
        adapters=adapter_choices(adapters),
        calibration=None if calibrate is None else Path(calibrate),
        calibration_media=None if calibration_media is None else Path(calibration_media),
        force=force,
        families=families,
        progress=progress,
        calibration_progress=calibration_progress,
        download_progress=download_progress,
        assistants=(drafter,) if isinstance(drafter, (Path, str)) else tuple(drafter),
    )
