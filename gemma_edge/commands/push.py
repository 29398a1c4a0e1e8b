"""`gemma-edge push`: a bundle, or a .litertlm, onto devices."""

from __future__ import annotations

import argparse
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from device_harness.adb.devices import connect
from device_harness.adb.transport import remote_path
from device_harness.push.push import DEFAULT_FOLDER, PushResult, default_target, push_source
from device_harness.push.receiver import Receiver, place_receiver
from device_harness.push.source import PushProgress, PushSource, Step, open_source
from gemma_edge.options.groups import group_names
from gemma_edge.terminal import Terminal, bytes_text
from toolkit.base.errors import ToolkitError, UsageError

EXAMPLES = (
    "gemma-edge push BUNDLE",
    "gemma-edge push BUNDLE --groups text,ple --device 192.168.1.20:5555",
    "gemma-edge push model.litertlm --device R5CT1234 --device emulator-5554 --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="BUNDLE", type=Path, help="a bundle's directory, or a .litertlm file")
    parser.add_argument(
        "--device", metavar="SERIAL|HOST:PORT", action="append", default=[],
        help="where to; may be given more than once (default: ANDROID_SERIAL, else the only device)",
    )  # fmt: skip
    parser.add_argument(
        "--groups", metavar="NAME,...", type=group_names,
        help="parameter groups that are wanted there; the tokenizer and the chat template always go (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--receiver", choices=("auto", "shell", "native"), default="auto",
        help="what stores and hashes on the device: its own programs (shell), or a small one of ours (native), which "
        "is faster, and takes a minute to build once (default: native if it has been built and runs there)",
    )  # fmt: skip
    parser.add_argument(
        "--target", metavar="DIR",
        help=f"folder on the device (default: {DEFAULT_FOLDER}/NAME for a bundle, {DEFAULT_FOLDER} for a file)",
    )  # fmt: skip


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0; 2 for a bundle that is not what its manifest says; 3 if a device failed, after all have ended."""
    names: list[str | None] = arguments.device or [None]
    if len(set(names)) < len(names):
        raise UsageError("--device", found="a device twice")
    target = None if arguments.target is None else remote_path(arguments.target.rstrip("/"))
    source = open_source(arguments.source, arguments.groups)
    target = target or default_target(source)
    failures = _push_all(names, _Work(source, target, arguments.receiver), terminal)
    for failure in failures[1:]:
        terminal.warn(str(failure))
    if failures:
        raise failures[0]
    return 0


@dataclass(frozen=True, slots=True)
class _Work:
    """What each device gets."""

    source: PushSource
    target: str
    receiver: Receiver


def _push_all(names: list[str | None], work: _Work, terminal: Terminal) -> list[ToolkitError]:
    """Push to all devices at once; what went wrong with some, once all have ended."""
    if len(names) == 1:
        _push_one(names[0], work, terminal, threading.Event())
        return []
    ended = threading.Event()
    failures = []
    with ThreadPoolExecutor(len(names)) as pool:
        running: list[Future[None]] = [pool.submit(_push_one, name, work, terminal, ended) for name in names]
        try:
            for future in running:
                try:
                    future.result()
                except ToolkitError as error:
                    failures.append(error)
        finally:
            # After an interrupt: each push ends at its next step, and leaves what the next one goes on with.
            ended.set()
    return failures


def _push_one(name: str | None, work: _Work, terminal: Terminal, ended: threading.Event) -> None:
    with connect(name) as device, step_bars(terminal, device.serial) as show:

        def progress(step: Step, done: int, total: int) -> None:
            if ended.is_set():
                raise KeyboardInterrupt
            show(step, done, total)

        receiver = place_receiver(device, work.receiver, say=terminal.note)
        result = push_source(device, work.source, target=work.target, receiver=receiver, progress=progress)
    terminal.result(_as_json(result), _as_text(result))


@contextmanager
def step_bars(terminal: Terminal, title: str) -> Iterator[PushProgress]:
    """A progress bar for each step, one after the other."""
    with ExitStack() as stack:
        step: Step | None = None
        show: Callable[[int, int], None] | None = None

        def progress(now: Step, done: int, total: int) -> None:
            nonlocal step, show
            if now != step or show is None:
                stack.close()
                step, show = now, stack.enter_context(terminal.bar(f"{title} {now}".strip()))
            show(done, total)
            if done >= total:
                step = None

        yield progress


def _as_json(result: PushResult) -> dict[str, object]:
    value = {**dataclasses.asdict(result), "megabytes_per_s": result.megabytes_per_s}
    return {**value, "seconds": round(result.seconds, 3), "send_seconds": round(result.send_seconds, 3)}


def _as_text(result: PushResult) -> str:
    parts = [f"{bytes_text(result.bytes_sent)} sent", f"{bytes_text(result.bytes_skipped)} there already"]
    rate = result.megabytes_per_s
    if rate is not None:
        parts[0] += f" at {rate:,.1f} MB/s"
    parts.append(f"{result.seconds:,.1f} s")
    if result.files_removed:
        parts.append(f"removed {', '.join(result.files_removed)}")
    if result.chunks_repaired:
        parts.append(f"{result.chunks_repaired} damaged chunks sent again")
    if result.receiver == "shell":
        parts.append("by the device's own programs")
    if result.reconnects:
        parts.append(f"connected again {result.reconnects} times")
    return f"{result.device} {result.target}: {'; '.join(parts)}"
