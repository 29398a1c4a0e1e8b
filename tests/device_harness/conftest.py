"""Emulated devices, on free ports of 127.0.0.1, and connections to them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from adbd import Adbd, AdbdSettings, Peer, fetch
from debian import Unavailable
from waiting import PATIENCE_S

from device_harness.adb.devices import tcp_endpoint
from device_harness.adb.transport import Transport
from device_harness.emulator.device import Emulator, EmulatorSettings
from device_harness.machines.device import AdbDevice
from toolkit.runtime.weight_cache import default_directory

MakeDevice = Callable[[EmulatorSettings], Emulator]
Connect = Callable[[Peer], Transport]


@pytest.fixture
def make_device() -> Iterator[MakeDevice]:
    """Starts emulated devices that end with the test."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(Emulator(settings))


@pytest.fixture
def reach() -> Iterator[Connect]:
    """Connects to emulated devices, without keys."""
    with ExitStack() as stack:
        yield lambda device: stack.enter_context(Transport(tcp_endpoint(device.serial)).connect())


@pytest.fixture(scope="module")
def folder_device() -> Iterator[Emulator]:
    """One device for tests that leave no trace but files."""
    with Emulator(EmulatorSettings(isolation="folder")) as device:
        yield device


@pytest.fixture(scope="session")
def adbd_root() -> Path:
    """AOSP's adbd, unpacked."""
    try:
        return fetch()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def adbd(adbd_root: Path) -> Iterator[Adbd]:
    """AOSP's adbd, running, which lets everybody in."""
    programs = default_directory() / "native"
    programs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            device = stack.enter_context(Adbd(adbd_root, AdbdSettings(visible=(programs,))))
        except Unavailable as error:
            pytest.skip(str(error))
        yield device


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of an adb server of our own, which looks for no other device; it starts at the first use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "HOME": str(home),
        "ANDROID_ADB_SERVER_PORT": str(port),
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",
        "ADB_VENDOR_KEYS": "",
    }
    yield environment
    subprocess.run(["adb", "kill-server"], env=environment, capture_output=True, check=True)


@pytest.fixture(params=["emulator", pytest.param("adbd", marks=pytest.mark.full)])
def peer(request: pytest.FixtureRequest) -> Peer:
    """Our device, and AOSP's beside it for everything that is not ours alone."""
    found: Peer = request.getfixturevalue("folder_device" if request.param == "emulator" else "adbd")
    return found


@pytest.fixture
def transport(folder_device: Emulator, reach: Connect) -> Transport:
    return reach(folder_device)


@pytest.fixture
def machine(transport: Transport) -> AdbDevice:
    """The same device as a machine to measure on."""
    return AdbDevice(transport)


@pytest.fixture(params=["folder", "bubblewrap"])
def isolation(request: pytest.FixtureRequest) -> str:
    """Both ways a device keeps its programs."""
    kind: str = request.param
    if kind == "bubblewrap":
        if shutil.which("bwrap") is None:
            pytest.skip("needs bubblewrap (apt-get install bubblewrap)")
        with Emulator(EmulatorSettings()) as device:
            if not device.userland.is_isolated:
                pytest.skip("bubblewrap may not make namespaces here")
    return kind


@pytest.fixture(scope="module")
def new_adb(adbd_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """adb 34 of the same packages, which compresses: what a command for a device says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    # In Debian's own folders: it starts its server by its own path.
    base = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(adbd_root / "usr"), "/usr"]
    adb = [*base, "--setenv", "HOME", str(home), "/usr/bin/adb", "-P", str(port)]
    connected: set[str] = set()

    def run(*words: object) -> str:
        done = subprocess.run([*adb, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE_S)
        return done.stdout + done.stderr

    def on_device(device: Peer, *words: object) -> str:
        if device.serial not in connected:
            assert "connected" in run("connect", device.serial)
            connected.add(device.serial)
        return run("-s", device.serial, *words)

    yield on_device
    run("kill-server")
