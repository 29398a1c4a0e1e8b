"""Benchmarks several devices at the same time, each in a process of its own, so that none can disturb the others."""

from __future__ import annotations

import json
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_harness.bench.placement import open_model
from device_harness.bench.run import BenchRequest, BenchSettings, choose_runner
from device_harness.push.source import PushProgress
from device_harness.runners.spec import BenchListener, RunnerSpec
from gemma_edge.api.bench import fault_of, request_files, results_file
from toolkit.base.errors import EnvironmentFault, ToolkitError, UsageError
from toolkit.results.figures import known_figure, known_figures
from toolkit.results.json_lines import parse_record
from toolkit.results.record import BenchRecord

_CHILD = "gemma_edge.api.bench_child"
_WRONG_USE = 2


@dataclass(frozen=True, slots=True)
class BenchFailure:
    """A device whose benchmark ended with an error; its records until then come before it."""

    device: str
    error: ToolkitError


def bench_devices(
    request: BenchRequest,
    settings: BenchSettings,
    devices: Sequence[str],
    *,
    results: Path | str | None = None,
    drop_torn_line: bool = False,
    force: bool = False,
    listener: Callable[[str, RunnerSpec], BenchListener] = lambda device, spec: BenchListener(),
) -> Iterator[BenchRecord | BenchFailure]:
    """Measure the same on each device; yield records and failures as they come. One that fails does not end the others.

    Records have the device's serial number, and are appended to the results file as soon as they are complete.
    UsageError for devices named twice, and whatever is wrong with the request or the model, before any is asked. After
    an interrupt, every device ends its measurement as it would alone; what they had measured is yielded first.
    """
    if len(set(devices)) < len(devices):
        raise UsageError("--device", found="a device twice")
    spec = choose_runner(request)
    listeners = {device: listener(device, spec) for device in devices}
    with listeners[devices[0]].pushing("") as progress:
        open_model(request.model, request.size, progress=progress)
    inputs = request_files(request)
    with (
        results_file(results, inputs, drop_torn_line=drop_torn_line, force=force) as writer,
        _Children(request, settings, devices) as children,
    ):
        told = {device: _Told(device, listeners[device]) for device in devices}
        for device, word, value in children.events():
            if word == "record":
                record = parse_record(value, None, f"record of {device}")
                fault = None if writer is None else fault_of(writer, record)
                yield record  # even if it could not be kept
                if fault is not None:
                    raise fault
            elif word == "failed":
                yield BenchFailure(device, _error(device, json.loads(value)))
            else:
                told[device].tell(word, json.loads(value))
        children.raise_interrupt()


class _Told:
    """Tells a listener what happens on one device."""

    def __init__(self, device: str, listener: BenchListener) -> None:
        self._device, self._listener = device, listener
        self._pushing = ExitStack()
        self._progress: PushProgress | None = None

    def tell(self, word: str, value: Any) -> None:
        if word != "push":
            self._pushing.close()
            self._progress = None
        if word == "push":
            if self._progress is None:
                self._progress = self._pushing.enter_context(self._listener.pushing(self._device))
            self._progress(value["step"], value["done"], value["total"])
        elif word == "iteration":
            tests = {test: known_figure(figure, self._device) for test, figure in value["tests"].items()}
            figures = None if value["figures"] is None else known_figures(value["figures"], self._device)
            self._listener.iteration(tests, value["done"], value["total"], figures)
        elif word in ("note", "warn"):
            text = str(value)
            self._listener.note(text if self._device in text else f"{self._device}: {text}")


class _Children:
    """The processes, one for each device, and their events in one queue."""

    def __init__(self, request: BenchRequest, settings: BenchSettings, devices: Sequence[str]) -> None:
        self._work = {device: pickle.dumps((request, settings, device)) for device in devices}
        self._queue: queue.SimpleQueue[tuple[str, str, bytes]] = queue.SimpleQueue()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._interrupt: BaseException | None = None

    def __enter__(self) -> _Children:
        for device, work in self._work.items():
            # A session of its own: a terminal's Ctrl-C reaches only us, and we pass it on once.
            child = subprocess.Popen(
                [sys.executable, "-m", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._running[device] = child
            threading.Thread(target=self._read, args=(device, child, work), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._running.values():
            child.kill()
            child.wait()

    def events(self) -> Iterator[tuple[str, str, bytes]]:
        """All events until every process has ended; an interrupt is passed on to the processes, and kept."""
        ended = 0
        while ended < len(self._running):
            try:
                device, word, value = self._queue.get()
            except (KeyboardInterrupt, SystemExit) as error:
                if self._interrupt is not None:
                    raise
                self._interrupt = error
                for child in self._running.values():
                    child.send_signal(signal.SIGINT)
                continue
            if word == "end":
                ended += 1
            else:
                yield device, word, value

    def raise_interrupt(self) -> None:
        """Raise the interrupt that came meanwhile."""
        if self._interrupt is not None:
            raise self._interrupt

    def _read(self, device: str, child: subprocess.Popen[bytes], work: bytes) -> None:
        assert child.stdin is not None and child.stdout is not None
        has_failed = False
        try:
            with child.stdin:
                child.stdin.write(work)
            for line in child.stdout:
                word, _, value = line.partition(b" ")
                has_failed = has_failed or word == b"failed"
                self._queue.put((device, word.decode("ascii", "replace"), value))
        except OSError:
            pass  # it ended before it read its work, which its exit code tells
        finally:
            code = child.wait()
            if code and not has_failed and self._interrupt is None:
                fault = EnvironmentFault(device, found=f"its benchmark's process ended with code {code}")
                self._queue.put((device, "failed", json.dumps({**fault.to_json(), "code": code}).encode()))
            self._queue.put((device, "end", b""))


def _error(device: str, value: Mapping[str, Any]) -> ToolkitError:
    """The error that a process told, which names the device in any case."""
    kind = UsageError if value.get("exit_code") == _WRONG_USE else EnvironmentFault
    place = value["place"]
    if value["file"] is None and device not in (place or ""):
        place = f"{device} {place}" if place else device
    return kind(place, file=value["file"], found=value["found"], wanted=value["wanted"], remedy=value["remedy"])
