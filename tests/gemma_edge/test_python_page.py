"""The examples of docs/python.md do what the page says."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gemma_edge

PAGE = Path(gemma_edge.__file__).parents[1] / "docs" / "python.md"


@pytest.mark.slow
def test_the_examples_of_the_page_run(
    multimodal_bundle: Path, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "e2b").symlink_to(multimodal_bundle)
    (tmp_path / "checkpoint").symlink_to(random_checkpoint)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA_EDGE_CACHE", str(tmp_path / "cache"))
    found = doctest.testfile(str(PAGE), module_relative=False, globs={})
    assert (found.failed, found.attempted > 20) == (0, True)


def test_the_page_names_every_function() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in gemma_edge.__all__ if name[0].islower() and f"`{name}(" not in text] == []
