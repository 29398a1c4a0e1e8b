"""Opens the model to benchmark, a bundle or a .litertlm, and copies it to the machine that runs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.push.source import PushProgress, open_source
from device_harness.runners.interface import LocalModel, PlacedModel
from toolkit.base.errors import UsageError
from toolkit.base.files import Advance, hash_file
from toolkit.bundle.manifest import MANIFEST_NAME
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.litertlm.hashes import require_hashes
from toolkit.litertlm.recognise import is_litertlm
from toolkit.litertlm.wellformed import require_wellformed_sections
from toolkit.results.record import ModelKind, ModelRecord
from toolkit.runtime.judged_files import require_judged_bundle

LITERTLM = ".litertlm"


def model_kind(path: Path) -> ModelKind:
    """The kind of model that a path names, by its extension or, if it is there, its first bytes."""
    return "litertlm" if path.suffix == LITERTLM or is_litertlm(path) else "bundle"


def open_model(path: Path, size: str | None = None, *, progress: PushProgress | None = None) -> LocalModel:
    """Open a model and read its manifest; `size`: one of the bundle's (None: its default).

    `progress` is called while a .litertlm is hashed. UsageError for a size that does not exist, BundleError if the
    bundle's files differ from its manifest, or a .litertlm from the hashes in its header. A bundle's graphs are judged,
    and those of a .litertlm verified as flatbuffers, before any program opens them.
    """
    source = open_source(path)
    if source.manifest is not None:
        name = source.manifest.default_size if size is None else size
        source.manifest.size(name)
        require_judged_bundle(path, source.manifest)
        return LocalModel(path, source, name)
    if size is not None:
        raise UsageError("--size", found=f"cannot be used with a {LITERTLM} file, which has one size")
    # A .litertlm is read twice: for the hashes in its header, then for that of the whole file, which records have.
    total = 2 * path.stat().st_size
    advance = Advance(total, None if progress is None else partial(progress, "check"))
    require_hashes(path, advance)
    require_wellformed_sections(path)
    return LocalModel(path, source, sha256=hash_file(path, advance=advance).sha256)


def exported_model(bundle: LocalModel, folder: Path) -> LocalModel:
    """Export one size of a bundle as a .litertlm, for Google's runners."""
    path = folder / f"{bundle.path.resolve().name}-{bundle.size}{LITERTLM}"
    export_litertlm(bundle.path, path, ExportOptions(size=bundle.size))
    return open_model(path)


def place_model(machine: Machine, model: LocalModel, *, progress: PushProgress | None = None) -> PlacedModel:
    """Push the files that differ; on this computer, the model stays where it is."""
    record = _model_record(model)
    folder = machine.place_files(model.source, progress=progress)
    return PlacedModel(record, folder if model.manifest is not None else f"{folder}/{model.path.name}")


def _model_record(model: LocalModel) -> ModelRecord:
    """The model's record; its `sha256` is the manifest's, which has the hash of each file, or the .litertlm file's."""
    path, manifest = model.path, model.manifest
    total = sum(file.size for file in model.source.files)
    if manifest is None:
        assert model.sha256 is not None
        return ModelRecord(path.stem, "litertlm", None, model.sha256, total, None)
    quantization = manifest.quant["text"].recipe if "text" in manifest.quant else None
    digest = hash_file(path / MANIFEST_NAME).sha256
    return ModelRecord(path.resolve().name, "bundle", model.size, digest, total, quantization)
