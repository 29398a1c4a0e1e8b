"""Opens a checkpoint of a Gemma 4 drafter, and writes it as the drafter of a bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from converters.gemma.config import Attention
from converters.gemma.text_source import TextSource
from converters.gemma4.assistant.config import ARCHITECTURE, AssistantConfig, parse_assistant_config
from converters.gemma4.assistant.tensors import CENTROIDS, EMBEDDING, TOKEN_ORDERING, assistant_tensors, require_tensors
from converters.gemma4.graphs.drafter import Donor, Target, assistant_graph
from converters.gemma4.recipes import RECIPES
from converters.huggingface.configs import CheckpointConfigs
from converters.huggingface.safetensors import TensorInfo
from converters.huggingface.stored_tensors import StoredTensors
from converters.plan import GraphFiles, PlannedDrafter
from toolkit.base.errors import BundleError, CheckpointError
from toolkit.bundle.manifest import DRAFTER, KvCache, TextRecord
from toolkit.bundle.signatures import draft_signature
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme
from toolkit.tflite.graph import Signature
from toolkit.tflite.writer import layout_files

FLOATS = RECIPES["text"].load("f32")
QUANTISED = Recipe(
    "drafter",
    (
        Rule("*norm.weight", Scheme("f32")),
        Rule("*.q_norms.weight", Scheme("f32")),
        Rule("*.layer_scalar", Scheme("f32")),
        Rule("lm_head.weight", Scheme("int4")),
        Rule("*", Scheme("int8")),
    ),
)
"""Most of what a draft reads is the output matrix."""


class Assistant:
    """A drafter's checkpoint, open (`converters.family.Assistant`); a TensorSource of what its graph needs."""

    def __init__(self, configs: CheckpointConfigs) -> None:
        """Open and check the files; CheckpointError unless every key and tensor is what a drafter of Gemma 4 has."""
        self._configs = configs
        self.config: AssistantConfig = parse_assistant_config(configs.config, str(configs.config_path))
        self._stored = StoredTensors(configs.path, configs.remote_files)
        try:
            self._tensors = self._checked()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """Its directory's name, or its Hugging Face id and commit."""
        return self._configs.name

    @property
    def architecture(self) -> str:
        """See `converters.family.Assistant`."""
        return ARCHITECTURE

    @property
    def path(self) -> Path:
        """Its directory."""
        return self._configs.path

    def fingerprint(self) -> str:
        """A hexadecimal hash that distinguishes drafters, without reading all their bytes."""
        return self._stored.fingerprint(self._configs.config, (), self._tensors)

    def require_unchanged(self) -> None:
        """CheckpointError if a file of weights has changed since it was opened."""
        self._stored.require_unchanged()

    def close(self) -> None:
        """Close all files."""
        self._stored.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorSource`."""
        return self._info(name).shape

    def read(
        self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """See `TensorSource`."""
        return self._stored.read(self._info(name), rows, columns)

    def plan(self, text: TextRecord, recipe: str, buckets: Sequence[int] = ()) -> PlannedDrafter:
        """See `converters.family.Assistant`; it is stored in floats if the bundle is."""
        decoder, target = self.config.decoder, self._target(text)
        # The signature for the whole context comes first: it is the one that the engine runs.
        signatures = [
            Signature(draft_signature(bucket), assistant_graph(decoder, target, bucket)) for bucket in (None, *buckets)
        ]
        layouts = layout_files({DRAFTER: signatures}, FLOATS if recipe == FLOATS.name else QUANTISED)
        read = {name for donor in target.donors.values() for name in (donor.keys, donor.values)}
        caches = tuple(name for cache in text.kv_caches for name in (cache.key, cache.value) if name in read)
        parameters = sum(math.prod(info.shape) for info in self._tensors.values())
        return PlannedDrafter(GraphFiles(layouts, TextSource(self, decoder)), caches, parameters)

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise CheckpointError(file=self._configs.path, found=f"no tensor {name}")
        return self._tensors[name]

    def _checked(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, all as the config implies; a saved copy of the output matrix must be the embedding."""
        what = str(self._configs.path)
        tensors, head = require_tensors(
            assistant_tensors(self.config), self._stored.infos, self._stored.is_readable, what
        )
        if head is not None and not self._stored.are_remote and not self._stored.equal(head, tensors[EMBEDDING]):
            wanted = "those of the token embedding, which a drafter's output matrix is"
            raise CheckpointError(head.name, file=what, found="other numbers", wanted=wanted)
        return {name: info for name, info in tensors.items() if name not in (CENTROIDS, TOKEN_ORDERING)}

    # --- the target --------------------------------------------------------------------------------------------------

    def _target(self, text: TextRecord) -> Target:
        """What the graph needs to know of the bundle's model."""
        config = self.config.decoder
        wanted = {
            "backbone_hidden_size": (self.config.target_hidden_size, text.hidden_size),
            "vocab_size": (config.vocab_size, text.vocab_size),
        }
        for key, (own, other) in wanted.items():
            if own != other:
                self._refuse(key, own, other)
        kinds = dict.fromkeys(layer.attention for layer in config.layers)
        return Target(text.hidden_size, text.context, {kind: self._donor(kind, text) for kind in kinds})

    def _donor(self, kind: Attention, text: TextRecord) -> Donor:
        """The last cache of a type: that of the last layer with this attention which owns one."""
        config, rings = self.config.decoder, any(cache.window is not None for cache in text.kv_caches)
        dims = {other: config.heads(other).dim for other in ("sliding", "full")}
        if not rings and dims["sliding"] == dims["full"] and len({layer.attention for layer in config.layers}) > 1:
            raise BundleError(
                "kv_caches",
                found=f"a context of {text.context}, for which all caches are alike",
                wanted="rings for layers with a window, by which a drafter knows its caches",
                remedy="convert it again with a longer --context",
            )
        caches = [
            cache
            for cache in text.kv_caches
            if (not rings or (cache.window is not None) == (kind == "sliding")) and cache.shape[3] == dims[kind]
        ]
        if not caches:
            self._refuse(f"head_dim of {kind} layers", dims[kind], "a size that a cache has")
        cache = caches[-1]
        if cache.window not in (None, config.sliding_window):
            self._refuse("sliding_window", config.sliding_window, cache.window)
        return self._checked_donor(cache)

    def _checked_donor(self, cache: KvCache) -> Donor:
        one, heads, rows, dim = cache.shape
        if heads != self.config.decoder.num_kv_heads:
            self._refuse("num_key_value_heads", self.config.decoder.num_kv_heads, heads)
        return Donor(cache.key, cache.value, (one, heads, rows, dim))

    def _refuse(self, key: str, found: object, wanted: object) -> NoReturn:
        raise CheckpointError(
            key,
            file=self._configs.config_path,
            found=str(found),
            wanted=f"{wanted}, as the bundle's model has it",
            remedy="use a drafter that was made for this model, or fit one with --drafter fit",
        )
