"""Whatever a path given to a verb is, reading it ends: with one error, in bounded time and memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapter_files import noise, write_adapter
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from output_work import prepare
from paths import EXAMPLE
from tflite_mutants import Outcome, in_child

from benchmarks.synthetic_assistant import write_assistant
from converters.calibration.media import read_calibration_media
from converters.calibration.text import read_calibration_text
from converters.families import open_assistant
from gemma_edge.cli import main
from toolkit.bundle.lock import dump_lock, read_lock
from toolkit.bundle.manifest import CheckpointRecord

INPUT = "@"
SMALL = ("--context", "32", "--no-verify")
VERBS: dict[str, list[str]] = {
    "convert": ["convert", INPUT, "-o", "o", *SMALL],
    "convert --quant": ["convert", "checkpoint", "-o", "o", *SMALL, "--quant", INPUT],
    "convert --slice": ["convert", "checkpoint", "-o", "o", *SMALL, "--slice", INPUT],
    "convert --calibrate": ["convert", "checkpoint", "-o", "o", *SMALL, "--calibrate", INPUT],
    "convert --calibrate-media": ["convert", "with towers", "-o", "o", *SMALL, "--calibrate-media", INPUT],
    "convert --adapter": ["convert", "checkpoint", "-o", "o", *SMALL, "--adapter", INPUT],
    "convert --drafter": ["convert", "checkpoint", "-o", "o", *SMALL, "--drafter", INPUT],
    "export": ["export", INPUT, "-o", "o.litertlm"],
    "export --sign": ["export", "bundle", "-o", "o.litertlm", "--sign", INPUT],
    "check": ["check", INPUT],
    "check --trust": ["check", "bundle", "--trust", INPUT],
    "inspect": ["inspect", INPUT],
    "run": ["run", INPUT, "-p", "x"],
    "run --file": ["run", "bundle", "--raw", "-n", "2", "-f", INPUT],
    "run --image": ["run", "multimodal", "-p", "x", "-n", "2", "--image", INPUT],
    "run --audio": ["run", "multimodal", "-p", "x", "-n", "2", "--audio", INPUT],
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
    "rebuild --adapter": ["rebuild", "bundle", "--checkpoint", "checkpoint", "-o", "o", "--adapter", INPUT],
    "rebuild --calibrate": ["rebuild", "calibrated", "--checkpoint", "checkpoint", "-o", "o", "--calibrate", INPUT],
    "rebuild --calibrate-media": [
        *("rebuild", "media calibrated", "--checkpoint", "with towers", "-o", "o", "--calibrate-media", INPUT)
    ],
    "rebuild --drafter": ["rebuild", "drafting", "--checkpoint", "checkpoint", "-o", "o", "--drafter", INPUT],
    "demo": ["demo", "--checkpoint", INPUT, "-o", "o"],
}
GOOD = {
    "convert": "checkpoint",
    "convert --quant": "own recipe.json",
    "convert --slice": "checkpoint/matformer.json",
    "convert --calibrate": "text",
    "convert --calibrate-media": "media",
    "convert --adapter": "tuned",
    "convert --drafter": "assistant",
    "export": "bundle",
    "export --sign": "own key.pem",
    "check": "bundle",
    "check --trust": "own public.pem",
    "inspect": "bundle",
    "run": "bundle",
    "run --file": "question",
    "run --image": "media/picture.png",
    "run --audio": str(EXAMPLE / "samples" / "yes.wav"),
    "verify": "checkpoint",
    "verify --text": "text",
    "bench": "bundle",
    "probe": "bundle",
    "probe --tokens": "tokens",
    "report": "results.jsonl",
    "compare": "second.jsonl",
    "results": "results.jsonl",
    "rebuild": "bundle",
    "rebuild --checkpoint": "checkpoint",
    "rebuild --adapter": "tuned",
    "rebuild --calibrate": "text",
    "rebuild --calibrate-media": "media",
    "rebuild --drafter": "assistant",
    "demo": "checkpoint",
}
"""An input of each verb that it can read, which shows that it reads them."""
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
def work(
    tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path, random_bundle: Path, multimodal_bundle: Path
) -> Path:
    """A folder with special files, checkpoints, bundles and results."""
    folder = prepare(tmp_path_factory.mktemp("special") / "work", random_checkpoint, random_bundle)
    write_good(folder)
    shutil.copytree(multimodal_bundle, folder / "multimodal")
    shutil.copytree(multimodal_bundle.parent / "checkpoint", folder / "with towers")
    media, text = read_calibration_media(folder / "media"), read_calibration_text(folder / "text")
    with closing(open_assistant(folder / "assistant")) as opened:
        assistant = CheckpointRecord(opened.name, opened.fingerprint())
    locked_copy(folder / "bundle", folder / "calibrated", calibration=text.sha256)
    locked_copy(folder / "bundle", folder / "drafting", draft_tokens=3, assistant=assistant)
    locked_copy(folder / "multimodal", folder / "media calibrated", calibration_media=media.record)
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


def write_good(folder: Path) -> None:
    """Write the files of `GOOD` that `prepare` does not."""
    recipe = {"format": "gemma-edge-recipe/1", "name": "own", "base": "int8", "rules": []}
    (folder / "own recipe.json").write_text(json.dumps(recipe))
    key = Ed25519PrivateKey.generate()
    (folder / "own key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    (folder / "own public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (folder / "question").write_text("the cat")
    (folder / "tokens").write_text("5 6 7 5 6 7")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"lora_A": (2, 32), "lora_B": (32, 2)}
    write_adapter(folder / "tuned", {f"{module}.{part}.weight": noise(*shape) for part, shape in shapes.items()})
    write_assistant(folder / "assistant", "tiny")


def locked_copy(bundle: Path, copy: Path, **changes: Any) -> None:
    """A copy of a bundle whose lock says something else, so that what it names is read to make it again."""
    shutil.copytree(bundle, copy)
    (copy / "lock.json").write_bytes(dump_lock(replace(read_lock(bundle), **changes)))


def fault(words: list[str], work: Path) -> str | None:
    """What is wrong with how a command ends, and with what it leaves; None if nothing is."""
    outcome, left = ended(words, work)
    return outcome.lost or (f"it leaves {left}" if outcome.code and left else None)


def ended(words: list[str], work: Path) -> tuple[Outcome, set[str]]:
    """How a command ends, and the names of what it leaves, which is removed."""
    before = set(os.listdir(work))

    def run() -> int:
        os.chdir(work)
        os.environ["GEMMA_EDGE_CACHE"] = str(work / "cache")
        signal.alarm(PATIENCE_S)
        return main([*words, "--no-progress"])

    outcome, left = in_child(run), set(os.listdir(work)) - before - {"cache"}
    for name in left:
        shutil.rmtree(work / name) if (work / name).is_dir() else (work / name).unlink()
    return outcome, left


def given(name: str, path: str) -> list[str]:
    """The words of a verb with an input."""
    return [path if word == INPUT else word for word in VERBS[name]]


def test_each_verb_has_a_good_input() -> None:
    assert GOOD.keys() == VERBS.keys()


@pytest.mark.full
@pytest.mark.parametrize("name", VERBS)
def test_a_good_input_has_another_outcome(name: str, work: Path) -> None:
    good, bad = (ended(given(name, path), work)[0] for path in (GOOD[name], "empty"))
    assert not good.signal and good.code in (0, 1, 2, 3) and "a bug in gemma-edge" not in good.errors, good
    told = [
        (outcome.code, outcome.errors.replace(path, INPUT)) for outcome, path in ((good, GOOD[name]), (bad, "empty"))
    ]
    assert told[0] != told[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert --calibrate", "convert --adapter", "probe --tokens"])
def test_what_once_waited_for_a_pipe_or_ended_in_a_fault_of_its_own_is_one_error(name: str, work: Path) -> None:
    for path in ("pipe", "zeros", "x" * 300):
        assert fault(given(name, path), work) is None


@pytest.mark.full
@pytest.mark.parametrize("name", VERBS)
def test_no_input_of_a_verb_makes_it_wait_or_fill_the_memory(name: str, work: Path) -> None:
    for path in INPUTS:
        assert fault(given(name, path), work) is None, path
