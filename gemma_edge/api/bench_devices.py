"""Benchmarks several devices at the same time, each in its own process, so that none can disturb the others."""

from __future__ import annotations

import json
import logging
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from device_harness.adb.devices import require_distinct
from device_harness.bench.placement import open_model
from device_harness.bench.run import BenchRequest, BenchSettings, choose_runner
from device_harness.push.source import PushProgress
from device_harness.runners import ALL
from device_harness.runners.interface import Workload
from device_harness.runners.spec import BenchListener, RunnerSpec
from gemma_edge.api.bench import bench_request, bench_settings, fault_of, request_files, results_file
from gemma_edge.api.devices import chosen_devices
from toolkit.base.errors import EnvironmentFault, QualityError, ToolkitError, UsageError
from toolkit.results.figures import known_figure, known_figures
from toolkit.results.json_lines import parse_record
from toolkit.results.record import BenchRecord

_CHILD = "gemma_edge.api.bench_child"
_END_S = 60.0
"""How long interrupted processes may take to put their devices' settings back."""


_log = logging.getLogger(__name__)

DeviceListener = Callable[[str, RunnerSpec], BenchListener]
"""Makes the listener for a device, given its serial number and the runner that measures it."""


@dataclass(frozen=True, slots=True)
class BenchFailure:
    """A device whose benchmark ended with an error; the records that it measured before come first."""

    device: str
    error: ToolkitError


def bench_devices(
    model: Path | str,
    devices: Sequence[str],
    *,
    runner: str | None = None,
    options: Mapping[str, Sequence[str]] | None = None,
    size: str | None = None,
    prompt_tokens: int | None = None,
    generated_tokens: int | None = None,
    repetitions: int = 5,
    cold: bool = False,
    backend: Literal["cpu", "gpu", "npu"] = "cpu",
    threads: int | None = None,
    results: Path | str | None = None,
    force: bool = False,
    trace: bool = False,
    settings: BenchSettings | None = None,
    listener: DeviceListener = lambda device, spec: BenchListener(),
) -> tuple[BenchRecord | BenchFailure, ...]:
    """Measure the same on several devices at the same time; return a record for each run, and a failure for each error.

    devices: serial numbers as for `bench`, or `["all"]`. One that fails does not end the others; records name their
    device (`device_serial`). listener: makes the listener for a device, once its runner is known. All other arguments
    are those of `bench`.

    UsageError for a wrong request, BundleError for an invalid model, both before any device is asked.
    """
    workload = Workload(start="cold" if cold else "warm", backend=backend, threads=threads)
    found = bench_each(
        bench_request(model, runner, options, size, workload, (prompt_tokens, generated_tokens)),
        bench_settings(settings, repetitions, results, trace=trace),
        chosen_devices(devices, _log.warning),
        results=results,
        force=force,
        listener=listener,
    )
    return tuple(found)


def bench_each(
    request: BenchRequest,
    settings: BenchSettings,
    devices: Sequence[str],
    *,
    results: Path | str | None = None,
    drop_torn_line: bool = False,
    force: bool = False,
    listener: DeviceListener = lambda device, spec: BenchListener(),
) -> Iterator[BenchRecord | BenchFailure]:
    """Like `bench_devices`, but yield records and failures as they come.

    Records have the device's serial number, and are appended to the results file as soon as they are complete.
    UsageError if a device is named twice or the request is wrong, BundleError for an invalid model, all before any
    device is asked. After an interrupt, every device ends its measurement as it would alone, and what has been measured
    is yielded before the interrupt is raised.
    """
    if not devices:
        raise UsageError("--device", found="no device")
    require_distinct(devices)
    # Which runner each device has is known only once it has been asked.
    first = listener(devices[0], choose_runner(request))
    with first.pushing("") as progress:
        open_model(request.model, request.size, progress=progress)
    inputs = request_files(request)
    with (
        results_file(results, inputs, drop_torn_line=drop_torn_line, force=force) as writer,
        _Children(request, settings, devices) as children,
    ):
        told: dict[str, _Told] = {}
        for device, word, value in children.events():
            if word == "record":
                record = parse_record(value, None, f"record of {device}")
                fault = None if writer is None else fault_of(writer, record)
                yield record  # even if it could not be kept
                if fault is not None:
                    raise fault
            elif word == "failed":
                yield BenchFailure(device, _error(device, json.loads(value)))
            elif word == "runner":
                spec = next(spec for spec in ALL if spec.name == json.loads(value))
                told[device] = _Told(device, listener(device, spec))
            elif device in told:
                told[device].tell(word, json.loads(value))
            else:  # a warning, before its runner is known
                _log.warning("%s: %s", device, json.loads(value))
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
            text = str(value) if self._device in str(value) else f"{self._device}: {value}"
            if word == "warn":
                _log.warning("%s", text)
            else:
                self._listener.note(text)


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
        """End the processes that still run: by an interrupt, so that they put their devices' settings back."""
        try:
            if self._interrupt is None:
                self._send_interrupt()
            until = time.monotonic() + _END_S
            for child in self._running.values():
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, until - time.monotonic()))
        finally:
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
                self._send_interrupt()
                continue
            if word == "end":
                ended += 1
            else:
                yield device, word, value

    def _send_interrupt(self) -> None:
        for child in self._running.values():
            child.send_signal(signal.SIGINT)

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
            pass  # it ended before it read its work; its exit code is reported below
        finally:
            code = child.wait()
            if code and not has_failed and self._interrupt is None:
                fault = EnvironmentFault(device, found=f"its benchmark's process ended with code {code}")
                self._queue.put((device, "failed", json.dumps(fault.to_json()).encode()))
            self._queue.put((device, "end", b""))


def _error(device: str, value: Mapping[str, Any]) -> ToolkitError:
    """The error that a process reported; it always names the device."""
    kinds = {kind.exit_code: kind for kind in (UsageError, QualityError)}
    kind = kinds.get(value.get("exit_code", 0), EnvironmentFault)
    place = value["place"]
    if value["file"] is None and device not in (place or ""):
        place = f"{device} {place}" if place else device
    return kind(place, file=value["file"], found=value["found"], wanted=value["wanted"], remedy=value["remedy"])
