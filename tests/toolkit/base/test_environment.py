"""What a process computes with, where a library has another name than usual."""

from __future__ import annotations

import importlib.metadata

import pytest

from toolkit.base.environment import libraries


def test_a_library_under_another_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as pillow-simd, which is the module PIL too."""
    version = importlib.metadata.version

    def without_pillow(name: str) -> str:
        if name == "pillow":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    usual = libraries()
    monkeypatch.setattr(importlib.metadata, "version", without_pillow)
    assert libraries() == {**usual, "pillow": "unknown"}
