"""Whatever a path given to a verb is, reading it ends: with one error, in bounded time and memory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from output_work import prepare
from tflite_mutants import in_child

from gemma_edge.cli import main

INPUT = "@"
VERBS: dict[str, list[str]] = {
    "convert": ["convert", INPUT, "-o", "o"],
    "convert --quant": ["convert", "checkpoint", "-o", "o", "--quant", INPUT],
    "convert --slice": ["convert", "checkpoint", "-o", "o", "--slice", INPUT],
    "convert --calibrate": ["convert", "checkpoint", "-o", "o", "--context", "32", "--no-verify", "--calibrate", INPUT],
    "convert --calibrate-media": ["convert", "checkpoint", "-o", "o", "--no-verify", "--calibrate-media", INPUT],
    "convert --adapter": ["convert", "checkpoint", "-o", "o", "--no-verify", "--adapter", INPUT],
    "export": ["export", INPUT, "-o", "o.litertlm"],
    "export --sign": ["export", "bundle", "-o", "o.litertlm", "--sign", INPUT],
    "check": ["check", INPUT],
    "check --trust": ["check", "bundle", "--trust", INPUT],
    "inspect": ["inspect", INPUT],
    "run": ["run", INPUT, "-p", "x"],
    "run --file": ["run", "bundle", "--raw", "-n", "2", "-f", INPUT],
    "run --image": ["run", "bundle", "--raw", "-p", "x", "-n", "2", "--image", INPUT],
    "run --audio": ["run", "bundle", "--raw", "-p", "x", "-n", "2", "--audio", INPUT],
    "verify": ["verify", "bundle", "--checkpoint", INPUT],
    "verify --text": ["verify", "bundle", "--checkpoint", "checkpoint", "--text", INPUT],
    "bench": ["bench", INPUT, "--host", "-p", "4", "-n", "2", "-r", "1"],
    "probe": ["probe", INPUT, "--host"],
    "probe --tokens": ["probe", "bundle", "--host", "--tokens", INPUT],
    "report": ["report", INPUT, "-o", "o.html"],
    "compare": ["compare", "results.jsonl", INPUT],
    "results": ["results", "export", INPUT, "-o", "o.csv"],
    "rebuild": ["rebuild", INPUT, "--checkpoint", "checkpoint", "-o", "o"],
    "rebuild --checkpoint": ["rebuild", "bundle", "--checkpoint", INPUT, "-o", "o"],
    "rebuild --calibrate": ["rebuild", "bundle", "--checkpoint", "checkpoint", "-o", "o", "--calibrate", INPUT],
    "rebuild --calibrate-media": [
        *("rebuild", "bundle", "--checkpoint", "checkpoint", "-o", "o", "--calibrate-media", INPUT)
    ],
    "demo": ["demo", "--checkpoint", INPUT, "-o", "o"],
}
PATIENCE_S = 300
INPUTS = (
    "pipe",
    "socket",
    "folder",
    "circle",
    "empty",
    "bytes",
    "zeros",
    "missing",
    "x" * 300,
    "/dev/zero",
    "/dev/null",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path, random_bundle: Path) -> Path:
    """A folder with special files, a checkpoint, a bundle and results."""
    folder = prepare(tmp_path_factory.mktemp("special") / "work", random_checkpoint, random_bundle)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / "socket"))
    (folder / "folder").mkdir()
    (folder / "circle").symlink_to("circle")
    (folder / "empty").touch()
    (folder / "bytes").write_bytes(bytes(range(128, 256)) * 40)
    with open(folder / "zeros", "wb") as file:
        file.truncate(3 << 30)
    return folder


def fault(words: list[str], work: Path) -> str | None:
    """What is wrong with how a command ends, and with what it leaves; None if nothing is."""
    before = set(os.listdir(work))

    def run() -> int:
        os.chdir(work)
        os.environ["GEMMA_EDGE_CACHE"] = str(work / "cache")
        signal.alarm(PATIENCE_S)
        return main([*words, "--no-progress"])

    outcome, left = in_child(run), set(os.listdir(work)) - before - {"cache"}
    for name in left:
        shutil.rmtree(work / name) if (work / name).is_dir() else (work / name).unlink()
    return outcome.lost or (f"it leaves {left}" if outcome.code and left else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert --calibrate", "convert --adapter", "probe --tokens"])
def test_what_once_waited_for_a_pipe_or_ended_in_a_fault_of_its_own_is_one_error(name: str, work: Path) -> None:
    for given in ("pipe", "zeros", "x" * 300):
        assert fault([given if word == INPUT else word for word in VERBS[name]], work) is None


@pytest.mark.full
@pytest.mark.parametrize("name", VERBS)
def test_no_input_of_a_verb_makes_it_wait_or_fill_the_memory(name: str, work: Path) -> None:
    for given in INPUTS:
        assert fault([given if word == INPUT else word for word in VERBS[name]], work) is None, given
