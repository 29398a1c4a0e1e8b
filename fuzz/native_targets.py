"""The targets for the C programs: a harness for each kind of input, built with clang's libFuzzer.

Each harness includes the program's own sources; the address and undefined-behaviour sanitizers find what goes wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_harness.programs.bundle_runner import sources
from fuzz.target import CORPUS, EXAMPLE, REPOSITORY
from toolkit.base.errors import EnvironmentFault

HARNESSES = Path(__file__).parent / "native"
_SOURCES = REPOSITORY / "device_harness" / "programs" / "native"
_FLAGS = (
    "-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
    f"-I{_SOURCES}",
)  # fmt: skip
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class NativeTarget:
    """A harness in `fuzz/native`; `included`: the file of bundle_runner that it includes, None for another program."""

    name: str
    included: str | None
    seeds: Callable[[], Sequence[bytes]]

    @property
    def kept(self) -> Path:
        """Where inputs that found something are kept; there may be none."""
        return CORPUS / self.name

    def build(self, folder: Path) -> Path:
        """Compile it into `folder`; EnvironmentFault without clang."""
        clang = shutil.which("clang")
        if clang is None:
            raise EnvironmentFault("clang", found="no such program", remedy="install clang and its compiler-rt")
        others = [path for path in sources() if path.name not in (self.included, "main.c")] if self.included else []
        program = folder / self.name
        harness = HARNESSES / f"{self.name.removeprefix('native-')}.c"
        subprocess.run([clang, *_FLAGS, str(harness), *map(str, others), "-o", program, "-lm", "-ldl"], check=True)
        return program

    def fuzz(self, seconds: float, found: Path) -> int:
        """Run libFuzzer for so many seconds of processor time; return its exit code, 0 if nothing was found."""
        found.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(self.seeds()):
            (found / f"seed-{i}").write_bytes(seed)
        with tempfile.TemporaryDirectory() as folder:
            options = ["-rss_limit_mb=2048", "-print_final_stats=1", "-detect_leaks=0", f"-artifact_prefix={found}/"]
            longest = max(map(len, self.seeds())) + 4096
            folders = [str(found), *([str(self.kept)] if self.kept.is_dir() else [])]
            process = subprocess.Popen([self.build(Path(folder)), *options, f"-max_len={longest}", *folders])
            while process.poll() is None and _processor_seconds(process.pid) < seconds:
                time.sleep(_LOOK_S)
            process.send_signal(signal.SIGUSR1)  # libFuzzer ends after the input at hand, and prints its figures
            return process.wait()


def _processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _manifests() -> Sequence[bytes]:
    from fuzz.targets import small_bundle

    return [(small_bundle() / "manifest.json").read_bytes()]


_COMMANDS = (
    {"do": "open", "bundle": str(EXAMPLE), "threads": 2, "weight_cache": {"folder": "/x", "runtime": "1"}},
    {"do": "generate", "ids": [2], "limit": 3, "temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 3, "stop": [1]},
    {"do": "prefill", "ids": [2, 3000], "media": [{"key": "a\u00e9", "at": -1}]},
    {"do": "stats"},
)


def _shards() -> Sequence[bytes]:
    """Tables of four rows, of two layers of 16 values, in both versions of the format; their hashes are left out."""
    found = []
    for version, bits in ((1, 4), (1, 8), (1, 32), (2, 2), (2, 4)):
        fields = [4, 2, 16, bits, 512, 0, 1]
        numbers = b"".join(
            number.to_bytes(size, "little") for number, size in zip(fields, (8, 4, 4, 4, 4, 4, 4), strict=True)
        )
        head = (
            b"GEMMAPLE"
            + version.to_bytes(4, "little")
            + (4096).to_bytes(4, "little")
            + bytes(8)
            + (4).to_bytes(8, "little")
        )
        found.append((head + numbers).ljust(4096, b"\0") + bytes(range(256)) * 8)
    return found


def _pushes() -> Sequence[bytes]:
    """A byte of choices, arguments, and bytes of the connection: chunks below and above the program's blocks."""
    lines = (
        "0store a 100 1 4 50", "1store a 270000 0 2 7000", "1store a 140000 0 3 5", "3store b 4096 2 40 1",
        "0hash a 4096 0 80 100", "2hash b 270000 0 2 1", "0hash a 140000 0 3 1", "0copy a 65536 0 5 1 b",
        "2copy b 262145 0 2 4096 a", "0copy a 5000 2 6 100 b",
    )  # fmt: skip
    return [f"{line}\n".encode() + bytes(range(250)) for line in lines]


NATIVE_TARGETS = (
    NativeTarget("native-manifest", "manifest.c", _manifests),
    NativeTarget("native-commands", "main.c", lambda: [json.dumps(command).encode() for command in _COMMANDS]),
    NativeTarget("native-rows", "ple.c", _shards),
    NativeTarget("native-probe", None, _shards),
    NativeTarget("native-receiver", None, _pushes),
)
