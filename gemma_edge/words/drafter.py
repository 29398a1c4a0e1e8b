"""Text about a drafter."""

from __future__ import annotations

from gemma_edge.terminal import one_line
from toolkit.bundle.manifest import DrafterRecord


def drafter_text(drafter: DrafterRecord) -> str:
    """A line on how good a drafter is, or of which checkpoint."""
    if drafter.checkpoint is not None:
        return one_line(f"drafter of {drafter.checkpoint.name}, which reads {', '.join(drafter.caches)}")
    first = f"the first in {100 * drafter.acceptance[0]:.0f} % of {drafter.steps} steps"
    accepted = f"{drafter.accepted:.2f} of {len(drafter.acceptance)} drafts accepted in a step, {first}"
    return one_line(f"drafter of size {drafter.size}: {accepted}")
