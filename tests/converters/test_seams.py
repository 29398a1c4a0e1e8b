"""Only a family knows its model: code elsewhere names none of its modules, tensors or architectures."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import REPOSITORY

PACKAGES = ("gemma_edge", "toolkit", "converters", "device_harness")


@dataclass(frozen=True)
class Knowledge:
    """Words that belong to some folders, and to the tuple of families."""

    words: re.Pattern[str]
    folders: tuple[str, ...]

    def may_be_in(self, path: Path) -> bool:
        return str(path.relative_to(REPOSITORY)).startswith((*self.folders, "converters/families.py"))


KNOWLEDGE = {
    "gemma3n": Knowledge(
        re.compile(r"converters\.gemma3n\b|Gemma3nFor\w+|gemma3n_(text|vision|audio)"), ("converters/gemma3n/",)
    ),
    "gemma4": Knowledge(
        re.compile(r"converters\.gemma4\b|Gemma4(Assistant)?For\w+|gemma4_(text|vision|audio|assistant)"),
        ("converters/gemma4/",),
    ),
    "tensors": Knowledge(
        re.compile(
            r"(embed_tokens|lm_head|self_attn|mlp|altup|laurel|per_layer_\w+|\w+_tower|embed_(vision|audio)|\w*norm)"
            r"[\w.*]*\.(weight|bias|gamma)"
        ),
        ("converters/gemma/", "converters/gemma3n/", "converters/gemma4/"),
    ),
}
"""What both families share, converters/gemma, names their tensors, but neither of them."""


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((REPOSITORY / package).rglob("*.py"))


@functools.cache
def words(path: Path) -> list[str]:
    """Modules that are imported, and texts that are no docstrings."""
    return list(_words(path))


def _words(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


@pytest.mark.slow
@pytest.mark.parametrize("knowledge", KNOWLEDGE.values(), ids=KNOWLEDGE)
def test_no_code_outside_a_family_names_what_is_its_own(knowledge: Knowledge) -> None:
    found = {
        str(path.relative_to(REPOSITORY)): word
        for path in sources()
        if not knowledge.may_be_in(path)
        for word in words(path)
        if knowledge.words.search(word)
    }
    assert found == {}


@pytest.mark.parametrize("knowledge", KNOWLEDGE.values(), ids=KNOWLEDGE)
def test_the_patterns_find_what_they_are_for(knowledge: Knowledge) -> None:
    for folder in knowledge.folders:
        family = [word for path in (REPOSITORY / folder).rglob("*.py") for word in words(path)]
        assert any(knowledge.words.search(word) for word in family), folder
