"""Lets native code open a bundle's files only after they were judged; those that passed are remembered by hash."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import toolkit
from toolkit.base.errors import BundleError, GraphError
from toolkit.bundle.judged import graph_faults
from toolkit.bundle.manifest import Manifest
from toolkit.bundle.signatures import SignatureShape, bundle_signatures
from toolkit.runtime.weight_cache import default_directory
from toolkit.tflite.judge import Header, read_header

_RULES = "2"
"""Increase this when a rule of the judge changes within a version."""
_REMEDY = "run gemma-edge check, or convert again"

_log = logging.getLogger(__name__)


def require_judged(path: Path, wanted: Mapping[str, SignatureShape], *, memory: Path | None = None) -> None:
    """Raise BundleError unless all graphs of a file are such as our converter makes, with these signatures.

    Only the bytes before the weights are read and hashed. `memory`: the directory in which files that passed are
    remembered; None for `judged` in the user's cache directory.
    """
    try:
        header = read_header(path)
    except GraphError as error:
        raise BundleError(error.place, file=path, found=error.found, wanted=error.wanted, remedy=_REMEDY) from error
    folder = default_directory() / "judged" if memory is None else memory
    passed = folder / _key(header, wanted)
    if os.path.exists(passed):  # unlike Path.exists, False below a directory that may not be searched
        return
    faults = graph_faults(path, wanted, header)
    if faults:
        raise faults[0].error(path, remedy=_REMEDY)
    with suppress(OSError):  # a file that cannot be remembered is judged each time
        folder.mkdir(parents=True, exist_ok=True)
        passed.touch()
    _log.debug("%s has the graphs that its manifest describes", path)


def require_judged_bundle(bundle: Path, manifest: Manifest, names: Collection[str] | None = None) -> None:
    """`require_judged` for the graphs among the files `names`.

    None: all that exist, because groups may have been left out of a copy of the bundle.
    """
    for name, wanted in bundle_signatures(manifest).items():
        if name in names if names is not None else name in manifest.files and (bundle / name).exists():
            require_judged(bundle / name, wanted)


def _key(header: Header, wanted: Mapping[str, SignatureShape]) -> str:
    """A hash of everything that the judgement depends on."""
    said = "\n".join(f"{name} {wanted[name]}" for name in sorted(wanted))
    rules = f"{toolkit.__version__}\n{_RULES}\n{header.file_bytes}\n{said}\n"
    digest = hashlib.sha256(rules.encode())
    digest.update(header.data)
    return digest.hexdigest()
