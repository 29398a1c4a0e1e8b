"""Parameter groups as commands take them: by the manifest's names, and `ple` for the longest of them."""

from __future__ import annotations

from toolkit.base.errors import UsageError

_SHORT_NAMES = {"ple": "per_layer_embedding"}


def group_names(text: str) -> tuple[str, ...]:
    """Names with commas between, each once, spelled as in the manifest.

    >>> group_names("text, ple")
    ('text', 'per_layer_embedding')
    """
    names = tuple(_SHORT_NAMES.get(name.strip(), name.strip()) for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(found=repr(text), wanted="names with commas between, each once")
    return names
