"""Only the family knows its model: code elsewhere names none of its modules, tensors or architectures."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

PACKAGES = ("gemma_edge", "toolkit", "converters", "device_harness")
KNOWS = ("converters/gemma3n/", "converters/families.py")
"""Gemma 3n itself, and the tuple with it."""
MODULES = re.compile(r"converters\.gemma3n\b")
ARCHITECTURES = re.compile(r"Gemma3nFor\w+|gemma3n_(text|vision|audio)")
TENSORS = re.compile(
    r"(embed_tokens|lm_head|self_attn|mlp|altup|laurel|per_layer_\w+|\w+_tower|embed_(vision|audio)|\w*norm)"
    r"[\w.*]*\.(weight|bias|gamma)"
)


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if not str(path.relative_to(REPOSITORY)).startswith(KNOWS):
                yield path


def words(path: Path) -> Iterator[str]:
    """Modules that are imported, and texts that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


@pytest.mark.parametrize("pattern", [MODULES, ARCHITECTURES, TENSORS], ids=["modules", "architectures", "tensors"])
def test_no_code_outside_a_family_names_what_is_its_own(pattern: re.Pattern[str]) -> None:
    found = {
        str(path.relative_to(REPOSITORY)): word for path in sources() for word in words(path) if pattern.search(word)
    }
    assert found == {}


def test_the_patterns_find_what_they_are_for() -> None:
    family = [word for path in (REPOSITORY / "converters/gemma3n").rglob("*.py") for word in words(path)]
    assert all(any(pattern.search(word) for word in family) for pattern in (MODULES, ARCHITECTURES, TENSORS))
