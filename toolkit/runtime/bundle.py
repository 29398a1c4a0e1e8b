"""Opens a bundle directory: reads its manifest, and checks and opens its files on request."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO

from toolkit.base.errors import BundleError, UsageError, system_reason
from toolkit.base.files import CHUNK_BYTES
from toolkit.bundle.chat import ChatTemplate
from toolkit.bundle.manifest import CHAT_TEMPLATE, TOKENIZER, FileRecord, Manifest
from toolkit.bundle.manifest_json import read_manifest
from toolkit.bundle.ple_shards import is_shard_name
from toolkit.bundle.signatures import bundle_signatures
from toolkit.bundle.thoughts import ThoughtTokens, asks_for_thoughts, thought_tokens
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.runtime.backends.interface import ModelFile
from toolkit.runtime.judged_files import require_judged

_PIECE_BYTES = 1 << 18


class Bundle:
    """An open bundle; the manifest is read at once, other files when they are needed."""

    def __init__(self, path: Path | str) -> None:
        """BundleError if `path` is not a directory with a valid manifest."""
        self.path = Path(path)
        if self.path.is_file():
            remedy = "LiteRT-LM runs .litertlm files; here, name the bundle that it was exported from"
            known = self.path.suffix == ".litertlm"
            raise BundleError(
                file=path, found="a file", wanted="a bundle's directory", remedy=remedy if known else None
            )
        self.manifest: Manifest = read_manifest(self.path)

    def model_file(self, name: str) -> ModelFile:
        """A .tflite file of the bundle; BundleError if it differs from the manifest's description.

        Compares the size and the first and last chunk, which takes milliseconds; `gemma-edge check` compares all. The
        file's graphs are judged before native code sees them, which takes a fifth of a second the first time.
        """
        if name not in self.manifest.files:
            raise BundleError(file=self.path, found=f"no {name}: not a text model")
        record = self.manifest.files[name]
        _compare(self.path / name, record, {0, len(record.chunks) - 1})
        require_judged(self.path / name, bundle_signatures(self.manifest)[name])
        return self.described_file(name)

    def described_file(self, name: str) -> ModelFile:
        """A .tflite file as the manifest describes it; the file itself is not read."""
        record = self.manifest.files[name]
        return ModelFile(self.path / name, record.sha256, record.bytes)

    def ple_shards(self) -> list[Path]:
        """The PLE shards in order; BundleError for a shard of another conversion. Rows are checked when they are read.

        Compares the first chunk, which contains the header with the hash of all rows.
        """
        names = sorted(name for name in self.manifest.files if is_shard_name(name))
        if not names:
            raise BundleError(file=self.path, found="no PLE shards: not a text model")
        for name in names:
            _compare(self.path / name, self.manifest.files[name], {0})
        return [self.path / name for name in names]

    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer; BundleError if its file has changed since the conversion."""
        self._require_unchanged(TOKENIZER)
        return Tokenizer(self.path / TOKENIZER)

    def chat_template(self, tokenizer: Tokenizer) -> ChatTemplate:
        """The bundle's chat template; BundleError if it has none, or if its file has changed since the conversion."""
        self._require_unchanged(CHAT_TEMPLATE)
        bos = tokenizer.token_of(self.manifest.text.bos_token_id)
        return ChatTemplate.open(self.path / CHAT_TEMPLATE, bos_token=bos or "")

    def thoughts(self, tokenizer: Tokenizer) -> ThoughtTokens | None:
        """The tokens around the model's thoughts; None for a model, or a chat template, that knows none."""
        tokens = thought_tokens(tokenizer)
        if tokens is None or CHAT_TEMPLATE not in self.manifest.files:
            return None
        template = self.chat_template(tokenizer)
        return tokens if asks_for_thoughts(template.source, self.path / CHAT_TEMPLATE) else None

    def _require_unchanged(self, name: str) -> None:
        """Compare a small file with the manifest, if both have it: a changed file would silently change answers."""
        record = self.manifest.files.get(name)
        if record is not None and (self.path / name).is_file():
            _compare(self.path / name, record, range(len(record.chunks)))

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """The tokens of a prompt with control tokens spelled out; UsageError if it has placeholders for media."""
        ids = tokenizer.encode_limited(text)
        self.require_text(tokenizer, ids)
        return ids

    def require_text(self, tokenizer: Tokenizer, ids: Sequence[int], besides: Collection[int] = ()) -> None:
        """UsageError for a token that does not stand for text, except at the positions `besides`."""
        limit = self.drawable_ids(tokenizer)
        for position, token in enumerate(ids):
            if token >= limit and position not in besides:
                raise UsageError(
                    "prompt", found=f"{tokenizer.token_of(token)!r}, which stands for an image or a sound, not for text"
                )

    def allowed_groups(self, names: Sequence[str] | None) -> tuple[str, ...] | None:
        """The groups that may be loaded, None for all; UsageError for a name that is not a group of the bundle."""
        groups = self.manifest.groups
        for name in names or ():
            if name not in groups:
                raise UsageError(f"group {name}", found="no such group in the bundle", wanted=" or ".join(groups))
        return None if names is None else tuple(names)

    def require_group(self, group: str, wanted_for: str, allowed: Collection[str] | None = None) -> None:
        """BundleError if the bundle or this copy lacks a group, UsageError if it may not be loaded; with a remedy."""
        if group not in self.manifest.groups:
            raise BundleError(
                file=self.path,
                found=f"no group {group}, which {wanted_for} needs",
                remedy=f"convert the checkpoint again with {group} among --groups; "
                "gemma-edge inspect says whether it can be",
            )
        if not any((self.path / file).exists() for file in self.manifest.groups[group].files):
            raise BundleError(
                file=self.path,
                found=f"a copy without the files of the group {group}, which {wanted_for} needs",
                remedy=f"push the bundle with {group} among --groups",
            )
        if allowed is not None and group not in allowed:
            found, remedy = f"--groups {','.join(allowed)}", f"add {group}"
            raise UsageError(wanted_for, found=found, wanted=f"the group {group} too", remedy=remedy)

    def drawable_ids(self, tokenizer: Tokenizer) -> int:
        """The limit for ids that may be drawn: this and higher ids are for images and sounds, or unused."""
        return tokenizer.ids_below(self.manifest.text.text_ids)


def _compare(path: Path, record: FileRecord, chunks: Collection[int]) -> None:
    """Compare the size and these chunks of a file with its record; BundleError if they differ."""
    remedy = "run gemma-edge check, or convert again"
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise BundleError(file=path, found=f"{size:,} bytes", wanted=f"{record.bytes:,}", remedy=remedy)
        with open(path, "rb") as file:
            for index in chunks if record.chunks else ():
                file.seek(index * CHUNK_BYTES)
                found = _next_chunk_sha256(file)
                if found != record.chunks[index]:
                    wanted = f"{record.chunks[index]} as in the manifest"
                    raise BundleError(
                        f"chunk {index}", file=path, found=f"sha256 {found}", wanted=wanted, remedy=remedy
                    )
    except OSError as error:
        raise BundleError(file=path, found=system_reason(error), remedy=remedy) from error


def _next_chunk_sha256(file: BinaryIO) -> str:
    """The hash of the next chunk, read in pieces: memory allocated for a whole chunk would stay in the process."""
    digest, left = hashlib.sha256(), CHUNK_BYTES
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()
