"""Lists devices, with the reason why any of them cannot be used, and connects to one by name."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from device_harness.adb import port as transport_port
from device_harness.adb.faults import ConnectionLost, DeviceFault, DeviceTimeout, ProtocolFault, Unauthorized
from device_harness.adb.link import Link
from device_harness.adb.port import Port, Signer, TcpPort
from device_harness.adb.server import AdbServer, ServerDevice, ServerLink, this_server
from device_harness.adb.transport import Endpoint, Transport
from toolkit.base.errors import EnvironmentFault, UsageError, system_reason
from toolkit.base.files import locked_directory

State = Literal["device", "unauthorized", "offline", "no permissions", "not found"]

DEFAULT_PORT = 5555
EMULATOR_PORTS = tuple(range(5555, 5587, 2))
"""The ports of Android emulators; adb's own client searches the same 16 ports."""

_LOCAL = "127.0.0.1"
_KNOCK_S = 0.3
_MOST_NAME = 80
_MOST_REASON = 200
_SIGNER_SUFFIX = ".adb_key"
_ALLOW = "unlock the device and allow this computer's key on its screen"
_LIKE_AN_ADDRESS = re.compile(r"([0-9]+\.){3}[0-9]+(:|$)|localhost:|emulator-")
"""A name that nothing but an address has; its port may be wrong."""
_WIRELESS = re.compile(r"adb-(.+)-[A-Za-z0-9]+\._adb-tls-connect\._tcp\.?", re.ASCII)
"""The name of a wirelessly paired device, which has its serial number (AOSP, daemon/adb_wifi.cpp)."""
_SERVER_STATES: dict[str, tuple[State, str]] = {
    "device": ("device", ""),
    "unauthorized": ("unauthorized", f"a device that does not know the key of adb's server; {_ALLOW}"),
    "authorizing": ("unauthorized", f"adb's server is waiting for the device; {_ALLOW}"),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A device, or the failure to reach one, at one address or USB port."""

    serial: str
    kind: Literal["tcp", "usb"]
    state: State
    reason: str = ""
    """Why it cannot be used, and what to do; empty if it can."""
    model: str = ""
    """The name that the device reports, up to 80 characters, untrusted."""
    product: str = ""
    via_server: bool = False
    """Whether adb's server holds it, and is used to reach it."""

    @property
    def is_usable(self) -> bool:
        return self.state == "device"


def list_devices(addresses: Sequence[str] = (), *, timeout: float = 3.0, scan: bool = True) -> tuple[Device, ...]:
    """List devices of adb's server, on USB, at `addresses` (HOST[:PORT]) and, with `scan`, on local emulator ports.

    `timeout`: seconds to wait for each answer; a device that waits for permission on its screen is unauthorized.
    """
    server, held = _held_devices()
    through = [] if server is None else [_listed(device) for device in held.values()]
    named = [endpoint for endpoint in map(tcp_endpoint, addresses) if _canonical(endpoint.serial) not in held]
    known = {*held, *(endpoint.serial for endpoint in named)}
    scanned = [endpoint for endpoint in (_open_local_ports() if scan else []) if endpoint.serial not in known]
    direct = [*named, *scanned, *(endpoint for endpoint in _usb_endpoints() if endpoint.serial not in known)]
    if not direct:
        return tuple(through)
    keys = signers()
    with ThreadPoolExecutor(len(direct)) as pool:
        probed = list(pool.map(partial(_probe, keys=keys, timeout=timeout), direct))
    strangers = {endpoint.serial for endpoint in scanned}
    # Leave out emulator ports on which a program other than adb listens.
    found = [device for device in probed if not (device.serial in strangers and device.state == "not found")]
    return (*through, *found)


def searches_usb() -> bool:
    """Whether devices on USB can be found: by adb's server or, without it, by libusb."""
    return transport_port.has_usb() or this_server().devices() is not None


def connect(name: str | None = None, *, auth_timeout: float = 30.0) -> Transport:
    """Connect to `name` (USB serial or place, HOST[:PORT], emulator-PORT), else to ANDROID_SERIAL or the only device.

    Goes through adb's server if one runs and has the device. UsageError, listing the devices, if there are several;
    EnvironmentFault, with the reason, if none can be used.
    """
    name = name or os.environ.get("ANDROID_SERIAL") or None
    endpoint = _only_endpoint() if name is None else find_endpoint(name)
    return Transport(endpoint, signers(), auth_timeout=auth_timeout).connect()


def find_endpoint(name: str) -> Endpoint:
    """Find a device by name: among those of adb's server first, then by USB serial, which may look like a host."""
    server, held = _held_devices()
    device = held.get(_canonical(name))
    is_address = _address(name) is not None
    # A device that the server could not reach may still be reachable from here.
    if server is not None and device is not None and (device.state == "device" or not is_address):
        return _server_endpoint(server, device)
    usb = _usb_endpoints()
    for endpoint in usb:
        if endpoint.serial == name:
            return endpoint
    if is_address or _LIKE_AN_ADDRESS.match(name):
        return tcp_endpoint(name)
    others = ", ".join([*held, *(endpoint.serial for endpoint in usb)]) or "none"
    raise UsageError(
        f"device {name}",
        found=f"no device of this name (connected: {others}), and not HOST:PORT",
        remedy=_usb_hint(),
    )


def device_key(name: str) -> str:
    """A name that all names of a device share, as far as they show that they are of one device.

    >>> device_key("emulator-5554"), device_key("adb-R58M123-vIqgVe._adb-tls-connect._tcp")
    ('127.0.0.1:5555', 'R58M123')
    """
    wireless = _WIRELESS.fullmatch(name)
    return _canonical(name) if wireless is None else wireless[1]


def require_distinct(names: Sequence[str]) -> None:
    """UsageError if a device is named twice, as far as the names show it."""
    for i, name in enumerate(names):
        before = next((other for other in names[:i] if device_key(other) == device_key(name)), None)
        if before is not None:
            also = "" if before == name else f": {before} and {name}"
            raise UsageError("--device", found=f"the same device twice{also}")


def tcp_endpoint(address: str) -> Endpoint:
    """The device at HOST, HOST:PORT, [IPV6]:PORT or emulator-PORT (the console's port, one below adb's).

    >>> tcp_endpoint("localhost").serial, tcp_endpoint("emulator-5554").serial
    ('localhost:5555', '127.0.0.1:5555')
    """
    name, console = address, address.removeprefix("emulator-")
    if console != address and console.isdigit():
        address = f"{_LOCAL}:{int(console) + 1 if _is_port(console) else console}"
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(DEFAULT_PORT)
    if not host or not _is_port(port) or not 0 < int(port) < 65536:
        raise UsageError("device address", found=repr(name), wanted="HOST:PORT, such as 192.168.1.20:5555")
    serial, host = f"{host}:{int(port)}", host.strip("[]")
    return Endpoint(serial, "tcp", lambda: Link(serial, TcpPort(host, int(port))))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def signers() -> tuple[Signer, ...]:
    """This computer's adb keys; if it has none, one that is made in the configuration folder.

    A key is read or made when a device asks for it, which many do not; UsageError then for a file that is no key,
    EnvironmentFault if none can be made.
    """
    return tuple(_Key(partial(_load, path)) for path in key_paths()) or (_Key(_made_key),)


def key_paths() -> tuple[Path, ...]:
    """The paths of private keys: adb's (~/.android/adbkey, then ADB_VENDOR_KEYS), then our own."""
    candidates = [Path(os.environ.get("ANDROID_USER_HOME") or Path.home() / ".android") / "adbkey"]
    for name in filter(None, os.environ.get("ADB_VENDOR_KEYS", "").split(os.pathsep)):
        path = Path(name)
        candidates += sorted(path.glob(f"*{_SIGNER_SUFFIX}")) if path.is_dir() else [path]
    candidates.append(_own_key())
    return tuple(dict.fromkeys(path for path in candidates if path.is_file()))


def describe(device: Device) -> str:
    """A device in one line: its name if it can be used, else why not."""
    return (
        f"{device.serial} ({device.model or device.kind})" if device.is_usable else f"{device.serial}: {device.reason}"
    )


def _only_endpoint() -> Endpoint:
    devices = list_devices()
    usable = [device for device in devices if device.is_usable]
    if not usable:
        found = "; ".join(describe(device) for device in devices) or "no device"
        raise EnvironmentFault("device", found=found, remedy=_usb_hint())
    if len(usable) > 1:
        found = ", ".join(describe(device) for device in usable)
        raise UsageError("device", found=f"{len(usable)}: {found}", wanted="one", remedy="name it with --device")
    return find_endpoint(usable[0].serial)


def _probe(endpoint: Endpoint, keys: Sequence[Signer], timeout: float) -> Device:
    """Connect and disconnect, to learn the device's state, which is named as adb names it."""
    device = partial(Device, endpoint.serial, endpoint.kind)
    try:
        with Transport(endpoint, keys, auth_timeout=timeout).connect(timeout=timeout) as transport:
            banner = transport.banner
    except Unauthorized as error:
        return device("unauthorized", _words(error))
    except DeviceTimeout as error:
        return device("offline", _words(error))
    except (ConnectionLost, ProtocolFault) as error:
        return device("not found", _words(error))
    except DeviceFault as error:
        return device("no permissions", _words(error))
    if banner.state != "device":
        return device("offline", f"it is in the state {banner.state[:_MOST_NAME]!r}; restart it")
    names = banner.properties
    model, product = (names.get(f"ro.product.{name}", "")[:_MOST_NAME] for name in ("model", "name"))
    return device("device", "", model, product)


def _words(error: DeviceFault) -> str:
    return f"{error.found}; {error.remedy}" if error.remedy else error.found


def _open_local_ports() -> list[Endpoint]:
    with ThreadPoolExecutor(len(EMULATOR_PORTS)) as pool:
        is_open = list(pool.map(_answers, EMULATOR_PORTS))
    return [tcp_endpoint(f"{_LOCAL}:{port}") for port, found in zip(EMULATOR_PORTS, is_open, strict=True) if found]


def _answers(port: int) -> bool:
    try:
        socket.create_connection((_LOCAL, port), timeout=_KNOCK_S).close()
    except OSError:
        return False
    return True


def _held_devices() -> tuple[AdbServer | None, dict[str, ServerDevice]]:
    """adb's server, if one runs, and its devices, by their names as `_canonical` gives them."""
    server = this_server()
    found = server.devices()
    if found is None:
        return None, {}
    held: dict[str, ServerDevice] = {}
    for device in found:
        # The server lists an emulator twice if `adb connect` was also given its address.
        held.setdefault(_canonical(device.serial), device)
    return server, held


def _canonical(name: str) -> str:
    """One name for a device that adb's server and this program may name differently.

    >>> _canonical("emulator-5554"), _canonical("localhost:5555"), _canonical("R58M123")
    ('127.0.0.1:5555', '127.0.0.1:5555', 'R58M123')
    """
    return _address(name) or name


def _address(name: str) -> str | None:
    """The one form of an address HOST:PORT; None for a name that is none, such as a place on USB.

    >>> _address("10.0.0.2"), _address("usb:1-2"), _address("usb:1:7"), _address("a:b")
    ('10.0.0.2:5555', None, None, None)
    """
    is_ipv4 = name.count(".") == 3 and name.replace(".", "").isdigit()
    is_on_usb = name.startswith("usb:") and not name.removeprefix("usb:").isdigit()
    if is_on_usb or not (":" in name or is_ipv4 or name == "localhost" or name.startswith("emulator-")):
        return None
    try:
        host, _, port = tcp_endpoint(name).serial.rpartition(":")
    except UsageError:
        return None
    return f"{_LOCAL if host == 'localhost' else host}:{port}"


def _server_endpoint(server: AdbServer, device: ServerDevice) -> Endpoint:
    kind: Literal["tcp", "usb"] = "usb" if device.is_usb else "tcp"
    return Endpoint(device.serial, kind, lambda: ServerLink(server, device.serial), via_server=True)


def _listed(device: ServerDevice) -> Device:
    """A device as the server lists it; its state is known without connecting."""
    state, reason = _SERVER_STATES.get(device.state, ("offline", f"adb's server says {device.state!r}"))
    if device.state.startswith("no permissions"):
        state, reason = "no permissions", f"adb's server says: {device.state[:_MOST_REASON]}"
    kind: Literal["tcp", "usb"] = "usb" if device.is_usb else "tcp"
    model, product = device.model[:_MOST_NAME], device.product[:_MOST_NAME]
    return Device(device.serial, kind, state, reason, model, product, via_server=True)


def _usb_endpoints() -> list[Endpoint]:
    return [_usb_endpoint(serial) for serial, _ in transport_port.usb_devices()]


def _usb_endpoint(serial: str) -> Endpoint:
    """An endpoint that searches USB at each connection, since a restarted device has a new bus address."""

    def find() -> Port:
        for found, port in transport_port.usb_devices():
            if found == serial:
                return port
        raise ConnectionLost(serial, found="no such device on USB", remedy="check the cable")

    return Endpoint(serial, "usb", lambda: Link(serial, find()))


def _usb_hint() -> str:
    if not transport_port.has_usb():
        return "for USB, run adb start-server, or pip install 'gemma-edge[usb]'; over a network, name HOST:PORT"
    return "run gemma-edge devices"


def _own_key() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "gemma-edge" / "adbkey"


def _made_key() -> Signer:
    try:
        return _load(_make_own_key())
    except OSError as error:
        remedy = "run adb keygen ~/.android/adbkey"
        raise EnvironmentFault(file=_own_key(), found=f"not made: {system_reason(error)}", remedy=remedy) from error


def _make_own_key() -> Path:
    """Make a key for this computer, unless another thread or process has just made it; never half-written."""
    path = _own_key()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked_directory(path.parent, exclusive=True):
        if not path.is_file():
            # Only its owner can enter this directory, so nobody else can read the key at any moment.
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                made = Path(scratch) / path.name
                transport_port.generate_key(made)
                made.chmod(0o600)
                os.replace(f"{made}.pub", f"{path}.pub")
                os.replace(made, path)
    return path


class _Key:
    """A private key that is loaded with its first use."""

    def __init__(self, load: Callable[[], Signer]) -> None:
        self._load = load

    @cached_property
    def _signer(self) -> Signer:
        return self._load()

    def Sign(self, data: bytes) -> bytes:
        return self._signer.Sign(data)

    def GetPublicKey(self) -> str | bytes:
        return self._signer.GetPublicKey()


def _load(path: Path) -> Signer:
    try:
        return transport_port.load_signer(path)
    except (ValueError, TypeError, OSError) as error:
        remedy = "remove it, or take its path out of ADB_VENDOR_KEYS"
        raise UsageError(file=path, found=f"not an RSA key in PEM ({error})", remedy=remedy) from error
