"""A disk that is full at any write: one error that names the output, the old one stays whole, and nothing is left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from output_work import Work, contents, copy_of, prepare

from gemma_edge.cli import main


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A file system of this size at an empty folder; a skip where mounting is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


VERBS: dict[str, tuple[str, Callable[[Work, Path], list[str]]]] = {
    "convert": ("bundle", lambda w, o: ["convert", str(w / "checkpoint"), "-o", str(o), "--no-verify",
                                        "--context", "32"]),
    "export": ("export.litertlm", lambda w, o: ["export", str(w / "bundle"), "-o", str(o), "--size", "small"]),
    "report": ("page.html", lambda w, o: ["report", str(w / "second.jsonl"), "-o", str(o)]),
    "inspect": ("plot.svg", lambda w, o: ["inspect", str(w / "checkpoint"), "--plot", str(o)]),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path, random_bundle: Path) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "work", random_checkpoint, random_bundle)


PAGE = 4096


def sizes_of(path: Path) -> int:
    """The room that a file, or all files of a folder, take on a disk: whole pages."""
    files = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("name", [v if v == "export" else pytest.param(v, marks=pytest.mark.full) for v in VERBS])
def test_a_full_disk_is_one_error_and_the_old_output_stays(
    name: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replaced_on_small_disks(name, prepared, tmp_path, capsys, (0.02, 0.3, 0.6, 0.9, 1.2))


@pytest.mark.full
@pytest.mark.parametrize("name", VERBS)
def test_a_disk_that_is_full_at_any_page_is_one_error_and_the_old_output_stays(
    name: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room for each number of pages, so that each single write is the one that fails, or a page of it."""
    pages = sizes_of(prepared / VERBS[name][0]) // PAGE + 2
    parts = [number / pages for number in range(pages)]
    assert replaced_on_small_disks(name, prepared, tmp_path, capsys, parts) >= 0.5 * pages


def replaced_on_small_disks(
    name: str, prepared: Path, folder: Path, capsys: pytest.CaptureFixture[str], parts: Iterable[float]
) -> int:
    """Run the verb with room for so many parts of its old output beside that; return how often the disk was full."""
    kind, arguments = VERBS[name]
    work = copy_of(prepared, folder / "work")
    old, out = work / kind, work / "out"
    needed, failed = sizes_of(old), 0
    for part in parts:
        with small_disk(out, (int(needed * (1 + part)) // PAGE + 2) * PAGE):
            target = out / kind
            (shutil.copytree if old.is_dir() else shutil.copyfile)(old, target)
            before = contents(out)
            code = main(arguments(work, target))
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            if code == 0:
                assert not errors
                continue
            failed += 1
            assert code == 3 and len(errors) == 1 and str(out) in errors[0], errors
            assert contents(out) == before
    return failed
