"""Measures our own session, in a process of its own on the machine that runs it: ``python3 -m`` this module.

Prints one line of JSON. The first prompt after loading gives the time to first token; rates are of a second one in the
same process, as llama-bench warms up before it measures. Tokens are random but always the same, and the second prompt's
are others, so that its rows of per-layer embeddings are not those that the first has left in memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np

import toolkit
from toolkit.errors import ToolkitError
from toolkit.files import hash_file
from toolkit.procfs import parse_io, parse_stat
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings, default_threads

RESULT = "gemma-edge-session: "
"""Before the line of JSON, for LiteRT says things too."""
SEED = 0


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Load, prefill and decode; figures by the names of docs/formats/results.md."""
    before = _counts()
    begin_s = _uptime()
    started = time.perf_counter()
    bundle = Bundle(arguments.bundle)
    settings = SessionSettings(
        size=arguments.size, threads=arguments.threads or default_threads(), weight_cache=arguments.cache
    )
    with Session(bundle, settings) as session:
        init_s = time.perf_counter() - started
        most = min(bundle.manifest.text.vocab_size, bundle.manifest.text.ple_vocab_size)
        draw = np.random.default_rng(SEED)
        counts = (arguments.prompt_tokens, arguments.prompt_tokens, arguments.generated_tokens)
        first, prompt, drawn = ([int(token) for token in draw.integers(0, most, count)] for count in counts)
        started = time.perf_counter()
        session.feed(first).argmax()
        first_s = time.perf_counter() - started
        session.truncate(0)
        started = time.perf_counter()
        session.prefill(prompt)
        prefill_s = time.perf_counter() - started
        started = time.perf_counter()
        for token in drawn:
            session.decode(token).argmax()
        decode_s = time.perf_counter() - started
    return {
        "begin_s": begin_s,
        "end_s": _uptime(),
        "threads": settings.threads,
        "figures": {
            "init_s": init_s,
            "time_to_first_token_s": first_s,
            "prefill_s": prefill_s,
            "decode_s": decode_s,
            "prefill_tokens_count": len(prompt),
            "decode_tokens_count": len(drawn),
            "prefill_tokens_per_s": len(prompt) / prefill_s,
            "decode_tokens_per_s": len(drawn) / decode_s,
            **{name: value - before[name] for name, value in _counts().items()},
        },
    }


def describe() -> dict[str, object]:
    """What runs here: versions and hashes of Python and of LiteRT's library."""
    spec = importlib.util.find_spec("ai_edge_litert")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
    programs = [("python3", Path(sys.executable), sys.version.split()[0])]
    programs.append(("libLiteRt.so", folder / "libLiteRt.so", importlib.metadata.version("ai-edge-litert")))
    found = [
        {"name": name, "sha256": hash_file(path).sha256, "bytes": path.stat().st_size, "version": version}
        for name, path, version in programs
    ]
    return {"version": toolkit.__version__, "binaries": found}


def _counts() -> dict[str, int]:
    """Faults and reads of this process so far; none where the system does not tell."""
    try:
        stat = parse_stat(Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace"))
        io = parse_io(Path("/proc/self/io").read_text(encoding="ascii"))
    except (OSError, ToolkitError):
        return {}
    counts = {"major_faults_count": stat.major_faults, "minor_faults_count": stat.minor_faults}
    return counts if io.read_bytes is None else {**counts, "read_bytes": io.read_bytes}


def _uptime() -> float:
    """The clock of /proc/uptime, by which samples are ordered."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def main() -> int:
    parser = argparse.ArgumentParser(prog="session_child", description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", help="none: say what runs here")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--generated-tokens", type=int, default=128)
    parser.add_argument("--size")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cache", type=Path, help="folder for packed weights")
    arguments = parser.parse_args()
    try:
        found = describe() if arguments.bundle is None else measure(arguments)
    except ToolkitError as error:
        sys.stdout.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(RESULT + json.dumps(found) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
