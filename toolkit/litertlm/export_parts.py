"""The files of a bundle as the content of an export's sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from toolkit.base.errors import BundleError
from toolkit.base.files import hash_file, require_free_space
from toolkit.base.strict_json import read_bounded
from toolkit.bundle.manifest import DRAFTER, Manifest
from toolkit.bundle.signatures import DRAFT
from toolkit.litertlm.container import FilePart
from toolkit.litertlm.tokenizer_section import MAX_TOKENIZER_BYTES
from toolkit.tflite.reader import read_tflite
from toolkit.tflite.records import SubgraphRecord
from toolkit.tflite.rewrite import select_signatures


class ExportParts:
    """Gives the files of a bundle, or copies in `scratch` with only some of their signatures, as `FilePart`s."""

    def __init__(self, bundle: Path, manifest: Manifest, scratch: Path, *, composite_norms: bool) -> None:
        self.bundle, self.manifest = bundle, manifest
        self._scratch, self._composite_norms = scratch, composite_norms

    def whole(self, name: str) -> FilePart:
        """A file of the bundle as it is; BundleError if it is missing."""
        files = self.manifest.files
        if name not in files or not (self.bundle / name).is_file():
            raise BundleError(file=self.bundle, found=f"no {name}", remedy="convert it again")
        return FilePart(self.bundle / name, files[name].bytes, files[name].sha256)

    def drafter(self, made: FilePart | None = None) -> FilePart:
        """The bundle's drafter, or the one `made` for the export, with only the signature for the whole context: the
        engine runs the first one."""
        whole = self.whole(DRAFTER) if made is None else made
        if not self._composite_norms and len(read_tflite(whole.path).model.signatures) == 1:
            return whole
        whole.require_hash()
        require_free_space(self._scratch, whole.file_size)
        path = self._scratch / f"{DRAFT}.{DRAFTER}"
        select_signatures(whole.path, path, {DRAFT: DRAFT}, composite_norms=self._composite_norms, without_tables=True)
        found = hash_file(path)
        return FilePart(path, found.size, found.sha256)

    def read(self, name: str) -> bytes:
        """The content of a small file; BundleError if it is missing, too large, or its hash is wrong."""
        whole = self.whole(name)
        whole.require_hash()
        return read_bounded(whole.path, BundleError, MAX_TOKENIZER_BYTES)

    def selected(
        self,
        name: str,
        signatures: Mapping[str, str],
        change: Callable[[SubgraphRecord], SubgraphRecord] | None = None,
    ) -> FilePart:
        """A copy of a file with only these signatures (new name to old name) and the weights that they use.

        If that would be the same, the file itself. `change` is applied to the subgraph of each signature.
        """
        whole = self.whole(name)
        there = read_tflite(whole.path).model.signatures
        if change is None and not self._composite_norms and dict(signatures) == {name: name for name in there}:
            return whole
        whole.require_hash()
        require_free_space(self._scratch, whole.file_size)
        path = self._scratch / f"{next(iter(signatures))}.{name}"
        select_signatures(whole.path, path, signatures, change, composite_norms=self._composite_norms)
        found = hash_file(path)
        return FilePart(path, found.size, found.sha256)
