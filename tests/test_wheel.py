"""What is installed from a wheel: the packages with their data, and the built-in model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from waiting import PATIENCE_S

from gemma_edge.examples import BUILT_IN, built_in_checkpoint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Files of the examples that no verb reads: they trained the models, or judge them.
TRAINING = {"README.md", "curve.svg", "eval.txt", "perplexity.svg", "stories.json", "topics.txt"}


def test_the_wheel_takes_along_every_file_of_the_built_in_checkpoints() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    included: dict[str, str] = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    used = {
        path
        for folder in map(built_in_checkpoint, BUILT_IN)
        for path in folder.iterdir()
        if path.suffix != ".py" and not path.name.startswith("__") and path.name not in TRAINING
    }
    assert {REPOSITORY / source for source in included} == used
    assert all(target == f"gemma_edge/{source}" for source, target in included.items())


@pytest.mark.parametrize("repository", ["", "https://example.org/us/gemma-edge"])
def test_the_description_has_no_link_that_leads_nowhere(tmp_path: Path, repository: str) -> None:
    """As the wheel's METADATA has it, which pages such as PyPI's show."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "toolkit/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace('repository = ""', f'repository = "{repository}"'), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    metadata = json.loads(done.stdout)
    text = metadata["readme"]["text"]
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)
    assert bool(metadata.get("urls")) == bool(repository) == ("raw" in text)
    for target in targets:
        kind, _, path = target.removeprefix(f"{repository}/").partition("/")
        if repository and target.startswith(repository):
            assert kind == ("raw" if path.endswith(".svg") else "blob")
            assert (REPOSITORY / path.split("#")[0].partition("/")[2]).exists()
    assert text.startswith("# gemma-edge\n") and "](docs" not in text


def test_every_extra_that_a_text_names_exists() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    sources = [
        path
        for root in ("gemma_edge", "toolkit", "converters", "device_harness")
        for path in (REPOSITORY / root).rglob("*.py")
    ]
    documents = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    named = {
        extra
        for path in (*sources, *documents)
        for extras in re.findall(r"gemma-edge\[([a-z,]+)\]", path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert named
    assert named <= set(settings["project"]["optional-dependencies"])


@pytest.mark.full
def test_the_demos_of_an_installed_wheel_run_in_any_folder(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for words in (
        ["hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        [
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            "--find-links",
            str(tmp_path),
            "gemma-edge",
        ],
    ):
        subprocess.run([sys.executable, "-m", *words], cwd=REPOSITORY, check=True, timeout=PATIENCE_S)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for model, folder in BUILT_IN.items():
        done = subprocess.run(
            [site / "bin" / "gemma-edge", "demo", "--model", model],
            cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
            timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"1. {site / 'gemma_edge' / 'examples' / folder}: " in done.stdout
        assert done.stdout.endswith("all steps passed\n")
    assert not list(elsewhere.iterdir())
