"""Reads manifest.json (docs/formats/manifest.md) strictly, and writes it: equal manifests give equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.base.directory_swap import restore_missing
from toolkit.base.errors import BundleError, ToolkitError
from toolkit.base.strict_json import collect_record, open_regular, parse_json, without_format
from toolkit.bundle.faults import Fault
from toolkit.bundle.manifest import FORMAT, MANIFEST_NAME, DrafterRecord, Manifest, SamplingRecord
from toolkit.bundle.manifest_faults import contradictions

_OPTIONAL = ("text_vocab_size", "sampling", "draft_tokens")
"""Keys of the group `text` that are left out if they are null."""
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_DIGEST_LINE = b' "sha256": "'
"""The beginning of the line that the manifest's own hash leaves out: only in this line is a key `sha256` preceded by
exactly one space."""


def read_manifest(bundle: Path | str) -> Manifest:
    """Read and validate BUNDLE/manifest.json; BundleError for the first fault."""
    faults: list[Fault] = []
    manifest = parse_manifest(load_manifest_bytes(bundle), faults)
    if manifest is None:
        raise faults[0].error(Path(bundle) / MANIFEST_NAME, remedy="convert it again")
    return manifest


def load_manifest_bytes(bundle: Path | str) -> bytes:
    """The bytes of BUNDLE/manifest.json; BundleError if it does not exist or is larger than MAX_MANIFEST_BYTES."""
    path = Path(bundle) / MANIFEST_NAME
    restore_missing(Path(bundle))
    if not path.is_file():
        raise BundleError(file=bundle, found=f"no {MANIFEST_NAME}: not a bundle", remedy="run gemma-edge convert")
    with open(open_regular(path, BundleError), "rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(file=path, found=f"over {MAX_MANIFEST_BYTES:,} bytes", remedy="convert it again")
    return data


def parse_manifest(data: bytes, faults: list[Fault]) -> Manifest | None:
    """Read a manifest. If it has faults, append all of them to `faults` and return None."""
    errors: list[ToolkitError] = []
    manifest = None
    try:
        fields = without_format(parse_json(data, MANIFEST_NAME, BundleError), FORMAT, MANIFEST_NAME, BundleError)
        errors += _digest_errors(data, fields.pop("sha256", None))
        manifest = collect_record(fields, Manifest, MANIFEST_NAME, BundleError, errors)
    except BundleError as error:
        errors.append(error)
    found = [Fault.of(error, MANIFEST_NAME, "JSON") for error in errors]
    # Parts are compared with each other only if each one is valid.
    found += () if manifest is None else contradictions(manifest)
    faults += found
    return None if found else manifest


def dump_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as canonical JSON; BundleError for one that `parse_manifest` would reject."""
    data = _encoded(manifest)
    faults: list[Fault] = []
    parse_manifest(data, faults)
    if faults:
        raise faults[0].error()
    return data


def manifest_digest(manifest: Manifest) -> str:
    """The `sha256` that the manifest has when it is written."""
    return _digest(_encoded(manifest))


def _encoded(manifest: Manifest) -> bytes:
    value = {"format": FORMAT, **dataclasses.asdict(manifest)}
    if not manifest.checkpoint.adapters:
        del value["checkpoint"]["adapters"]
    drop_defaults(value["quant"])
    for group in value["groups"].values():
        for key in _OPTIONAL:
            if group["runtime"] is not None and group["runtime"].get(key, "") is None:
                del group["runtime"][key]
        if group["runtime"] is not None:
            drop_sampling_defaults(group["runtime"].get("sampling"))
        if group["kind"] == "drafter":
            _drop_drafter_defaults(group["runtime"])
    return encode_manifest(value)


def drop_defaults(recipes: Mapping[str, dict[str, object]]) -> None:
    """Remove the keys of recipes that have their default values."""
    for recipe in recipes.values():
        if not recipe["static_activations"]:
            del recipe["static_activations"]


def drop_sampling_defaults(sampling: dict[str, object] | None) -> None:
    """Leave out the limits that are not there."""
    if sampling is None:
        return
    for field in dataclasses.fields(SamplingRecord):
        if sampling[field.name] == field.default:
            del sampling[field.name]


def _drop_drafter_defaults(drafter: dict[str, Any]) -> None:
    """Leave out what only a drafter of the other kind has."""
    for field in dataclasses.fields(DrafterRecord):
        if drafter[field.name] == field.default:
            del drafter[field.name]
    if "checkpoint" in drafter and not drafter["checkpoint"]["adapters"]:
        del drafter["checkpoint"]["adapters"]


def encode_manifest(value: Mapping[str, object]) -> bytes:
    """Encode a manifest's keys as canonical JSON, with the `sha256` of all lines except its own."""
    data = json.dumps({**value, "sha256": ""}, indent=1, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"
    return data.replace(b"\n" + _DIGEST_LINE, b"\n" + _DIGEST_LINE + _digest(data).encode("ascii"))


def _digest(data: bytes) -> str:
    """The hash of a manifest: what `grep -v '^ "sha256": ' manifest.json | sha256sum` prints."""
    lines = (line for line in data.split(b"\n") if not line.startswith(_DIGEST_LINE))
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def _digest_errors(data: bytes, recorded: object) -> list[ToolkitError]:
    """A list with an error if the manifest does not have the hash that it records, otherwise empty."""
    found = _digest(data)
    if recorded == found and data.count(b"\n" + _DIGEST_LINE) == 1:
        return []
    wanted = f"{recorded}, as its line `sha256` says" if isinstance(recorded, str) else "a line with its own sha256"
    return [BundleError("sha256", file=MANIFEST_NAME, found=found, wanted=wanted)]
