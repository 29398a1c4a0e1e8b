"""Makes the recipe for a checkpoint whose weights are codes: it keeps each weight as it is stored, without loss."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from toolkit.base.errors import CheckpointError
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme

NAME = "qat"
"""The name of the recipe in manifests and for `--quant`."""

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_JOINED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_JOIN = "self_attn.qkv_proj.weight"
"""The projections that the decoder joins in layers that have all three."""


def stored_recipe(
    base: Recipe, tensors: Sequence[str], scheme_of: Callable[[str], Scheme | None], *, static_activations: bool
) -> Recipe:
    """The recipe of a checkpoint's decoder and token embedding: `base`, but tensors that are codes stay as stored.

    `tensors`: canonical names. CheckpointError for block scales, and for queries, keys and values of different types,
    because one matrix joins them.
    """
    schemes = {name: scheme for name in tensors if (scheme := scheme_of(name)) is not None}
    for name, scheme in schemes.items():
        if scheme.block_size is not None:
            raise CheckpointError(name, found=str(scheme), wanted=f"{scheme.dtype} with one scale for each row")
    if "embed_tokens.weight" in schemes:
        schemes["lm_head.weight"] = schemes["embed_tokens.weight"]
    schemes |= _joined(schemes)
    rules = _compressed(schemes)
    changed = base.changed(NAME, rules)
    return Recipe(NAME, changed.rules, static_activations=static_activations)


def _joined(schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """The schemes of the matrices that join queries, keys and values."""
    found = {}
    for name, scheme in schemes.items():
        layer = name.removesuffix(_JOINED[0])
        parts = {part: schemes.get(layer + part) for part in _JOINED}
        if layer == name or parts[_JOINED[1]] is None:
            continue
        if set(parts.values()) != {scheme}:
            stored = ", ".join(f"{part.split('.')[1]} {own}" for part, own in parts.items())
            raise CheckpointError(f"{layer}self_attn", found=stored, wanted="one type for all three")
        found[layer + _JOIN] = scheme
    return found


def _compressed(schemes: Mapping[str, Scheme]) -> list[Rule]:
    """A rule for each kind of matrix with the scheme of most layers, after rules for the layers that differ."""
    by_kind: dict[str, dict[str, Scheme]] = {}
    rules = []
    for name, scheme in schemes.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            rules.append(Rule(name, scheme))
        else:
            by_kind.setdefault(match[2], {})[name] = scheme
    usual = {kind: Counter(own.values()).most_common(1)[0][0] for kind, own in by_kind.items()}
    for kind, own in by_kind.items():
        rules += [Rule(name, scheme, optional=True) for name, scheme in own.items() if scheme != usual[kind]]
    # Which of the joined and the separate projections a decoder has depends on the layer.
    return rules + [Rule(f"layers.*.{kind}", scheme, optional=True) for kind, scheme in usual.items()]
