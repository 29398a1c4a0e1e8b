"""`gemma-edge emulator`: runs an emulated Android device on this computer."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from device_harness.adb.wire import (
    LEGACY_PAYLOAD_BYTES,
    MAX_PAYLOAD_BYTES,
    VERSION,
    VERSION_SKIP_CHECKSUM,
)
from device_harness.emulator.auth import PublicKey, parse_public_key
from device_harness.emulator.daemon import Access, features
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.emulator.faults import parse_faults, parse_size
from gemma_edge.options.numbers import within
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.unused import refuse_unused
from gemma_edge.terminal import Terminal, one_line
from toolkit.base.errors import UsageError
from toolkit.base.strict_json import open_regular

EXAMPLES = (
    "gemma-edge emulator",
    "gemma-edge emulator --port 5557 --memory 1GB --storage 4GB",
    "gemma-edge emulator --fault drop=100MB --fault thermal=severe --fault battery=15",
)
_FAULTS = (
    "a fault to produce: drop=BYTES or reboot=BYTES (after receiving that many), corrupt=BYTE, disk-full=BYTES, "
    "slow=BYTES_PER_S, refuse=SERVICE, thermal=STATUS, battery=PERCENT, power=KIND, screen-on, silent; "
    "may be repeated"
)


_MOST_KEY_BYTES = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", metavar="N", type=_port, default=5555, help="port to listen on; 0: a free one (default: 5555)"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory for all programs on the device together (default: no limit)"
    )
    parser.add_argument("--storage", metavar="SIZE", help="space for files on the device (default: no limit)")
    parser.add_argument("--fault", metavar="FAULT", action="append", default=[], help=_FAULTS)
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="keep the device's files in DIR (default: remove them at the end)"
    )
    add_force_option(parser, "files in DIR that no emulated device made")
    parser.add_argument(
        "--isolation", choices=("auto", "bubblewrap", "folder"), default="auto",
        help="how the device's programs are isolated from this computer: by bubblewrap, or not at all (folder) "
        "(default: auto, bubblewrap if it works here)",
    )  # fmt: skip
    parser.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        action="append",
        help="accept only this public adb key; may be repeated (default: any)",
    )
    parser.add_argument(
        "--old",
        action="store_true",
        help="use the older protocol of Android before version 7: shell v1, small messages",
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0 after SIGTERM; Ctrl-C counts as an interrupt."""
    refuse_unused("--force", arguments.force and arguments.root is None, "without --root")
    settings = EmulatorSettings(
        port=arguments.port,
        root=arguments.root,
        force=arguments.force,
        isolation=arguments.isolation,
        memory_bytes=_size(arguments.memory, "--memory"),
        storage_bytes=_size(arguments.storage, "--storage"),
        access=Access(tuple(_read_key(path) for path in arguments.key) if arguments.key else None),
        faults=parse_faults(arguments.fault),
        features=frozenset() if arguments.old else features(),
        max_payload_bytes=LEGACY_PAYLOAD_BYTES if arguments.old else MAX_PAYLOAD_BYTES,
        version=VERSION if arguments.old else VERSION_SKIP_CHECKSUM,
    )
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with Emulator(settings) as device:
            isolation = "bubblewrap" if device.userland.is_isolated else "none: its programs can do what you can"
            value = {"serial": device.serial, "root": str(device.userland.root), "isolation": isolation}
            terminal.result(value, one_line(f"{device.serial}: emulated device, isolation {isolation}"))
            ended.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _size(text: str | None, option: str) -> int | None:
    return None if text is None else parse_size(text, option)


def _port(text: str) -> int:
    return within(text, 0, 65535)


def _read_key(path: Path) -> PublicKey:
    with open(open_regular(path, UsageError), "rb") as file:
        key = parse_public_key(file.read(_MOST_KEY_BYTES))
    if key is None:
        raise UsageError(file=path, found="not a public adb key", remedy="try ~/.android/adbkey.pub")
    return key
