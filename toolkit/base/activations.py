"""What a GPU computes with; a CPU always uses float32."""

from __future__ import annotations

from typing import Literal, get_args

from toolkit.base.errors import UsageError

Activations = Literal["fp16", "fp32"]
ACTIVATIONS: tuple[Activations, ...] = get_args(Activations)


def require_activations(name: str) -> None:
    """UsageError for another name than those of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise UsageError("activations", found=name, wanted=" or ".join(ACTIVATIONS))
