"""A repository on the Hugging Face Hub at one commit: its files, their sizes and their hashes.

Answers come from the Hub's API through `huggingface_hub`; without a network, from what its cache already has.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from toolkit.base.errors import CheckpointError, EnvironmentFault
from toolkit.base.strict_json import JsonObject, shorten

HUB_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<revision>[^@]+))?", re.ASCII
)
TIMEOUT_S = 30.0
"""Without a byte from the Hub."""
_GIT_HASH = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_ANSWER_BYTES = 16_000_000
"""Of what the Hub says about a repository: some 300 bytes for each file."""
_MAX_FILE_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its size and its hash, SHA-256 of large files and Git's own of small ones, or neither."""

    name: str
    size: int
    sha256: str | None
    git_blob: str | None

    def digest(self) -> hashlib._Hash:
        """What hashes the content as the Hub does."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at one commit. `files` is None without a network, when only the cache is known."""

    hub_id: str
    name: str
    commit: str
    files: Mapping[str, HubFile] | None

    @property
    def pinned_name(self) -> str:
        """`owner/name@commit`."""
        return f"{self.name}@{self.commit}"

    def has(self, name: str) -> bool:
        """Whether there is a file with this name."""
        if self.files is None:
            return self.cached(name) is not None
        return name in self.files

    @property
    def names(self) -> list[str]:
        """The names of all known files, with `/` for files in folders."""
        return sorted(self.files) if self.files is not None else sorted(path.name for path in self.folder.iterdir())

    def matching(self, names: Sequence[str]) -> list[str]:
        """The names for which there is a file."""
        return [name for name in names if self.has(name)]

    @property
    def folder(self) -> Path:
        """The folder in Hugging Face's cache where downloaded files of this commit appear."""
        return self.storage / "snapshots" / self.commit

    @property
    def storage(self) -> Path:
        """The repository's folder in the cache: `blobs`, `refs`, `snapshots`."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"

    def cached(self, name: str) -> Path | None:
        """The file in the cache; None if it was not downloaded completely."""
        path = self.folder / name
        return path if path.is_file() else None

    def blob_name(self, file: HubFile) -> str:
        """What a file's content is called in the cache: its hash."""
        name = file.sha256 or file.git_blob
        if name is None:
            raise _strange_answer(self.name, f"no hash of {shorten(file.name)}")
        return name

    def url(self, name: str) -> str:
        """The URL of a file."""
        from huggingface_hub import constants, hf_hub_url

        return hf_hub_url(self.name, name, revision=self.commit, endpoint=constants.ENDPOINT)


def open_repository(hub_id: str) -> HubRepository:
    """Ask the Hub for a repository's commit and files; without a network, find the commit in the cache.

    `hub_id`: `owner/name` or `owner/name@revision`. CheckpointError if the Hub has no such repository or revision,
    EnvironmentFault if it does not answer or refuses access.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    match = HUB_ID.fullmatch(hub_id)
    assert match is not None
    name, revision = match["name"], match["revision"]
    with hub_errors(hub_id):
        try:
            repository = _parse_info(_ask(name, revision), hub_id, name)
        except Exception as error:  # offline mode, and the classes of whichever network library the client uses
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            commit = _cached_commit(name, revision or constants.DEFAULT_REVISION)
            if commit is None:
                raise
            return HubRepository(hub_id, name, commit, None)
    _remember(repository, revision or constants.DEFAULT_REVISION)
    return repository


def _ask(name: str, revision: str | None) -> bytes:
    """What the Hub's API says about a revision of a model, with the sizes of its files.

    Not by HfApi.model_info, which reads an answer of any length.
    """
    from huggingface_hub import constants

    hub, data = hub_utils(), bytearray()
    url = f"{constants.ENDPOINT}/api/models/{name}" + (f"/revision/{quote(revision, safe='')}" if revision else "")
    headers, asked = hub.build_hf_headers(), {"blobs": "true"}
    with hub.get_session().stream(
        "GET", url, params=asked, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
    ) as response:
        hub.hf_raise_for_status(response)
        for piece in response.iter_bytes():
            data += piece
            if len(data) > _MAX_ANSWER_BYTES:
                raise _strange_answer(name, f"over {_MAX_ANSWER_BYTES:,} bytes")
    return bytes(data)


def _parse_info(data: bytes, hub_id: str, name: str) -> HubRepository:
    """A repository from the API's answer; EnvironmentFault for one that names files as the Hub does not."""
    try:
        value: object = json.loads(data)  # not strict_json: the answer repeats parts of the model's own files
    except (ValueError, RecursionError) as error:
        raise _strange_answer(name, f"not JSON ({shorten(str(error))})") from error
    info = JsonObject(value, None, EnvironmentFault, f"the Hub's answer about {name}")
    commit = _matching(info, "sha", _GIT_HASH, "a commit")
    files = {}
    for item in info.array("siblings") if info.has("siblings") else ():
        stated = JsonObject(item, None, EnvironmentFault, f"{info.place} siblings")
        lfs = stated.child("lfs") if stated.has("lfs") else None
        file = HubFile(
            name=stated.string("rfilename"),
            size=stated.integer("size", 0, _MAX_FILE_BYTES) if stated.has("size") else 0,
            sha256=None if lfs is None else _matching(lfs, "sha256", _SHA256, "a SHA-256"),
            git_blob=_matching(stated, "blobId", _GIT_HASH, "Git's hash of it") if stated.has("blobId") else None,
        )
        files[file.name] = file
    return HubRepository(hub_id, name, commit, files)


def _matching(stated: JsonObject, key: str, form: re.Pattern[str], wanted: str) -> str:
    """A text that becomes part of a path in the cache."""
    text = stated.string(key)
    if form.fullmatch(text) is None:
        stated.refuse(key, text, f"{wanted} in hexadecimal digits")
    return text


def _strange_answer(name: str, found: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the Hub's answer about {name}",
        found=found,
        wanted="a repository's commit and files",
        remedy="check the network, which may ask for a login, and HF_ENDPOINT",
    )


def _remember(repository: HubRepository, revision: str) -> None:
    """Record a revision's commit in the cache's `refs`, so that it is found without a network."""
    if revision != repository.commit and ".." not in revision:
        ref = repository.storage / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(repository.commit)


def _cached_commit(name: str, revision: str) -> str | None:
    """The commit of a revision as it was when it was last downloaded."""
    storage = HubRepository(name, name, "", None).storage
    ref = storage / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    return commit if (storage / "snapshots" / commit).is_dir() else None


def hub_utils() -> Any:
    """`huggingface_hub.utils`, whose documented functions its types do not export."""
    return importlib.import_module("huggingface_hub.utils")


@contextmanager
def hub_errors(hub_id: str, file: str | None = None) -> Iterator[None]:
    """Turn the errors of the Hub's client, its network library and the system into errors that say what to do."""
    try:
        yield
    except (CheckpointError, EnvironmentFault):
        raise
    except Exception as error:
        raise _explained(error, hub_id, file) from error


def _explained(error: Exception, hub_id: str, file: str | None) -> CheckpointError | EnvironmentFault:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _explained(error.__cause__, hub_id, file)
    name = hub_id.partition("@")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        remedy = f"accept the licence on {_page(name)}, then log in: hf auth login"
        return EnvironmentFault(hub_id, found="a gated repository that this account cannot read", remedy=remedy)
    if isinstance(error, errors.RepositoryNotFoundError):
        remedy = "check the spelling; a private or gated one needs hf auth login"
        return CheckpointError(hub_id, found="no such directory, and no such repository on the Hub", remedy=remedy)
    if isinstance(error, errors.RevisionNotFoundError):
        revision = hub_id.partition("@")[2]
        return CheckpointError(hub_id, found=f"no revision {revision}", wanted=f"a branch, tag or commit of {name}")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return CheckpointError(hub_id, found=f"no file {file}")
    if status in (401, 403):
        remedy = f"log in with hf auth login, and accept the licence on {_page(name)} if it asks for that"
        return EnvironmentFault(hub_id, found=f"the Hub refused access ({status})", remedy=remedy)
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        found = "no such directory, and offline mode is on (HF_HUB_OFFLINE) without a downloaded copy"
        return EnvironmentFault(hub_id, found=found, remedy="download it once while online")
    what = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else type(error).__name__
    if status is not None:
        what = f"the Hub answered with {status}"
    return EnvironmentFault(
        hub_id,
        found=f"no such directory, and no download ({what})",
        wanted="a directory, or a Hugging Face id while online",
        remedy="check the spelling and the network; what was downloaded is kept",
    )


def _page(name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"
