"""A Gemma 3n checkpoint in Hugging Face's form: checked whole when opened, its numbers read lazily."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
from numpy.typing import NDArray

from converters.gemma3n.config.text import CAUSAL_LM, TextConfig, parse_config
from converters.gemma3n.groups import (
    TOKEN_EMBEDDING,
    ParameterGroup,
    canonical_names,
    group_of,
    parameter_groups,
    text_tensors,
    unused_kv_tensors,
)
from converters.gemma3n.sizes.choose import named_slices
from converters.gemma3n.sizes.matformer import Slice
from converters.huggingface.safetensors import TensorInfo, open_safetensors
from converters.huggingface.tensor_reader import FLOAT_DTYPES, read_tensor
from toolkit.base.errors import CheckpointError, EnvironmentFault
from toolkit.base.strict_json import read_json_file, shorten

_COMPARED_BYTES = 4 << 20

_SAMPLES, _SAMPLE_BYTES = 16, 4096
"""What the fingerprint reads of a large tensor; part of the manifest's format (docs/formats/manifest.md)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)

# What a conversion reads, and nothing else: repositories also hold other formats of the same weights.
_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "matformer.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)


_OTHER_FILES = {
    "adapter_config.json": "merge a LoRA adapter into its base first, and save the whole",
    "manifest.json": "this looks like a bundle, which is converted already: gemma-edge run, verify and export read it",
    ".gguf": "GGUF holds weights that are quantised already: convert the checkpoint that it was made of",
    ".litertlm": "a .litertlm is converted already: gemma-edge check reads it",
    ".task": "a .task is converted already: convert the checkpoint that it was made of",
}
"""What to say of files that others take for a checkpoint."""


class Checkpoint:
    """A TensorSource over a checkpoint's canonical names; safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError unless every file, key and tensor is what Gemma 3n needs."""
        self._path = path
        raw, generation = _read_configs(path)
        self._architecture, self._config = parse_config(raw, generation, str(path / "config.json"))
        self._files = {file.path.name: file for file in open_safetensors(path)}
        try:
            self._tensors = self._check_tensors()
            self._slices = named_slices(self._config, path)
        except BaseException:
            self.close()
            raise
        self._config_values = json.dumps([raw, list(self._config.eos_token_ids)], sort_keys=True).encode()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def architecture(self) -> str:
        """Gemma3nForConditionalGeneration or Gemma3nForCausalLM."""
        return self._architecture

    @property
    def config(self) -> TextConfig:
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by canonical name, the towers' included."""
        return self._tensors

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        return parameter_groups(self._tensors)

    @property
    def slices(self) -> Mapping[str, Slice]:
        """The named sizes; one of them, `default_slice`, is the whole checkpoint."""
        return self._slices

    @property
    def default_slice(self) -> Slice:
        return next(item for item in self._slices.values() if item.is_whole(self._config))

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape; CheckpointError when there is no such tensor."""
        return self._info(name).shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """The tensor, or half-open ranges of its first and last axis, as float32; reads only the bytes asked for."""
        info = self._info(name)
        return read_tensor(self._files[info.file], info, rows, columns)

    def fingerprint(self) -> str:
        """sha256 over config.json's values, every tensor's name, type and shape, and samples of its bytes, in hex.

        Tells models apart, fine-tunes too, without reading them: pieces spread evenly over each tensor, small tensors
        whole. How the tensors are spread over shards does not matter.
        """
        digest = hashlib.sha256(self._config_values)
        for name in sorted(self._tensors):
            info = self._tensors[name]
            digest.update(json.dumps([name, info.dtype, info.shape]).encode())
            for start, count in _samples(info.stored_bytes):
                digest.update(self._bytes(info, start, count).data)
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """CheckpointError where a file of weights was written to since it was opened."""
        for file in self._files.values():
            file.require_unchanged()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise CheckpointError(
                str(self._path), found=f"no tensor {shorten(name)}", wanted="a tensor of the checkpoint"
            )
        return self._tensors[name]

    def _check_tensors(self) -> Mapping[str, TensorInfo]:
        """Canonical name to tensor, after one comparison of all that is there with all that must be."""
        stored = {name: info for file in self._files.values() for name, info in file.tensors.items()}
        names = canonical_names(stored, multimodal=self._architecture != CAUSAL_LM, what=str(self._path))
        tensors = {short: stored[name] for short, name in names.stored.items()}
        _require_text_tensors(self._config, tensors, names.unknown, str(self._path))
        if names.head is not None:
            self._require_tied_head(stored[names.head], tensors[TOKEN_EMBEDDING])
        return MappingProxyType(tensors)

    def _require_tied_head(self, head: TensorInfo, embedding: TensorInfo) -> None:
        """Some releases save the tied output matrix once more: an exact copy is left out, anything else refused."""
        same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
        for start in range(0, head.stored_bytes, _COMPARED_BYTES):
            count = min(_COMPARED_BYTES, head.stored_bytes - start)
            same = same and np.array_equal(self._bytes(head, start, count), self._bytes(embedding, start, count))
        if not same:
            raise CheckpointError(
                f"{self._path} {head.name}",
                found="other numbers than in the token embedding",
                wanted="the same, as Gemma 3n ties them",
                remedy="train with tie_word_embeddings",
            )

    def _bytes(self, info: TensorInfo, start: int, count: int) -> NDArray[np.uint8]:
        data = np.empty(count, np.uint8)
        self._files[info.file].read_into(data, info.begin + start)
        return data


def _samples(size: int) -> list[tuple[int, int]]:
    """Offset and length of what the fingerprint reads of a tensor of so many bytes.

    >>> _samples(65536), _samples(10**6)[:2], len(_samples(10**6)), sum(_samples(10**6)[-1])
    ([(0, 65536)], [(0, 4096), (66393, 4096)], 16, 1000000)
    """
    if size <= _SAMPLES * _SAMPLE_BYTES:
        return [(0, size)]
    return [(place * (size - _SAMPLE_BYTES) // (_SAMPLES - 1), _SAMPLE_BYTES) for place in range(_SAMPLES)]


def open_checkpoint(path_or_id: str | os.PathLike[str]) -> Checkpoint:
    """A directory's checkpoint; else, for `owner/name`, Hugging Face's, downloaded into its cache."""
    path = Path(path_or_id)
    if path.is_dir():
        return Checkpoint(path)
    if path.exists():
        wanted = "the directory that holds config.json"
        raise CheckpointError(str(path), found="a file", wanted=wanted, remedy=_OTHER_FILES.get(path.suffix))
    if not isinstance(path_or_id, str) or not _HUB_ID.fullmatch(path_or_id):
        raise CheckpointError(
            str(path_or_id),
            found="no such directory",
            wanted="a checkpoint's directory or a Hugging Face id owner/name",
        )
    return Checkpoint(_download(path_or_id))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the client's own classes, httpx's and the system's all end here
        raise EnvironmentFault(
            hub_id,
            found=f"no such directory, and no download ({type(error).__name__})",
            wanted="a checkpoint's directory, or a Hugging Face id while online",
            remedy="check the spelling, the network, and for gated models the licence and `hf auth login`",
        ) from error


def _read_configs(path: Path) -> tuple[object, object | None]:
    if not os.path.lexists(path / "config.json"):
        names = {name for item in path.iterdir() for name in (item.name, item.suffix)}
        remedy = next((text for name, text in _OTHER_FILES.items() if name in names), None)
        wanted = "a checkpoint in Hugging Face's form: config.json, *.safetensors, tokenizer.json"
        raise CheckpointError(str(path), found="no config.json", wanted=wanted, remedy=remedy)
    raw = read_json_file(path / "config.json", CheckpointError)
    generation = path / "generation_config.json"
    return raw, read_json_file(generation, CheckpointError) if generation.exists() else None


def _require_text_tensors(
    config: TextConfig, tensors: Mapping[str, TensorInfo], unknown: tuple[str, ...], what: str
) -> None:
    """One error for all that is missing, unknown, of the wrong shape or of a type that is not read."""
    needed = text_tensors(config)
    allowed = needed | unused_kv_tensors(config)
    text = {name: info for name, info in tensors.items() if group_of(name) not in ("vision", "audio")}
    faults = {
        "missing": [name for name in needed if name not in text],
        "unknown": [*unknown, *(info.name for name, info in text.items() if name not in allowed)],
        "of the wrong shape": [
            f"{name} {list(info.shape)} instead of {list(allowed[name])}"
            for name, info in text.items()
            if name in allowed and info.shape != allowed[name]
        ],
        f"not of {', '.join(FLOAT_DTYPES)}": [
            f"{name} {info.dtype}" for name, info in text.items() if info.dtype not in FLOAT_DTYPES
        ],
    }
    found = [f"tensors {kind}: {_few(names)}" for kind, names in faults.items() if names]
    if found:
        raise CheckpointError(what, found="; ".join(found), wanted="exactly the tensors that config.json implies")


def _few(names: list[str]) -> str:
    shown = ", ".join(shorten(name) for name in sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)} in all)"
