"""Runs one conversation of random tokens in bundle_runner, in its own process; prints one JSON object.

`python -m benchmarks.native_run BUNDLE --prefill 512 --decode 128 --threads 2 --context 4096 --cache DIR`

The context is the bundle's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.engine_run import EngineRun, RunOptions, parse_options
from device_harness.machines.host import Host
from device_harness.native.place import place_runner
from toolkit.base.errors import EnvironmentFault
from toolkit.base.strict_json import JsonObject, parse_json

WHAT = "bundle_runner"


def run_native(path: Path, options: RunOptions) -> EngineRun:
    """Prefill and decode random tokens, without a prompt before them, as `session_run` does."""
    placed = place_runner(Host())
    opening = {
        "do": "open",
        "bundle": str(path),
        "threads": options.threads,
        "weight_cache": {"folder": str(options.cache), "runtime": placed.runtime},
    }
    decodes = [{"do": "decode", "random": count} for count in (1, options.decode - 1) if count]
    steps = (opening, {"do": "prefill", "random": options.prefill}, *decodes, {"do": "stats"})
    command = [*placed.argv, *map(json.dumps, steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {path}: {WHAT} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return read_run(done.stdout, options)


def read_run(output: str, options: RunOptions) -> EngineRun:
    """Parse the program's answers, with LiteRT's log between them; EnvironmentFault if one is missing.

    The first token is decoded by a command of its own.

    >>> lines = ['{"ok": "start"}', '{"ok": "open", "seconds": 1.5}', 'INFO: XNNPACK']
    >>> lines += ['{"ok": "prefill", "seconds": 2}', '{"ok": "decode", "seconds": 0.125}']
    >>> lines += ['{"ok": "decode", "seconds": 0.375}', '{"ok": "stats", "memory": {"peak_rss_bytes": 4096}}']
    >>> run = read_run("\\n".join(lines), RunOptions(128, 16, 2, 4096, Path()))
    >>> run.prefill_tokens_per_s, run.decode_tokens_per_s, run.time_to_first_token_seconds
    (64.0, 32.0, 2.125)
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    answers = [
        JsonObject(parse_json(line.encode(), None, EnvironmentFault, WHAT), None, EnvironmentFault, WHAT)
        for line in lines
    ]
    found = tuple(answer.string("ok") for answer in answers)
    wanted = ("start", "open", "prefill", *("decode",) * min(2, options.decode), "stats")
    if found != wanted:
        raise EnvironmentFault(WHAT, found=f"the answers {', '.join(found) or 'none'}", wanted=", ".join(wanted))
    _, opened, prefill, *decodes, stats = answers
    prefill_s, decodes_s = prefill.number("seconds", 0, 1e9), [each.number("seconds", 0, 1e9) for each in decodes]
    return EngineRun(
        init_seconds=opened.number("seconds", 0, 1e9),
        time_to_first_token_seconds=prefill_s + decodes_s[0],
        prefill_tokens=options.prefill,
        prefill_tokens_per_s=options.prefill / prefill_s,
        decode_tokens=options.decode,
        decode_tokens_per_s=options.decode / sum(decodes_s),
        peak_rss_bytes=stats.child("memory").integer("peak_rss_bytes", 0, 2**62),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    path, options = parse_options("native_run", arguments)
    print(json.dumps(asdict(run_native(path.resolve(), options))))


if __name__ == "__main__":
    main()
