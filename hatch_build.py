"""What hatchling makes of README.md for the package's page, where links to files of the repository lead nowhere.

`repository` in pyproject.toml (`tool.hatch.metadata.hooks.custom`) is the project's address. With it, these links lead
to the files at the version's tag, and the metadata have the URL; without it, the text stands alone and pictures go.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)\n?")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Sets `readme`, and `urls` where there is an address."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = str(self.config.get("repository", "")).rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        place = f"{repository}/{{kind}}/v{metadata['version']}" if repository else ""
        metadata["readme"] = {"content-type": "text/markdown", "text": long_description(text, place)}
        metadata["urls"] = urls(repository) if repository else {}


def long_description(text: str, place: str) -> str:
    """A README whose links do not depend on where it lies.

    `place`: the address of the repository's files, `{kind}` being `raw` for pictures and `blob` for the others. Empty:
    there is none, so a link is its text, and a picture is left out.

    >>> long_description("[a](docs/a.md#b), [c](https://c), [d](#d)", "https://example.org/{kind}/v1")
    '[a](https://example.org/blob/v1/docs/a.md#b), [c](https://c), [d](#d)'
    >>> long_description("![a](docs/a.svg)\\n[b](docs/b.md) and [c](https://c)", "")
    'b and [c](https://c)'
    """

    def image(match: re.Match[str]) -> str:
        if not _is_relative(match[2]):
            return match[0]
        return match[0].replace(match[2], f"{place.format(kind='raw')}/{match[2]}") if place else ""

    def link(match: re.Match[str]) -> str:
        if not _is_relative(match[2]):
            return match[0]
        return f"[{match[1]}]({place.format(kind='blob')}/{match[2]})" if place else match[1]

    return _LINK.sub(link, _IMAGE.sub(image, text))


def urls(repository: str) -> dict[str, str]:
    """The addresses that the package's page shows beside the text."""
    return {
        "Repository": repository,
        "Documentation": f"{repository}/blob/HEAD/docs/start.md",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def _is_relative(target: str) -> bool:
    return not re.match(r"[a-z][a-z0-9+.-]*:|#|/", target)
