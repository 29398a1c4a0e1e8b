"""Regular expressions from untrusted configs, which may take endless time: they are tried in a child process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from toolkit.base.errors import CheckpointError, errors_about
from toolkit.base.limited import Limits, limited
from toolkit.base.strict_json import shorten

_LIMITS = Limits(seconds=10, output_bytes=8 << 20)


def compiled(pattern: str, key: str, file: str | None) -> re.Pattern[str]:
    """Compile an expression; CheckpointError, which names the config's key, if it is not a regular expression."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        wanted = "a regular expression"
        raise CheckpointError(key, file=file, found=f"{shorten(pattern)} ({error})", wanted=wanted) from error


def first_matches(patterns: Sequence[str], names: Iterable[str], key: str, file: str | None) -> Mapping[str, int]:
    """For each name, the index of the first pattern that matches all of it; names that no pattern matches are absent.

    CheckpointError for a pattern that is not a regular expression; BundleError if they take more than ten seconds.
    """

    def find() -> dict[str, int]:
        expressions = [compiled(pattern, key, file) for pattern in patterns]
        tried = ((name, next((i for i, e in enumerate(expressions) if e.fullmatch(name)), -1)) for name in names)
        return {name: index for name, index in tried if index >= 0}

    if not patterns:
        return {}
    with errors_about(file=file):
        return limited(key, find, _LIMITS)
