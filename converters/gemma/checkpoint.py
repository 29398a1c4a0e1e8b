"""Opens a checkpoint of a Gemma model: checks its tensors against its config, and reads weights only on request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from converters.family import ParameterGroup
from converters.gemma.config import AnyConfig, DecoderConfig
from converters.gemma.tensors import (
    TOKEN_EMBEDDING,
    TextTable,
    canonical_names,
    group_of,
    is_head,
    own_name,
    parameter_groups,
    require_text_tensors,
)
from converters.huggingface.adapters.adapter import Adapter
from converters.huggingface.adapters.merged import MergedTensors, ModelNames
from converters.huggingface.configs import CheckpointConfigs
from converters.huggingface.gemma_quant.config import QUANT_METHOD, quant_method
from converters.huggingface.gemma_quant.open import open_tensors
from converters.huggingface.safetensors import TensorInfo
from converters.huggingface.tensor_reader import FLOAT_DTYPES
from toolkit.base.activations import ActivationScales
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import shorten
from toolkit.quant.scheme import Scheme
from toolkit.quant.source import PackedRows

_log = logging.getLogger(__name__)

_COMPARED_ROWS = 4096

_OTHER_METHOD = "these weights are quantised already: convert the 16-bit checkpoint"
_KNOWN_METHOD = f"; of the methods in quantization_config, only {QUANT_METHOD} is supported, not {{}}"

Opened = TypeVar("Opened", bound="GemmaTensors[DecoderConfig]")


@dataclass(frozen=True, slots=True)
class Parsed(Generic[AnyConfig]):
    """What a family has read from config.json."""

    model: str
    """The model's name, for errors."""
    architecture: str
    multimodal: bool
    """Whether the checkpoint may have towers."""
    config: AnyConfig
    text: TextTable


class GemmaTensors(Generic[AnyConfig]):
    """A `TensorSource` of a checkpoint's tensors by their canonical names; safe to read from several threads."""

    def __init__(self, configs: CheckpointConfigs, parsed: Parsed[AnyConfig]) -> None:
        """Open and check the files; CheckpointError unless every file and tensor is what the config implies."""
        self._configs = configs
        self._parsed = parsed
        self._stored = open_tensors(configs)
        self._head: TensorInfo | None = None
        """A saved copy of the output matrix, which is tied to the token embedding; None if there is none."""
        try:
            self._tensors = self._check_tensors()
            self._merged = MergedTensors(self._stored, configs.adapters, self._names())
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        return self._configs.path

    @property
    def name(self) -> str:
        """Its directory's name, or its Hugging Face id and commit."""
        return self._configs.name

    @property
    def configs(self) -> CheckpointConfigs:
        """The values of its config files, including the towers'."""
        return self._configs

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters that are merged into the tensors, in this order."""
        return self._configs.adapters

    @property
    def architecture(self) -> str:
        """The transformers class that saved it, in its form with an output matrix."""
        return self._parsed.architecture

    @property
    def config(self) -> AnyConfig:
        """The language model's config."""
        return self._parsed.config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by canonical name, including the towers'."""
        return self._tensors

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """All five parameter groups, in the order of a bundle; groups without tensors are empty."""
        return parameter_groups(self._tensors)

    @property
    def vocab_size(self) -> int:
        """The number of token ids, which is the length of the logits."""
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest context that the model was made for, in tokens."""
        return self.config.max_positions

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor; CheckpointError if there is no such tensor."""
        return self._info(name).shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Read a tensor, or half-open ranges of its first and last axis, as float32; reads only the bytes needed.

        Adapters are merged into it.
        """
        return self._merged.read(self._info(name), rows, columns)

    def packed(
        self, name: str, scheme: Scheme, rows: tuple[int, int], columns: tuple[int, int] | None = None
    ) -> PackedRows | None:
        """See `PackedSource`: a tensor's codes, if it is stored so. Weights joined from several tensors have none."""
        info = self._tensors.get(name)
        return None if info is None else self._merged.packed(info, scheme, rows, columns)

    def scheme(self, name: str) -> Scheme | None:
        """The scheme in which a tensor is stored; None for floats, and for codes that an adapter changes."""
        return self._merged.scheme(self._info(name))

    def activation_scales(self, name: str) -> ActivationScales:
        """The scales to which the product with a matrix rounds; for the token embedding, those of the output matrix."""
        info = self._head if name == TOKEN_EMBEDDING and self._head is not None else self._tensors.get(name)
        return ActivationScales() if info is None else self._stored.activation_scales(info)

    def fingerprint(self) -> str:
        """A hexadecimal hash that distinguishes models, including fine-tuned ones, without reading all their bytes.

        It does not cover adapters.
        """
        return self._stored.fingerprint(self._configs.config, self.config.eos_token_ids, self._tensors)

    def require_unchanged(self) -> None:
        """Raise CheckpointError if a file of weights has changed since it was opened."""
        self._stored.require_unchanged()
        for adapter in self.adapters:
            adapter.require_unchanged()

    def close(self) -> None:
        """Close all files; reading fails from then on."""
        self._stored.close()
        for adapter in self.adapters:
            adapter.close()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise CheckpointError(file=self.path, found=f"no tensor {shorten(name)}")
        return self._tensors[name]

    def _check_tensors(self) -> Mapping[str, TensorInfo]:
        """Map canonical names to tensors, after comparing all tensors present with all that are needed."""
        stored = self._stored.infos
        names = canonical_names(stored, multimodal=self._parsed.multimodal, what=str(self.path))
        tensors = {short: stored[name] for short, name in names.stored.items()}
        quantized = _states(self._configs.config, "quantization_config", "quantization")
        method = quant_method(self._configs.config)
        remedy = None
        if quantized and method != QUANT_METHOD:
            remedy = _OTHER_METHOD + (_KNOWN_METHOD.format(shorten(method)) if method is not None else "")
        require_text_tensors(
            self._parsed.text, tensors, names.unknown, str(self.path), self._stored.is_readable, remedy
        )
        if quantized and method != QUANT_METHOD:
            _log.warning("%s states a quantization, but its weights are not quantised: it is left out", self.path)
        if names.head is not None:
            self._head = stored[names.head]
            self._require_tied_head(self._head, tensors[TOKEN_EMBEDDING])
        elif _states(self._configs.config, "tie_word_embeddings", value=False):
            raise CheckpointError(
                "tie_word_embeddings",
                file=self._configs.config_path,
                found="false, and no lm_head.weight",
                wanted="true, or the output matrix",
                remedy=f"set it to true if the model was trained with tied weights, as {self._parsed.model} is",
            )
        return MappingProxyType(tensors)

    def _names(self) -> ModelNames:
        unused = self._parsed.text.unused
        known = self._tensors.keys() | unused.keys()
        return ModelNames(
            tensors=self._tensors,
            own_name=lambda parameter: own_name(parameter, known),
            group_of=group_of,
            unused=unused,
            embedding=TOKEN_EMBEDDING,
            is_head=is_head,
        )

    def _require_tied_head(self, head: TensorInfo, embedding: TensorInfo) -> None:
        """Raise CheckpointError unless the saved copy of the tied output matrix, which some releases have, is exact."""
        if self._stored.are_remote:
            return  # too much to download for a first look
        if not self._stored.equal(head, embedding) and not self._same_numbers(head, embedding):
            raise CheckpointError(
                head.name,
                file=self.path,
                found="values that differ from the token embedding's",
                wanted=f"the same, as {self._parsed.model} ties them",
                remedy="train with tie_word_embeddings",
            )

    def _same_numbers(self, one: TensorInfo, other: TensorInfo) -> bool:
        """Whether two tensors of different types have the same values."""
        if one.shape != other.shape or one.dtype == other.dtype or one.dtype not in FLOAT_DTYPES:
            return False
        rows = ((start, min(start + _COMPARED_ROWS, one.shape[0])) for start in range(0, one.shape[0], _COMPARED_ROWS))
        return all(np.array_equal(self._stored.read(one, part), self._stored.read(other, part)) for part in rows)


def _states(config: object, *keys: str, value: object = None) -> bool:
    """Whether config.json or its text section has one of the keys, with `value`, or with any but null if it is None."""
    top = config if isinstance(config, dict) else {}
    text = top.get("text_config")
    sections = (top, text if isinstance(text, dict) else {})
    found = [section[key] for section in sections for key in keys if section.get(key) is not None]
    return any(value is None or item == value for item in found)
