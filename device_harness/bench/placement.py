"""Opens the model that is benchmarked, once, and brings it to where it is run: a bundle, or a .litertlm."""

from __future__ import annotations

from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.push.source import PushProgress, open_source
from device_harness.runners.interface import LocalModel, PlacedModel
from toolkit.base.errors import UsageError
from toolkit.base.files import hash_file
from toolkit.bundle.manifest import MANIFEST_NAME
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.results.record import ModelKind, ModelRecord

LITERTLM = ".litertlm"


def model_kind(path: Path) -> ModelKind:
    """Which kind of model a path names, by its ending alone."""
    return "litertlm" if path.suffix == LITERTLM else "bundle"


def open_model(path: Path, size: str | None = None) -> LocalModel:
    """A model with its manifest read; `size`: one of the bundle's (None: its default).

    UsageError for a size that there is not, BundleError for a bundle whose files are not as its manifest says.
    """
    source = open_source(path)
    if source.manifest is not None:
        name = source.manifest.default_size if size is None else size
        source.manifest.size(name)
        return LocalModel(path, source, name)
    if size is not None:
        raise UsageError("--size", found=f"cannot be used with a {LITERTLM} file, which has one size")
    return LocalModel(path, source)


def exported_model(bundle: LocalModel, folder: Path) -> LocalModel:
    """A bundle's size as the one file that Google's runners take."""
    path = folder / f"{bundle.path.resolve().name}-{bundle.size}{LITERTLM}"
    export_litertlm(bundle.path, path, ExportOptions(size=bundle.size))
    return open_model(path)


def place_model(machine: Machine, model: LocalModel, *, progress: PushProgress | None = None) -> PlacedModel:
    """Push what differs; on this computer the model stays where it is."""
    record = _model_record(model)
    folder = machine.place_files(model.source, progress=progress)
    return PlacedModel(record, folder if model.manifest is not None else f"{folder}/{model.path.name}")


def _model_record(model: LocalModel) -> ModelRecord:
    """`sha256` is the manifest's, which holds the hash of every file, or the one file's."""
    path, manifest = model.path, model.manifest
    total = sum(file.size for file in model.source.files)
    if manifest is None:
        return ModelRecord(path.stem, "litertlm", None, hash_file(path).sha256, total, None)
    quantization = manifest.quant["text"].recipe if "text" in manifest.quant else None
    digest = hash_file(path / MANIFEST_NAME).sha256
    return ModelRecord(path.resolve().name, "bundle", model.size, digest, total, quantization)
