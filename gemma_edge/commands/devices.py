"""`gemma-edge devices`: lists devices, and why any of them cannot be used."""

from __future__ import annotations

import argparse
import dataclasses

from device_harness.adb.devices import searches_usb
from gemma_edge.api.devices import devices
from gemma_edge.options.session import positive_seconds
from gemma_edge.terminal import Terminal, one_line, table

EXAMPLES = (
    "gemma-edge devices",
    "gemma-edge devices --address 192.168.1.20:5555 --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="HOST:PORT", action="append", default=[],
        help="also try this address; may be repeated (emulator ports on this computer are always searched)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", metavar="S", type=positive_seconds, default=3.0,
        help="seconds to wait for a device's answer (default: 3)",
    )  # fmt: skip


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0, even if there is no device."""
    found = devices(arguments.address, timeout_s=arguments.timeout)
    rows = [
        [
            device.serial,
            device.kind + (" (adb's server)" if device.via_server else ""),
            device.state,
            device.model or "-",
        ]
        for device in found
    ]
    lines = [table(["serial", "", "state", "model"], rows)] if rows else ["no devices"]
    lines += [one_line(f"{device.serial}: {device.reason}") for device in found if device.reason]
    if all(device.state == "not found" for device in found) and not searches_usb():
        terminal.note(
            "USB was not searched: run adb start-server, or pip install 'gemma-edge[usb]' and the system's libusb-1.0"
        )
    terminal.result({"devices": [dataclasses.asdict(device) for device in found]}, "\n".join(lines))
    return 0
