"""What activations are computed in: the types of a GPU, and the scales of int8 that a checkpoint states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from toolkit.base.errors import UsageError

Activations = Literal["fp16", "fp32"]
ACTIVATIONS: tuple[Activations, ...] = get_args(Activations)
"""What a GPU computes with; a CPU always uses float32."""


def require_activations(name: str) -> None:
    """UsageError for a name other than those of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise UsageError("activations", found=name, wanted=" or ".join(ACTIVATIONS))


@dataclass(frozen=True, slots=True)
class ActivationScales:
    """The scales by which a product's inputs and outputs are rounded to int8; None where they are not."""

    input: float | None = None
    output: float | None = None
