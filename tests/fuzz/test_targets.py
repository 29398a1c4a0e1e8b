"""What reads strangers' bytes raises a ToolkitError or nothing, for every mutant; `python -m fuzz` looks deeper."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

from fuzz.mutate import mutants
from fuzz.native_targets import NATIVE_TARGETS
from fuzz.target import CORPUS, Target
from fuzz.targets import TARGETS

FEW: dict[str, int] = {"template": 15, "tflite": 100, "litertlm": 200, "shard": 200, "adapter": 300, "manifest": 400}
"""Slow ones; of the others 1,000."""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))
def test_seeds_are_valid_and_mutants_are_read_or_refused(target: Target) -> None:
    for seed in target.seeds():
        target.read(seed)
    for data in mutants(target.seeds(), FEW.get(target.name, 1000)):
        target.run(data)


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))
def test_many_mutants_are_read_or_refused(target: Target) -> None:
    for data in mutants(target.seeds(), 25 * FEW.get(target.name, 1000), seed=1):
        target.run(data)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))
def test_what_was_found_once_stays_mended(target: Target) -> None:
    for path in sorted((CORPUS / target.name).glob("*")):
        target.run(path.read_bytes())


def test_every_parser_of_a_device_s_output_belongs_to_a_target() -> None:
    targets = (REPOSITORY / "fuzz" / "targets.py").read_text(encoding="utf-8")
    sources = (path.read_text(encoding="utf-8") for path in (REPOSITORY / "device_harness/parsers").glob("*.py"))
    parsers = {name for source in sources for name in re.findall(r"^def (parse_\w+)", source, re.MULTILINE)}
    assert len(parsers) > 15 and {name for name in parsers if not re.search(rf"\b{name}\b", targets)} == set()


def test_the_document_has_a_row_for_each_target_with_its_number_of_mutants() -> None:
    page = (REPOSITORY / "docs" / "fuzzing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w-]+) \| .* \| ([\d,]*) \| [^|]* \| \d+ \|$", page, re.MULTILINE))
    wanted = {target.name: f"{FEW.get(target.name, 1000):,}" for target in TARGETS}
    assert rows == wanted | {native.name: "" for native in NATIVE_TARGETS}
    assert {folder.name for folder in CORPUS.iterdir()} <= rows.keys(), "what was found is read by its target's name"


def test_mutants_are_the_same_every_time_and_differ_from_their_seed() -> None:
    first, second = (list(mutants([b"seed of some length"], 50)) for _ in range(2))
    assert first == second and len(set(first)) > 40
    assert CORPUS.parent.is_dir()


def test_a_process_removes_its_files_at_its_end() -> None:
    code = "from fuzz.target import scratch; (scratch() / 'file').touch(); print(scratch())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    assert path.name.startswith("gemma-edge-fuzz-") and not path.exists()
