"""A folder with what every verb reads and what every verb has written, to name as outputs, or to interrupt."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from paths import FIXTURES
from PIL import Image

import gemma_edge
from toolkit.report.plots import StackedBars, plot_output, write_plot

OURS = ("bundle", "export.litertlm", "page.html", "plot.svg", "plot.png", "results.jsonl")
"""The kinds of output, by the names in the folder."""


@dataclass(frozen=True)
class Work:
    """The folder, with an empty folder `out` in it."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def prepare(folder: Path, checkpoint: Path, bundle: Path) -> Path:
    """Fill an empty folder."""
    shutil.copytree(checkpoint, folder / "checkpoint")
    shutil.copytree(bundle, folder / "bundle")
    gemma_edge.export(folder / "bundle", folder / "export.litertlm")
    lines = (FIXTURES / "results.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("results.jsonl", "second.jsonl"):
        (folder / name).write_bytes(lines[6])
    gemma_edge.report([folder / "results.jsonl"], folder / "page.html")
    for name in ("plot.svg", "plot.png"):
        write_plot(StackedBars("", "", []), plot_output(folder / name))
    (folder / "slice.json").write_text("{}")
    (folder / "recipe.json").write_text("{}")
    (folder / "key.pem").write_text("a key")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "text").write_text("A text to calibrate with. " * 40)
    (folder / "media").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "media" / "picture.png")
    (folder / "drafter").mkdir()
    (folder / "drafter" / "config.json").write_text("{}")
    return folder


def copy_of(prepared: Path, folder: Path) -> Work:
    """A copy to work in."""
    shutil.copytree(prepared, folder)
    (folder / "out").mkdir()
    return Work(folder)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything below a folder."""
    found: dict[str, tuple[int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        data = path.read_bytes() if stat.S_ISREG(mode) else os.readlink(path).encode() if stat.S_ISLNK(mode) else b""
        found[str(path.relative_to(folder))] = (mode, data)
    return found
