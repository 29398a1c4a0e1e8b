"""The program bundle_runner as a process of this machine, and the libraries that it can load."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import PATIENCE_S

from device_harness.programs.build import parse_architecture
from device_harness.programs.bundle_runner import bundle_runner
from toolkit.base.errors import EnvironmentFault


def runner_path() -> Path:
    """The program for this machine; skips the test without a compiler."""
    try:
        return bundle_runner("linux", parse_architecture(os.uname().machine, "host")).path
    except EnvironmentFault as error:
        pytest.skip(str(error))


def library_path(package: str, name: str) -> Path:
    """A shared library of an installed package; skips the test without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / name


def litert_path() -> Path:
    return library_path("ai_edge_litert", "libLiteRt.so")


class NativeRunner:
    """The program, with a method for a command and its answer."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._code: int | None = None
        self.start = self.line()

    def __enter__(self) -> NativeRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        is_ended, code = self._code is not None, self.end()
        assert error is not None or is_ended or code == 0, f"the program has ended with {code}"

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def line(self) -> dict[str, object]:
        """The next answer; an empty line precedes it."""
        assert self._process.stdout is not None
        while (text := self._process.stdout.readline()) == b"\n":
            pass
        assert text, "the program has ended"
        found: dict[str, object] = json.loads(text)
        return found

    def ask(self, do: str, payload: bytes = b"", /, **fields: object) -> dict[str, object]:
        """Send a command; return its first answer."""
        self.send(json.dumps({"do": do, **fields}).encode() + b"\n" + payload)
        return self.line()

    def floats(self, answer: dict[str, object]) -> NDArray[np.float32]:
        """The raw numbers that follow an answer."""
        assert self._process.stdout is not None
        count = answer["bytes"]
        assert isinstance(count, int), answer
        return np.frombuffer(self._process.stdout.read(count), np.float32)

    def logits(self, ids: Sequence[int], **fields: object) -> NDArray[np.float32]:
        """Prefill all tokens but the last, decode it, and return the logits."""
        if ids[:-1]:
            self.ok("prefill", ids=list(ids[:-1]))
        return self.floats(self.ok("decode", ids=[ids[-1]], logits=True, **fields))

    def ok(self, do: str, payload: bytes = b"", /, **fields: object) -> dict[str, object]:
        """Send a command that must succeed."""
        answer = self.ask(do, payload, **fields)
        assert answer.get("ok") == do, answer
        return answer

    def generated(self, **fields: object) -> tuple[list[object], dict[str, object]]:
        """The tokens of a generation, and its last answer."""
        answer, tokens = self.ask("generate", **fields), []
        while "token" in answer:
            tokens.append(answer["token"])
            answer = self.line()
        assert answer.get("ok") == "generate", answer
        return tokens, answer

    def end(self) -> int:
        """End its input and read the rest of its output; return the exit code."""
        self.rest()
        assert self._code is not None
        return self._code

    def rest(self) -> list[dict[str, object]]:
        """End its input; return the answers to what it has read before."""
        if self._code is not None:
            return []
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        output = self._process.stdout.read()
        self._process.stdout.close()
        self._code = self._process.wait(timeout=PATIENCE_S)
        return [json.loads(line) for line in output.splitlines() if line]
