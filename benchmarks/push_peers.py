"""The devices that `bench_push.py` pushes to: the emulated one, and AOSP's adbd 34 (`tests/support/adbd.py`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NO_SERVER = {"ADB_SERVER_SOCKET": "tcp:1"}


@dataclass(frozen=True, slots=True)
class Way:
    """A way for ours to reach the device: an environment; `delayed_ack` may be switched off."""

    name: str
    environment: Mapping[str, str]
    counts_bytes: bool = True

    def command(self, *words: str) -> list[str]:
        """The command that runs gemma-edge with these arguments."""
        if self.counts_bytes:
            return [sys.executable, "-m", "gemma_edge", *words]
        script = "import device_harness.adb.port as port; port.FEATURES -= {port.DELAYED_ACK}; "
        return [sys.executable, "-c", script + "from gemma_edge.cli import entry; entry()", *words]


@dataclass(frozen=True, slots=True)
class Device:
    """A device, with what the benchmark needs."""

    serial: str
    root: Path
    """The folder on this computer that has its files."""
    inside: tuple[str, ...]
    """The words to put before a command, so that it reaches the device."""
    adb: Mapping[str, str]
    """The environment of an adb whose server is connected to it."""
    ways: tuple[Way, ...]
    daemons: Mapping[str, int]
    """Process ids whose memory is measured: the device's daemon, and adb's server."""
    conditions: Mapping[str, str]
    """What a record says of the device."""

    def forget_peaks(self) -> None:
        """Reset the daemons' peak memory to what they use now (proc(5), clear_refs)."""
        for process in self.daemons.values():
            Path(f"/proc/{process}/clear_refs").write_text("5")

    def peaks(self) -> dict[str, int]:
        """The peak memory in bytes of each daemon since `forget_peaks`."""
        return {name: _peak_bytes(process) for name, process in self.daemons.items()}


@contextmanager
def emulated_device(root: Path, isolation: str, server_port: int) -> Iterator[Device]:
    """The emulated device, in its own process, so that all contenders use the same one."""
    command = [sys.executable, "-m", "gemma_edge", "emulator", "--json", "--port", "0"]
    command += ["--root", str(root), "--isolation", isolation]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        serial, conditions = str(told["serial"]), {"device": "emulated", "isolation": str(told["isolation"])}
        with _adb_server((), serial, server_port) as (environment, server):
            daemons = {"daemon": process.pid, "server": server}
            yield Device(serial, root, (), environment, (Way("direct", NO_SERVER),), daemons, conditions)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def aosp_device(server_port: int) -> Iterator[Device]:
    """AOSP's adbd; everything that talks to it runs in its network, so that nothing of ours is in between."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
    from adbd import Adbd, fetch

    serial = "127.0.0.1:5555"
    with Adbd(fetch()) as adbd:
        inside = tuple(adbd.inside())
        with _adb_server(inside, serial, server_port) as (environment, server):
            ways = (
                Way("direct", NO_SERVER),
                Way("direct, delayed_ack off", NO_SERVER, counts_bytes=False),
                Way("adb's server", environment),
            )
            daemons = {"daemon": adbd.pid, "server": server}
            yield Device(serial, adbd.path("/"), inside, environment, ways, daemons, {"device": "adbd 34.0.5"})


@contextmanager
def _adb_server(inside: Sequence[str], serial: str, port: int) -> Iterator[tuple[dict[str, str], int]]:
    """A server that has connected to the device: its environment and process id."""
    environment = {"ANDROID_ADB_SERVER_PORT": str(port), "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553"}
    whole = {**os.environ, **environment}
    command = [*inside, "adb", "nodaemon", "server"]
    process = subprocess.Popen(command, env=whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            done = subprocess.run([*inside, "adb", "connect", serial], env=whole, capture_output=True, text=True)
            if "connected to" in done.stdout:
                break
            time.sleep(0.2)
        else:
            sys.exit(f"error: adb connect {serial}: {done.stdout or done.stderr}")
        yield environment, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _peak_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
