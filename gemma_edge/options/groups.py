"""Parameter groups on the command line: the manifest's names, and `ple` short for `per_layer_embedding`."""

from __future__ import annotations

from toolkit.base.errors import UsageError

_SHORT_NAMES = {"ple": "per_layer_embedding"}


def group_names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of groups, without repetition, into their names in the manifest.

    >>> group_names("text, ple")
    ('text', 'per_layer_embedding')
    """
    names = tuple(_SHORT_NAMES.get(name.strip(), name.strip()) for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(found=repr(text), wanted="names separated by commas, each once")
    return names
