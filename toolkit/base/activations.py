"""The precision of activations: the types that a GPU computes with, and the int8 scales that a checkpoint may state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from toolkit.base.errors import UsageError

Activations = Literal["fp16", "fp32"]
ACTIVATIONS: tuple[Activations, ...] = get_args(Activations)
"""The types that a GPU may compute with; a CPU always uses float32."""


def require_activations(name: str) -> None:
    """Raise UsageError unless `name` is one of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise UsageError("activations", found=name, wanted=" or ".join(ACTIVATIONS))


@dataclass(frozen=True, slots=True)
class ActivationScales:
    """The scales with which a product's inputs and outputs are rounded to int8; None: they are not rounded."""

    input: float | None = None
    output: float | None = None
