"""Measures one device of a benchmark of several; `bench_devices` starts it with `python -m`.

The request is a pickle on standard input, from the process that started this one. Events are lines on standard output:
a word, a blank, and JSON. `runner` comes before all other events of its work, which are `note`, `warn`, `push`,
`iteration`, `record` and `failed`.
"""

from __future__ import annotations

import json
import logging
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from device_harness.bench.run import BenchRequest, BenchSettings
from device_harness.push.source import PushProgress, Step
from device_harness.runners.spec import BenchListener
from gemma_edge.api.bench import bench_records
from toolkit.base.errors import EnvironmentFault, ToolkitError
from toolkit.results.figures import FigureName
from toolkit.results.json_lines import dump_record
from toolkit.results.record import Figures

_PUSH_EVERY_S = 0.2
_writing = threading.Lock()


def _event(word: str, value: object) -> None:
    line = json.dumps(value).encode()
    _write(word.encode() + b" " + line + b"\n")


def _write(line: bytes) -> None:
    with _writing:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


class _Events(BenchListener):
    """Passes on what happens, and before that, the name of the runner."""

    def __init__(self, runner: str) -> None:
        _event("runner", runner)

    def note(self, text: str) -> None:
        _event("note", text)

    def iteration(self, tests: Mapping[str, FigureName], done: int, total: int, figures: Figures | None) -> None:
        _event("iteration", {"tests": dict(tests), "done": done, "total": total, "figures": figures})

    @contextmanager
    def pushing(self, serial: str) -> Iterator[PushProgress]:
        told_s = 0.0

        def progress(step: Step, done: int, total: int) -> None:
            nonlocal told_s
            if done >= total or time.monotonic() - told_s >= _PUSH_EVERY_S:
                told_s = time.monotonic()
                _event("push", {"step": step, "done": done, "total": total})

        yield progress


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _event("warn", record.getMessage())


def _interrupt(number: int, frame: object) -> NoReturn:
    """As after one Ctrl-C; another is ignored, so that cleaning up completes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Measure; return the exit code, which the last event explains."""
    request: BenchRequest
    settings: BenchSettings
    request, settings, device = pickle.load(sys.stdin.buffer)
    signal.signal(signal.SIGINT, _interrupt)
    for package in ("gemma_edge", "toolkit", "converters", "device_harness"):
        logging.getLogger(package).addHandler(_Warnings(logging.WARNING))
    try:
        for record in bench_records(
            request, settings, device=device, listener=lambda machine, spec: _Events(spec.name)
        ):
            _write(b"record " + dump_record(replace(record, device_serial=device)))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        known = (
            error
            if isinstance(error, ToolkitError)
            else EnvironmentFault(device, found=f"{type(error).__name__}: {error}")
        )
        _event("failed", {**known.to_json(), "exit_code": known.exit_code})
        return known.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
