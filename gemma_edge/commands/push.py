"""`gemma-edge push`: copies a bundle, or a .litertlm, to Android devices."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path

from device_harness.push.push import DEFAULT_FOLDER
from device_harness.push.result import PushResult
from gemma_edge.api.devices import chosen_devices
from gemma_edge.api.push import PushListener, push_all
from gemma_edge.options.groups import group_names
from gemma_edge.terminal import Terminal, one_line
from gemma_edge.words.pushing import step_bars
from toolkit.results.quantities import bytes_text

EXAMPLES = (
    "gemma-edge push BUNDLE",
    "gemma-edge push BUNDLE --groups text,vision --device 192.168.1.20:5555",
    "gemma-edge push model.litertlm --device R5CT1234 --device emulator-5554 --json",
    "gemma-edge push BUNDLE --device all",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="BUNDLE", type=Path, help="a bundle directory, or a .litertlm file")
    parser.add_argument(
        "--device", metavar="SERIAL|HOST:PORT", action="append", default=[],
        help="the device to push to; may be repeated, or all (default: ANDROID_SERIAL, else the only device)",
    )  # fmt: skip
    parser.add_argument(
        "--groups", metavar="NAME,...", type=group_names,
        help="parameter groups to push; text includes its embeddings, and the tokenizer and the chat template are "
        "always pushed (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--receiver", choices=("auto", "shell", "native"), default="auto",
        help="what stores and hashes files on the device: its own tools (shell), or our program (native), which is "
        "faster, and takes a minute to build once (default: auto, native if it has been built and runs there)",
    )  # fmt: skip
    parser.add_argument(
        "--target", metavar="DIR",
        help=f"folder on the device (default: {DEFAULT_FOLDER}/NAME for a bundle, {DEFAULT_FOLDER} for a file)",
    )  # fmt: skip


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0; 2 for a bundle that differs from its manifest; 3 if a device failed, once all have ended."""
    listener = PushListener(
        progress=partial(step_bars, terminal),
        note=lambda text: terminal.note(one_line(text)),
        done=lambda result: terminal.result(_as_json(result), one_line(_as_text(result))),
    )
    outcome = push_all(
        arguments.source,
        chosen_devices(arguments.device, terminal.warn) or [None],
        groups=arguments.groups,
        receiver=arguments.receiver,
        target=arguments.target,
        listener=listener,
    )
    for failure in outcome.failures[1:]:
        terminal.warn(str(failure))
    if outcome.failures:
        raise outcome.failures[0]
    return 0


def _as_json(result: PushResult) -> dict[str, object]:
    value = {**dataclasses.asdict(result), "megabytes_per_s": result.megabytes_per_s}
    return {**value, "seconds": round(result.seconds, 3), "send_seconds": round(result.send_seconds, 3)}


def _as_text(result: PushResult) -> str:
    parts = [f"{bytes_text(result.bytes_sent)} sent", f"{bytes_text(result.bytes_skipped)} already there"]
    rate = result.megabytes_per_s
    if rate is not None:
        parts[0] += f" at {rate:,.1f} MB/s"
    parts.append(f"{result.seconds:,.1f} s")
    if result.files_removed:
        parts.append(f"removed {', '.join(result.files_removed)}")
    if result.chunks_repaired:
        parts.append(f"{result.chunks_repaired} damaged chunks sent again")
    if result.receiver == "shell":
        parts.append("stored by the device's own tools")
    if result.reconnects:
        parts.append("reconnected" if result.reconnects == 1 else f"reconnected {result.reconnects} times")
    return f"{result.device} {result.target}: {'; '.join(parts)}"
