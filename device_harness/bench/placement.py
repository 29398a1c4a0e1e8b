"""Brings a model to where it is benchmarked: a bundle, or a .litertlm."""

from __future__ import annotations

from pathlib import Path

from device_harness.machines.machine import Machine
from device_harness.push.source import PushProgress, PushSource, open_source
from device_harness.runners.interface import PlacedModel
from toolkit.base.errors import UsageError
from toolkit.base.files import hash_file
from toolkit.bundle.manifest import MANIFEST_NAME, Manifest
from toolkit.bundle.manifest_json import read_manifest
from toolkit.litertlm.export import ExportOptions, export_litertlm
from toolkit.results.record import ModelRecord

LITERTLM = ".litertlm"


def place_model(
    machine: Machine, path: Path, *, size: str | None = None, progress: PushProgress | None = None
) -> PlacedModel:
    """Push what differs; on this computer the model stays where it is."""
    source = open_source(path)
    manifest = source.manifest
    if manifest is not None:
        size = size or manifest.default_size
        manifest.size(size)
    elif size is not None:
        raise UsageError("--size", found=f"{size} and a {LITERTLM}, which has one size", wanted="a bundle")
    record = _model_record(path, source, manifest, size)
    folder = machine.place_files(source, progress=progress)
    return PlacedModel(record, folder if manifest is not None else f"{folder}/{path.name}", path, manifest)


def exported_model(bundle: Path, folder: Path, size: str | None) -> Path:
    """A bundle's size as the one file that Google's runners take."""
    name = read_manifest(bundle).default_size if size is None else size
    path = folder / f"{bundle.resolve().name}-{name}{LITERTLM}"
    export_litertlm(bundle, path, ExportOptions(size=size))
    return path


def _model_record(path: Path, source: PushSource, manifest: Manifest | None, size: str | None) -> ModelRecord:
    """``sha256`` is the manifest's, which holds the hash of every file, or the one file's."""
    total = sum(file.size for file in source.files)
    if manifest is None:
        return ModelRecord(path.stem, "litertlm", None, hash_file(path).sha256, total, None)
    quantization = manifest.quant["text"].recipe if "text" in manifest.quant else None
    digest = hash_file(path / MANIFEST_NAME).sha256
    return ModelRecord(path.resolve().name, "bundle", size, digest, total, quantization)
