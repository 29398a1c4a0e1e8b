"""Pages in a real browser: WCAG AA by axe-core in light and dark, at 1,400 and 400 pixels, and nothing is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from paths import REPOSITORY
from result_records import RECORDS

import gemma_edge
from toolkit.report.page import render_page
from toolkit.report.results_page import results_page
from toolkit.runtime.session import SessionSettings

pytestmark = pytest.mark.full

_JUDGE = REPOSITORY / "tests" / "support" / "judge_page.cjs"


def judge(page: bytes, folder: Path) -> list[dict[str, Any]]:
    """What the browser finds, for each colour scheme and width; skips without Chromium, node or the two packages."""
    browser, node = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("node")
    if browser is None or node is None:
        pytest.skip("needs chromium and node")
    path = folder / "page.html"
    path.write_bytes(page)
    command = [node, str(_JUDGE), browser, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if "MODULE_NOT_FOUND" in done.stderr:
        pytest.skip("needs npm install --no-save axe-core playwright-core")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def require_accessible(page: bytes, folder: Path) -> None:
    found = judge(page, folder)
    assert [(one["colorScheme"], one["width"]) for one in found] == [
        ("light", 1400),
        ("light", 400),
        ("dark", 1400),
        ("dark", 400),
    ]
    for one in found:
        assert one["violations"] == [], one
        assert one["wider"] == 0 and one["requests"] == [] and one["smallest"] >= 11, one


def test_a_page_of_results_is_accessible(tmp_path: Path) -> None:
    require_accessible(render_page(results_page(RECORDS)), tmp_path)


def test_a_page_of_a_conversion_is_accessible(random_checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "conversion.html"
    settings = SessionSettings(threads=1, weight_cache="memory")
    gemma_edge.convert(
        random_checkpoint, tmp_path / "b", quant="f32", context=64, prefill_sizes=[16], session=settings, report=page
    )
    require_accessible(page.read_bytes(), tmp_path)


def test_too_little_contrast_would_be_found_in_each_scheme(tmp_path: Path) -> None:
    page = render_page(results_page(RECORDS[:1])).replace(b"--soft: #565b62", b"--soft: #aab0b8")
    light, _, dark, _ = judge(page, tmp_path)
    assert any(text.startswith("color-contrast") for text in light["violations"])
    assert dark["violations"] == []
