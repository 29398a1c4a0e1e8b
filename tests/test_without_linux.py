"""Our code without what Linux alone has, as on macOS (docs/platforms.md): a part of the tests, run once more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from without_linux_tests import LINUX_ONLY, MARKS, RUN

SUPPORT = REPOSITORY / "tests" / "support"


@pytest.mark.full
def test_the_tests_of_formats_runtime_and_checkpoints_pass(tmp_path: Path) -> None:
    words = [
        "-q",
        "-p",
        "without_linux",
        "-p",
        "no:cacheprovider",
        "-m",
        MARKS,
        "--basetemp",
        str(tmp_path),
    ]
    words += [f"--deselect={name}" for name in LINUX_ONLY]
    environment = {**os.environ, "WITHOUT_LINUX": "1", "PYTHONPATH": str(SUPPORT)}
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *RUN],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout[-4000:]


@pytest.mark.full
def test_the_demo_runs(tmp_path: Path) -> None:
    outcome = without_linux(["demo"], tmp_path)
    assert outcome.returncode == 0 and "7. exported large as one .litertlm" in outcome.stdout, outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["bench", "BUNDLE", "--host"], 3, "host: found no /proc: nothing is measured on this system"),
        (["emulator"], 3, "emulated device: found a system without splice(2), wanted Linux"),
        (["run", "BUNDLE", "the cat", "--raw", "-n", "2"], 0, "by kind and by group not measured on this system"),
    ],
)
def test_what_only_linux_tells_is_said_to_be_missing(
    words: list[str], code: int, said: str, random_bundle: Path, tmp_path: Path
) -> None:
    outcome = without_linux([str(random_bundle) if word == "BUNDLE" else word for word in words], tmp_path)
    assert outcome.returncode == code and said in outcome.stderr and "Traceback" not in outcome.stderr


def without_linux(words: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Run our command in a process that has none of what Linux alone has."""
    start = os.pathsep.join([str(SUPPORT / "without_linux_start"), str(REPOSITORY)])
    environment = {**os.environ, "WITHOUT_LINUX": "1", "PYTHONPATH": start, "GEMMA_EDGE_CACHE": str(cache)}
    command = [sys.executable, "-m", "gemma_edge", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
