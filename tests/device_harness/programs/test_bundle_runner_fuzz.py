"""Damaged commands and manifests end in errors; the program is built with sanitizers, which find anything else."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_runner import litert_path
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.programs.bundle_runner import sources

COMMANDS = (
    {"do": "prefill", "ids": [2, 3, 4]},
    {"do": "prefill", "ids": [2, 3000, 3300], "media": [{"key": "a", "at": -1}]},
    {"do": "decode", "ids": [5], "logits": False},
    {"do": "decode", "random": 2},
    {
        "do": "generate",
        "ids": [2, 7],
        "limit": 3,
        "temperature": 1.5,
        "top_k": 40,
        "top_p": 0.9,
        "seed": 3,
        "stop": [1],
    },
    {"do": "truncate", "position": 1},
    {"do": "size", "name": "small"},
    {"do": "image", "key": "a", "bytes": 12},
    {"do": "sound", "key": "b", "bytes": 4, "frames": 1},
    {"do": "forget", "key": "a"},
    {"do": "stats"},
    {"do": "open", "bundle": "/x", "threads": 2, "weight_cache": {"folder": "/x", "runtime": "1"}},
    {"do": "open", "bundle": "/x", "backend": "gpu", "activations": "fp16"},
)
INSERTED = (b"", b'"', b"{", b"]", b"9" * 17, b"-1", b"null", b"1e9", b"\\ud800", b"\xc3")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built with gcc's sanitizers."""
    path = tmp_path_factory.mktemp("sanitized") / "bundle_runner"
    words = ("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    subprocess.run([gcc, *words, *map(str, sources()), "-o", str(path), "-lm", "-ldl"], check=True)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzzed") / "bundle"
    convert(ConvertRequest(EXAMPLE, path, sizes=("large", "small"), context=64, prefill_sizes=(16,)), gate=None)
    return path


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, removed, repeated, or replaced by what JSON's grammar gives meaning to."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(changed)) if changed else 0
        end = min(len(changed), at + chance.choice((1, 1, 2, 9)))
        inserted = (*INSERTED, bytes([chance.randrange(256)]), bytes(changed[at:end]) * 3)
        changed[at:end] = chance.choice(inserted)
    return bytes(changed).replace(b"\n", b" ")


def run(program: Path, lines: Iterator[bytes] | list[bytes]) -> list[dict[str, object]]:
    """The answers to these lines; fails for a sanitizer's report, and for an end that is not one of the protocol's."""
    done = subprocess.run(
        [program, litert_path()], input=b"\n".join(lines) + b"\n", capture_output=True, timeout=1200,
        env={"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"},
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stderr[-3000:].decode(errors="replace")
    assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr
    answers, rest = [], done.stdout
    while rest:
        line, _, rest = rest.removeprefix(b"\n").partition(b"\n")
        answers.append(json.loads(line))
        count = answers[-1].get("bytes", 0)
        rest = rest[count if isinstance(count, int) else 0 :]
    return answers


def fuzz_commands(program: Path, bundle: Path, seeds: range, count: int) -> None:
    opening = json.dumps({"do": "open", "bundle": str(bundle), "threads": 1}).encode()
    for seed in seeds:
        chance = random.Random(seed)
        lines = [opening]
        for _ in range(count):
            words = json.dumps(chance.choice(COMMANDS)).encode()
            payload = b"\1" * 12 if b"image" in words else b"\1" * 4 if b"sound" in words else b""
            lines.append(
                (damaged(words, chance) if chance.random() < 0.7 else words) + (b"\n" + payload if payload else b"")
            )
        answers = run(program, lines)
        assert {"ok", "error"} <= {key for answer in answers for key in answer} and len(answers) > 3


def fuzz_manifests(program: Path, bundle: Path, folder: Path, seed: int, count: int) -> None:
    chance, data, lines = random.Random(seed), (bundle / "manifest.json").read_bytes(), []
    for index in range(count):
        place = folder / str(index)
        place.mkdir()
        parts = data.split(b"\n")
        at = chance.randrange(len(parts))
        parts[at] = damaged(parts[at], chance) if parts[at] else b"x"
        (place / "manifest.json").write_bytes(b"\n".join(parts))
        lines.append(json.dumps({"do": "open", "bundle": str(place)}).encode())
    answers = run(program, lines)
    assert len(answers) == count + 1 and all("error" in answer for answer in answers[1:])


@pytest.mark.slow
def test_damaged_commands_and_manifests_give_errors(program: Path, bundle: Path, tmp_path: Path) -> None:
    fuzz_commands(program, bundle, range(2), 60)
    fuzz_manifests(program, bundle, tmp_path, 0, 100)


@pytest.mark.full
def test_many_damaged_commands_and_manifests_give_errors(program: Path, bundle: Path, tmp_path: Path) -> None:
    fuzz_commands(program, bundle, range(100, 130), 300)
    fuzz_manifests(program, bundle, tmp_path, 1, 3000)
