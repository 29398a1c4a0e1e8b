"""Refuses options that have no effect beside the others that were given."""

from __future__ import annotations

from toolkit.base.errors import UsageError


def refuse_unused(option: str, is_unused: object, beside: str) -> None:
    """UsageError if an option was given where it has no effect; `beside`: why it has none, as in `without --json`."""
    if is_unused:
        raise UsageError(option, found=f"it has no effect {beside}", remedy="leave it out")
