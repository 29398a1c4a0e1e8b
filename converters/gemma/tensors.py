"""Assigns each tensor to exactly one parameter group, and states the shape that it must have.

Names are the checkpoint's own without the text model's prefix (`model.language_model.` and its variants).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from converters.family import ParameterGroup
from converters.gemma.config import DecoderConfig, DecoderLayer
from converters.huggingface.safetensors import TensorInfo
from converters.huggingface.tensor_reader import FLOAT_DTYPES
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import shorten
from toolkit.bundle.manifest import CHECKPOINT_GROUPS, GroupKind

TOKEN_EMBEDDING = "embed_tokens.weight"
PER_LAYER_EMBEDDING = "embed_tokens_per_layer.weight"
PER_LAYER_MODEL_PROJECTION = "per_layer_model_projection.weight"

# The prefixes of a tower's tensors in old and new releases of transformers; here they keep only the last part.
_TOWERS: dict[str, GroupKind] = {
    "vision_tower": "vision",
    "embed_vision": "vision",
    "audio_tower": "audio",
    "embed_audio": "audio",
}
# The last two are of classes without an output matrix, such as Gemma3nModel and Gemma3nTextModel.
_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "language_model.", "")
_HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")


def decoder_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of each text tensor that all models have, without the output matrix, which is tied.

    Layers that read another layer's cache have no key and value projections.
    """
    hidden, ple = config.hidden_size, config.ple_size
    tensors: dict[str, tuple[int, ...]] = {
        TOKEN_EMBEDDING: (config.vocab_size, hidden),
        PER_LAYER_EMBEDDING: (config.ple_vocab_size, config.num_layers * ple),
        PER_LAYER_MODEL_PROJECTION: (config.num_layers * ple, hidden),
        "per_layer_projection_norm.weight": (ple,),
        "norm.weight": (hidden,),
    }
    for index, layer in enumerate(config.layers):
        names = _layer_tensors(config, layer)
        if layer.kv_source is None:
            names |= _kv_tensors(config, layer)
        tensors |= {f"layers.{index}.{name}": shape for name, shape in names.items()}
    return tensors


def unused_kv_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The unused key and value weights of layers that read another layer's cache: published checkpoints have them,
    transformers does not save them."""
    shared = [(index, layer) for index, layer in enumerate(config.layers) if layer.kv_source is not None]
    return {
        f"layers.{index}.{name}": shape for index, layer in shared for name, shape in _kv_tensors(config, layer).items()
    }


def _layer_tensors(config: DecoderConfig, layer: DecoderLayer) -> dict[str, tuple[int, ...]]:
    hidden, ple, ffn = config.hidden_size, config.ple_size, layer.ffn_size
    dim = config.heads(layer.attention).dim
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "pre_feedforward_layernorm.weight": (hidden,),
        "post_feedforward_layernorm.weight": (hidden,),
        "post_per_layer_input_norm.weight": (hidden,),
        "self_attn.q_proj.weight": (config.num_heads * dim, hidden),
        "self_attn.o_proj.weight": (hidden, config.num_heads * dim),
        "self_attn.q_norm.weight": (dim,),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
        "per_layer_input_gate.weight": (ple, hidden),
        "per_layer_projection.weight": (hidden, ple),
    }


def _kv_tensors(config: DecoderConfig, layer: DecoderLayer) -> dict[str, tuple[int, ...]]:
    dim = config.heads(layer.attention).dim
    rows = config.num_kv_heads * dim
    return {
        "self_attn.k_proj.weight": (rows, config.hidden_size),
        "self_attn.v_proj.weight": (rows, config.hidden_size),
        "self_attn.k_norm.weight": (dim,),
    }


def group_of(name: str) -> GroupKind:
    """The group of a tensor by its canonical name.

    >>> group_of("embed_tokens_per_layer.weight"), group_of("embed_audio.embedding.weight"), group_of("norm.weight")
    ('per_layer_embedding', 'audio', 'text')
    """
    if name == TOKEN_EMBEDDING:
        return "token_embedding"
    if name == PER_LAYER_EMBEDDING:
        return "per_layer_embedding"
    return _TOWERS.get(name.partition(".")[0], "text")


@dataclass(frozen=True, slots=True)
class TextTable:
    """The text tensors of a checkpoint, by canonical name, with their shapes."""

    needed: Mapping[str, tuple[int, ...]]
    unused: Mapping[str, tuple[int, ...]]
    """Tensors that may be present, but have no effect."""
    foreign: Mapping[str, str]
    """Parts of names that only another model has, with that model's name: then config and weights do not match."""


def require_text_tensors(
    table: TextTable,
    tensors: Mapping[str, TensorInfo],
    unknown: tuple[str, ...],
    what: str,
    is_readable: Callable[[TensorInfo], bool],
    remedy: str | None,
) -> None:
    """One CheckpointError lists all tensors that are missing, unknown, of a wrong shape or of an unsupported type."""
    needed, allowed = table.needed, {**table.needed, **table.unused}
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
            f"{name} {info.dtype}" for name, info in text.items() if not is_readable(info)
        ],
    }
    found = [f"tensors {kind}: {_few(names)}" for kind, names in faults.items() if names]
    if found:
        remedy = _other_model(table, faults["unknown"]) or remedy
        wanted = "exactly the tensors that config.json implies"
        raise CheckpointError(file=what, found="; ".join(found), wanted=wanted, remedy=remedy)


def _other_model(table: TextTable, unknown: Sequence[str]) -> str | None:
    """The remedy if the tensors are those of another model; None otherwise."""
    models = [model for part, model in table.foreign.items() if any(part in name.split(".") for name in unknown)]
    return f"these are the weights of {models[0]}: use the config.json that came with them" if models else None


def _few(names: list[str]) -> str:
    shown = ", ".join(shorten(name) for name in sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)} in all)"


def require_group_tensors(
    group: GroupKind,
    needed: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, TensorInfo],
    what: str,
    *,
    implied_by: str,
) -> None:
    """One CheckpointError lists all tensors of a group that are missing, unknown, or of another shape or type."""
    present = {name: info for name, info in tensors.items() if group_of(name) == group}
    faults = [f"no {name}" for name in needed if name not in present]
    faults += [f"unknown {shorten(info.name)}" for name, info in present.items() if name not in needed]
    for name, info in present.items():
        if name in needed and info.shape != needed[name]:
            faults.append(f"{name} {list(info.shape)} instead of {list(needed[name])}")
        elif info.dtype not in FLOAT_DTYPES:
            faults.append(f"{name} of {info.dtype}, not {', '.join(FLOAT_DTYPES)}")
    if faults:
        remedy = _MLX if any(_is_permuted(info, needed) for info in present.items()) else None
        more = f"; {len(faults) - 3} more" if len(faults) > 3 else ""
        wanted = f"exactly the {group} tensors that {implied_by}"
        raise CheckpointError(file=what, found="; ".join(faults[:3]) + more, wanted=wanted, remedy=remedy)


_MLX = "these axes are in mlx's order: convert the 16-bit checkpoint in Hugging Face's form that it was made from"


def _is_permuted(item: tuple[str, TensorInfo], needed: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a convolution's axes are in another order."""
    shape = needed.get(item[0], ())
    return len(shape) > 2 and item[1].shape != shape and sorted(item[1].shape) == sorted(shape)


def parameter_groups(tensors: Mapping[str, TensorInfo]) -> tuple[ParameterGroup, ...]:
    """All five groups in the order of CHECKPOINT_GROUPS; a group without tensors is empty."""
    members: dict[GroupKind, list[str]] = {name: [] for name in CHECKPOINT_GROUPS}
    for name in sorted(tensors):
        members[group_of(name)].append(name)
    return tuple(
        ParameterGroup(
            group,
            tuple(names),
            sum(tensors[name].parameters for name in names),
            sum(tensors[name].stored_bytes for name in names),
        )
        for group, names in members.items()
    )


@dataclass(frozen=True, slots=True)
class CanonicalNames:
    """Maps canonical names to stored names; a saved copy of the tied output matrix is kept separately."""

    stored: Mapping[str, str]
    head: str | None
    unknown: tuple[str, ...]


def canonical_names(stored: Iterable[str], *, multimodal: bool, what: str) -> CanonicalNames:
    """Strip the prefixes of old and new transformers releases; all text tensors must share one prefix."""
    names = sorted(stored)
    prefix = _text_prefix(names, what)
    canonical: dict[str, str] = {}
    heads: list[str] = []
    unknown: list[str] = []
    for name in names:
        tower = _tower_name(name)
        if name in _HEAD_NAMES:
            heads.append(name)
        elif multimodal if tower is not None else name.startswith(prefix):
            short = tower if tower is not None else name[len(prefix) :]
            if short in canonical:
                raise CheckpointError(file=what, found=f"{canonical[short]} and {name}", wanted="one of them")
            canonical[short] = name
        else:
            unknown.append(name)
    if TOKEN_EMBEDDING not in canonical and len(heads) == 1:
        # The tied matrix is stored once, and some writers store it under the output matrix's name.
        canonical[TOKEN_EMBEDDING] = heads.pop()
    if len(heads) > 1:
        raise CheckpointError(file=what, found=" and ".join(heads), wanted="one of them")
    return CanonicalNames(canonical, heads[0] if heads else None, tuple(unknown))


def own_name(parameter: str, known: Container[str]) -> str | None:
    """The canonical name of a parameter, whose name may be from any class of the model in any release.

    `known`: the canonical names that the model can have. None if the parameter is none of them.

    >>> own_name("base.norm.weight", ["norm.weight"]), own_name("language_model.model.norm.weight", ["norm.weight"])
    (None, 'norm.weight')
    """
    tower = _tower_name(parameter)
    if tower is not None:
        return tower if tower in known else None
    if is_head(parameter):
        return TOKEN_EMBEDDING
    names = (parameter[len(prefix) :] for prefix in _TEXT_PREFIXES if parameter.startswith(prefix))
    return next((name for name in names if name in known), None)


def is_head(parameter: str) -> bool:
    """Whether this is the output matrix, which is tied to the token embedding."""
    return parameter in _HEAD_NAMES


def _text_prefix(names: list[str], what: str) -> str:
    found = [prefix for prefix in _TEXT_PREFIXES if prefix + TOKEN_EMBEDDING in names]
    if not found:
        # If only the tied output matrix was stored, the per-layer embedding shows the prefix.
        found = [prefix for prefix in _TEXT_PREFIXES if prefix + PER_LAYER_EMBEDDING in names and _heads(names)]
    if len(found) != 1:
        wanted = " or ".join(prefix + TOKEN_EMBEDDING for prefix in _TEXT_PREFIXES[:3])
        present = " and ".join(prefix + TOKEN_EMBEDDING for prefix in found)
        raise CheckpointError(
            file=what, found=present or _instead(names), wanted=wanted, remedy=None if found else _strip(names)
        )
    return found[0]


def _heads(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in _HEAD_NAMES]


def _instead(names: list[str]) -> str:
    """The name under which a trainer's wrapper saved the token embedding, if there is one."""
    wrapped = next((name for name in names if name.endswith("." + TOKEN_EMBEDDING)), None)
    return f"no {TOKEN_EMBEDDING}" if wrapped is None else shorten(wrapped)


def _strip(names: list[str]) -> str | None:
    wrapped = next((name for name in names if name.endswith("." + TOKEN_EMBEDDING)), "")
    inside = next((prefix for prefix in _TEXT_PREFIXES if prefix and prefix + TOKEN_EMBEDDING in wrapped), None)
    if inside is None:
        return None
    wrappers = wrapped[: wrapped.index(inside + TOKEN_EMBEDDING)]
    return f"strip {shorten(wrappers)} from every name: unwrap the model before it is saved" if wrappers else None


def _tower_name(name: str) -> str | None:
    short = name.removeprefix("model.")
    return short if short.partition(".")[0] in _TOWERS else None
