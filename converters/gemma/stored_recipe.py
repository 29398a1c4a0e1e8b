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

    `tensors`: canonical names. CheckpointError for block scales, and for codes of queries, keys and values of different
    types, because one matrix joins them.
    """
    schemes = {name: scheme_of(name) for name in tensors}
    for name, scheme in schemes.items():
        if scheme is not None and scheme.block_size is not None:
            raise CheckpointError(name, found=str(scheme), wanted=f"{scheme.dtype} with one scale for each row")
    if "embed_tokens.weight" in schemes:
        schemes["lm_head.weight"] = schemes["embed_tokens.weight"]
    schemes |= _joined(schemes)
    changed = base.changed(NAME, _compressed(schemes, base))
    return Recipe(NAME, changed.rules, static_activations=static_activations)


def _joined(schemes: Mapping[str, Scheme | None]) -> dict[str, Scheme | None]:
    """The schemes of the matrices that join queries, keys and values; None for one of which a part is floats."""
    found = {}
    for name, scheme in schemes.items():
        layer = name.removesuffix(_JOINED[0])
        if layer == name or not all(layer + part in schemes for part in _JOINED):
            continue
        parts = {part: schemes[layer + part] for part in _JOINED}
        if None not in parts.values() and set(parts.values()) != {scheme}:
            stored = ", ".join(f"{part.split('.')[1]} {own}" for part, own in parts.items())
            raise CheckpointError(f"{layer}self_attn", found=stored, wanted="one type for all three")
        found[layer + _JOIN] = None if None in parts.values() else scheme
    return found


def _compressed(schemes: Mapping[str, Scheme | None], base: Recipe) -> list[Rule]:
    """A rule for each kind of matrix with the scheme of most layers, after rules for the layers that differ.

    The layers whose matrix is floats, such as those that an adapter changes, have the scheme of `base`.
    """
    by_kind: dict[str, dict[str, Scheme | None]] = {}
    rules = []
    for name, scheme in schemes.items():
        match = _LAYER.fullmatch(name)
        if match is not None:
            by_kind.setdefault(match[2], {})[name] = scheme
        elif scheme is not None:
            rules.append(Rule(name, scheme))
    coded = {kind: [scheme for scheme in own.values() if scheme is not None] for kind, own in by_kind.items()}
    usual = {kind: Counter(found).most_common(1)[0][0] for kind, found in coded.items() if found}
    for kind, scheme in usual.items():
        wanted = {name: own or base.scheme(name) for name, own in by_kind[kind].items()}
        rules += [Rule(name, own, optional=True) for name, own in wanted.items() if own != scheme]
    # Which of the joined and the separate projections a decoder has depends on the layer.
    return rules + [Rule(f"layers.*.{kind}", scheme, optional=True) for kind, scheme in usual.items()]
