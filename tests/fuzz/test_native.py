"""The C programs under the compiler's sanitizers, on mutants of what they read and are told."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from fuzz.mutate import mutants
from fuzz.native_targets import NATIVE_TARGETS, NativeTarget
from fuzz.target import REPOSITORY
from fuzz.targets import target

SOURCES = REPOSITORY / "device_harness" / "programs" / "native"
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "PATH": "/usr/bin:/bin"}
"""The programs leave their memory to the system when they end."""

pytestmark = [pytest.mark.full, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")]


def built(name: str, folder: Path) -> Path:
    program = folder / name
    subprocess.run(["gcc", *SANITIZED, "-o", str(program), str(SOURCES / f"{name}.c"), "-lm"], check=True)
    return program


def require_refusal_or_result(words: Sequence[str], data: bytes = b"") -> None:
    done = subprocess.run(words, input=data, capture_output=True, timeout=PATIENCE_S, check=False, env=ENVIRONMENT)
    assert done.returncode in (0, 1, 2, 3), (words, done)
    assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, (words, done)


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
@pytest.mark.parametrize("native", NATIVE_TARGETS, ids=lambda native: str(native.name))
def test_the_harnesses_read_their_seeds_and_what_was_found_once(native: NativeTarget, tmp_path: Path) -> None:
    files = sorted(native.kept.glob("*"))
    for i, seed in enumerate(native.seeds()):
        files.append(tmp_path / f"seed-{i}")
        files[-1].write_bytes(seed)
    command = [str(native.build(tmp_path)), "-detect_leaks=0", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.count("Executed ") == len(files), done.stderr


def test_the_flash_probe_reads_or_refuses_mutants_of_shards(tmp_path: Path) -> None:
    program, shard = built("flash_probe", tmp_path), tmp_path / "ple_00000.bin"
    for data in mutants(target("shard").seeds(), 300):
        shard.write_bytes(data)
        require_refusal_or_result([str(program), "--reads", "2", "--batches", "1", "--batch", "2", str(shard)])


def test_the_flash_probe_reads_or_refuses_mutants_of_its_arguments(tmp_path: Path) -> None:
    program = built("flash_probe", tmp_path)
    for data in mutants([b"--reads 2", b"--batch 2", b"--seed 1", b"--state cold", b"--tokens x", b"--drop x"], 300):
        words = [word.decode("utf-8", "surrogateescape") for word in data.replace(b"\0", b"").split()]
        require_refusal_or_result([str(program), *words])


def test_the_receiver_stores_or_refuses_whatever_comes(tmp_path: Path) -> None:
    program = built("push_receiver", tmp_path)
    seeds = [b"store a 4096 0 2 100", b"hash a 4096 0 2 100", b"copy a 4096 0 2 100 b"]
    for i, data in enumerate(mutants(seeds, 300)):
        words = [
            word.decode("utf-8", "surrogateescape") for word in data.replace(b"\0", b"").replace(b"/", b"_").split()
        ]
        done = subprocess.run(
            [str(program), *words],
            input=bytes(i * 37),
            capture_output=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
        assert done.returncode in (0, 1, 2), (words, done)
        assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, (words, done)
