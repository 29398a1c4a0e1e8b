"""Reads adapters that PEFT saved: adapter_config.json and adapter_model.safetensors.

Source: peft 0.21 (tuners/lora/config.py, layer.py, dora.py; utils/save_and_load.py). The result of merging must equal
that of its `merge_and_unload`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from converters.huggingface.adapters.adapter import MERGE_ELSEWHERE, AdapterSource, AdapterUpdates, Targets, no_targets
from converters.huggingface.adapters.updates import (
    Addition,
    ByMagnitude,
    Factor,
    LowRank,
    Replacement,
    TokenRows,
    Update,
)
from converters.huggingface.patterns import first_matches
from converters.huggingface.safetensors import TensorInfo
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject, shorten

N = TypeVar("N", int, float)

WEIGHTS = "adapter_model.safetensors"

_ROOT = "base_model.model."
_MAX_RANK = 1 << 16
_MAX_TOKENS = 1 << 24

_WITHOUT_EFFECT = (
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "peft_version",
        "peft_type",
    ),
    *(
        "bias",
        "fan_in_fan_out",
        "layers_pattern",
        "lora_bias",
        "lora_dropout",
        "modules_to_save",
        "ensure_weight_tying",
    ),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config"),
    *("megatron_core", "megatron_config"),
)
"""Keys that do not matter for merging, or that the tensors themselves show. PEFT, too, turns fan_in_fan_out off for
the linear layers that it trains here; the configs of initialisations come with init_lora_weights, which is checked."""
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Those of init_lora_weights that leave the base model's weights as they are."""

_NAME = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<part>lora_A|lora_B)\.(?P<kind>weight|bias)"
    r"|(?P<embedding>lora_embedding_A|lora_embedding_B)"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?"
    r"|(?P<tokens>token_adapter\.trainable_tokens_delta)"
    r"|(?P<saved>base_layer|modules_to_save)\.(?P<whole>.+))"
)


@dataclass(slots=True)
class _Module:
    """The tensors of one module, by part."""

    parts: dict[str, TensorInfo] = field(default_factory=dict)
    whole: dict[str, TensorInfo] = field(default_factory=dict)
    """The parameters that were saved whole, by their names in the module."""
    of_base: set[str] = field(default_factory=set)
    """The parameters in `whole` on top of which LoRA factors were trained."""


@dataclass(frozen=True, slots=True)
class _Config:
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    """The ranks of modules for which rank_pattern states another one."""
    alphas: Mapping[str, float]
    root: bool
    """Whether the factor is alpha / sqrt(rank) instead of alpha / rank (rsLoRA)."""
    dora: bool
    tokens: Callable[[str], tuple[int, ...] | None]
    """The indices of the trained tokens of a module; None if there are none."""
    targets: Targets

    def factor(self, module: str, rank: int) -> float:
        alpha = self.alphas.get(module, self.alpha)
        return alpha / math.sqrt(rank) if self.root else alpha / rank

    def stated_rank(self, module: str) -> int:
        return self.ranks.get(module, self.rank)


def read_peft(source: AdapterSource) -> AdapterUpdates:
    """The updates of an adapter; CheckpointError, which names the tensor, for a form that cannot be merged."""
    modules = _modules(source)
    config = _read_config(source, modules)
    updates = {
        parameter: tuple(found)
        for module, tensors in modules.items()
        for parameter, found in _updates_of(source, config, module, tensors).items()
    }
    low_rank = frozenset(name for name, tensors in modules.items() if tensors.parts.keys() - {"tokens"})
    return AdapterUpdates(updates, low_rank, config.targets)


# --- config ----------------------------------------------------------------------------------------------------------


def _read_config(source: AdapterSource, modules: Iterable[str]) -> _Config:
    """Read the adapter's config; `modules`: those that have tensors, on which its patterns are tried."""
    stated = source.config
    stated.expect("peft_type", "LORA")
    _require_mergeable(stated)
    stated.ignore(_WITHOUT_EFFECT)
    result = _Config(
        rank=stated.integer("r", 1, _MAX_RANK),
        alpha=stated.number("lora_alpha", -1e6, 1e6),
        ranks=_by_module(stated, "rank_pattern", modules, lambda ranks, key: ranks.integer(key, 1, _MAX_RANK)),
        alphas=_by_module(stated, "alpha_pattern", modules, lambda alphas, key: alphas.number(key, -1e6, 1e6)),
        root=stated.has("use_rslora") and stated.flag("use_rslora"),
        dora=stated.has("use_dora") and stated.flag("use_dora"),
        tokens=_trained_tokens(stated),
        targets=_targets(stated),
    )
    stated.finish()
    return result


def _require_mergeable(stated: JsonObject) -> None:
    """Raise CheckpointError for options that change more than tensors, or base weights that are not saved."""
    if stated.has("init_lora_weights"):
        value = stated.value("init_lora_weights")
        if not any(value is known or (isinstance(known, str) and value == known) for known in _INITIALISATIONS):
            raise CheckpointError(
                "init_lora_weights",
                file=stated.file,
                found=f"{shorten(value)}, which changes the base model's own weights before training",
                remedy="convert it to plain LoRA as PEFT's documentation of save_pretrained "
                "(path_initial_model_for_weight_conversion) says, or merge it with PEFT",
            )
    for key in ("layer_replication", "target_parameters", "alora_invocation_tokens"):
        if stated.has(key) and stated.value(key):
            raise CheckpointError(
                key, file=stated.file, found=shorten(stated.value(key)), wanted="none", remedy=MERGE_ELSEWHERE
            )


def _by_module(
    stated: JsonObject, key: str, modules: Iterable[str], read: Callable[[JsonObject, str], N]
) -> Mapping[str, N]:
    """The number for each module that a pattern matches: that of the first such pattern, as in PEFT's
    `get_pattern_key`."""
    if not stated.has(key):
        return {}
    numbers = stated.child(key)
    by_pattern = [read(numbers, pattern) for pattern in numbers.names()]
    patterns = [rf"(.*\.)?({pattern})" for pattern in numbers.names()]
    found = first_matches(patterns, modules, key, stated.file)
    return {module: by_pattern[index] for module, index in found.items()}


def _trained_tokens(stated: JsonObject) -> Callable[[str], tuple[int, ...] | None]:
    """The function that gives the trained rows of an embedding; a plain list is for the token embedding."""
    key = "trainable_token_indices"
    if not stated.has(key):
        return lambda module: None
    if isinstance(stated.value(key), list):
        rows = stated.integers(key, 0, _MAX_TOKENS)
        return lambda module: rows
    named = stated.child(key)
    by_name = {name: named.integers(name, 0, _MAX_TOKENS) for name in named.names()}
    return lambda module: next((rows for name, rows in by_name.items() if _is_suffix(name, module)), None)


def _targets(stated: JsonObject) -> Targets:
    """The function that selects the modules with factors; it selects none if other options exclude some of them."""
    limited = [key for key in ("layers_to_transform", "exclude_modules") if stated.has(key)]
    stated.ignore(["layers_to_transform", "exclude_modules"])
    if not stated.has("target_modules"):
        return no_targets
    value, file = stated.value("target_modules"), stated.file
    if isinstance(value, str):
        first_matches([value], [], "target_modules", file)
        if limited or value == "all-linear":
            return no_targets
        return lambda modules: first_matches([value], modules, "target_modules", file).keys()
    names = {str(name) for name in stated.array("target_modules")}
    if limited:
        return no_targets
    return lambda modules: {module for module in modules if not names.isdisjoint(_suffixes(module))}


def _suffixes(module: str) -> Iterator[str]:
    """The names by which a config may state a module, in steps of whole parts."""
    parts = module.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _is_suffix(name: str, module: str) -> bool:
    return module == name or module.endswith("." + name)


# --- tensors ---------------------------------------------------------------------------------------------------------


def _modules(source: AdapterSource) -> Mapping[str, _Module]:
    """The adapter's tensors by module; those saved whole belong to the module that has the parameter."""
    modules: dict[str, _Module] = {}
    for name, info in source.file.tensors.items():
        if not name.startswith(_ROOT):
            raise source.unknown(name)
        match = _NAME.fullmatch(name[len(_ROOT) :])
        if match is None or match["whole"] is not None:
            whole = name[len(_ROOT) :] if match is None else f"{match['module']}.{match['whole']}"
            module, _, parameter = whole.rpartition(".")
            tensors = modules.setdefault(module, _Module())
            tensors.whole[parameter] = info
            tensors.of_base |= {parameter} if match is not None and match["saved"] == "base_layer" else set()
            continue
        part = match["embedding"] or ("tokens" if match["tokens"] else match["magnitude"])
        part = part or f"{match['part']}.{match['kind']}"
        modules.setdefault(match["module"], _Module()).parts[part] = info
    return modules


def _updates_of(source: AdapterSource, config: _Config, module: str, tensors: _Module) -> Mapping[str, list[Update]]:
    """The updates of one module by parameter: parameters saved whole first, as PEFT loads them."""
    updates: dict[str, list[Update]] = {
        f"{module}.{name}": [Replacement(Factor(source.file, info), source.scale, is_base=name in tensors.of_base)]
        for name, info in tensors.whole.items()
    }
    weight = updates.setdefault(f"{module}.weight", [])
    parts = dict(tensors.parts)
    tokens = parts.pop("tokens", None)
    bias = parts.pop("lora_B.bias", None)
    if parts or bias is not None:
        low_rank, factor = _low_rank(source, config, module, parts)
        weight.append(low_rank)
        if bias is not None:
            updates.setdefault(f"{module}.bias", []).append(Addition(Factor(source.file, bias), factor))
    if tokens is not None:
        weight.append(_token_rows(source, config, module, tokens))
    return {name: found for name, found in updates.items() if found}


def _low_rank(
    source: AdapterSource, config: _Config, module: str, parts: Mapping[str, TensorInfo]
) -> tuple[Update, float]:
    """LoRA or DoRA of a linear layer, a convolution or an embedding, and its factor."""
    embedding = "lora_embedding_A" in parts
    first, second = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    magnitude = "lora_magnitude_vector"
    wanted = {first, second} | ({magnitude} if config.dora else set())
    if parts.keys() != wanted:
        found = f"{shorten(module)} with {', '.join(sorted(parts))}"
        raise source.refuse(found, ", ".join(sorted(wanted)), "the adapter was not saved completely: save it again")
    a, b = Factor(source.file, parts[first]), Factor(source.file, parts[second])
    if len(a.info.shape) < 2 or a.info.shape[0] != config.stated_rank(module):
        found = f"{shorten(module)} {first} {list(a.info.shape)}"
        raise source.refuse(found, f"rank {config.stated_rank(module)} as adapter_config.json says")
    factor = config.factor(module, a.info.shape[0])
    left, right = (b, a) if not embedding else (_transposed(a), _transposed(b))
    if not config.dora:
        return LowRank(left, right, factor * source.scale), factor * source.scale
    lora = LowRank(left, right, factor)
    lengths = Factor(source.file, parts[magnitude])
    return ByMagnitude(lora, lengths, source.scale, by_column=embedding), factor * source.scale


def _transposed(factor: Factor) -> Factor:
    return Factor(factor.file, factor.info, transposed=True)


def _token_rows(source: AdapterSource, config: _Config, module: str, info: TensorInfo) -> TokenRows:
    rows = config.tokens(module)
    if rows is None or len(set(rows)) != len(rows):
        found = f"trained tokens of {shorten(module)}"
        raise source.refuse(found, "their indices, each once, in trainable_token_indices of adapter_config.json")
    return TokenRows(Factor(source.file, info), rows, source.scale)
