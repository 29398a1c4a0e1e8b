"""Vulkan for tests of the GPU: the machine's own GPU, or a driver that computes on the processor.

    python tests/support/software_vulkan.py [DIRECTORY]

finds a driver or makes one, and prints its name, version and hash. Debian 12's own software driver, Mesa 22, lacks what
LiteRT's delegate needs; Mesa 25 of its backports is downloaded and unpacked, not installed. SwiftShader, which Chromium
brings along, serves too, but cannot compute in float16.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DRIVERS = ("mesa-vulkan-drivers", "libdrm2", "libdrm-amdgpu1")  # of the backports
LOADER = "libvulkan1"
DRIVERS_NEED = (
    "libllvm15", "libz3-4", "libedit2", "libxml2", "libicu72", "libbsd0", "libmd0", "libelf1", "libexpat1", "libffi8",
    "libwayland-client0", "libx11-xcb1", "libx11-6", "libxcb1", "libxcb-dri3-0", "libxcb-present0", "libxcb-randr0",
    "libxcb-shm0", "libxcb-sync1", "libxcb-xfixes0", "libxshmfence1", "libxau6", "libxdmcp6",
)  # fmt: skip
SOURCES = """Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
SWIFTSHADER = ("/usr/lib/chromium", "/usr/lib/chromium-browser")
HARDWARE_MANIFESTS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d")


@dataclass(frozen=True, slots=True)
class VulkanDriver:
    """A driver, and the variables that make a process use it and no other."""

    name: str
    version: str
    sha256: str
    environment: Mapping[str, str]
    float16: bool

    def __str__(self) -> str:
        return f"{self.name} {self.version}, sha256 {self.sha256[:16]}"


def find_driver(directory: Path | None = None) -> VulkanDriver | None:
    """The GPU of this machine, else what `make_mesa` left in the directory, else Chromium's SwiftShader, else None."""
    return _hardware() or _mesa(directory or default_directory()) or _swiftshader(directory or default_directory())


def default_directory() -> Path:
    """Where drivers are kept: `GEMMA_EDGE_VULKAN`, else a folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GEMMA_EDGE_VULKAN") or Path(cache) / "gemma-edge" / "software-vulkan")


def make_mesa(directory: Path) -> None:
    """Download Debian's packages of Mesa 25 and unpack them; CalledProcessError or OSError where that cannot be."""
    work = directory / "download"
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    (work / "debian.sources").write_text(SOURCES)
    options = {
        "Dir::Etc::SourceList": work / "debian.sources",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::Cache": work,
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 20,
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True, timeout=240)
    _unpack(apt, [*(f"{name}/bookworm-backports" for name in DRIVERS), LOADER], directory)
    if _missing(_library(directory)):
        _unpack(apt, DRIVERS_NEED, directory)
    manifest = {"file_format_version": "1.0.0", "ICD": {"api_version": "1.4.305", "library_path": "libvulkan_lvp.so"}}
    manifest["ICD"]["library_path"] = str(_library(directory))  # type: ignore[index]
    (directory / "lvp.json").write_text(json.dumps(manifest))
    shutil.rmtree(work)


def _unpack(apt: Sequence[str], packages: Sequence[str], directory: Path) -> None:
    work = directory / "download"
    subprocess.run([*apt, "download", *packages], check=True, cwd=work, timeout=240)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, directory / "root"], check=True)
        if package.name.startswith(DRIVERS[0]):
            (directory / "version").write_text(package.name.split("_")[1].replace("%3a", ":"))
        package.unlink()


def _library(directory: Path) -> Path:
    return directory.resolve() / "root/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so"


def _missing(library: Path) -> bool:
    """Whether the loader lacks something that the library needs."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    return "not found" in subprocess.run(["ldd", library], capture_output=True, text=True, env=environment).stdout


def _mesa(directory: Path) -> VulkanDriver | None:
    library, manifest = _library(directory), directory.resolve() / "lvp.json"
    if not (library.is_file() and manifest.is_file()) or _missing(library):
        return None
    environment = {**_only(manifest, directory), "LD_LIBRARY_PATH": str(library.parent)}
    version = (directory / "version").read_text()
    return VulkanDriver("Mesa llvmpipe", version, _sha256(library), environment, float16=True)


def _swiftshader(directory: Path) -> VulkanDriver | None:
    for folder in map(Path, SWIFTSHADER):
        library, manifest = folder / "libvk_swiftshader.so", folder / "vk_swiftshader_icd.json"
        if library.is_file() and manifest.is_file():
            environment = {**_only(manifest, directory), "LD_LIBRARY_PATH": str(folder)}
            return VulkanDriver("SwiftShader", "of Chromium", _sha256(library), environment, float16=False)
    return None


def _hardware() -> VulkanDriver | None:
    """A driver of the system that is not for software alone, where the machine has a GPU and Vulkan's loader."""
    if not any(Path("/dev/dri").glob("renderD*")) and not Path("/dev/nvidia0").exists():
        return None
    if ctypes.util.find_library("vulkan") is None:
        return None
    for manifest in _manifests():
        if not any(word in manifest.name for word in ("lvp", "swiftshader")):
            return VulkanDriver(f"hardware ({manifest.stem})", "", _sha256(manifest), {}, float16=True)
    return None


def _manifests() -> Iterator[Path]:
    for folder in HARDWARE_MANIFESTS:
        yield from sorted(Path(folder).glob("*.json"))


def _only(manifest: Path, directory: Path) -> dict[str, str]:
    """No other driver than this; Mesa wants a folder for its sockets too."""
    return {"VK_ICD_FILENAMES": str(manifest), "VK_DRIVER_FILES": str(manifest), "XDG_RUNTIME_DIR": str(directory)}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> int:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else default_directory()
    found = find_driver(directory)
    if found is None or not found.float16:
        try:
            make_mesa(directory)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"Mesa cannot be had: {error}", file=sys.stderr)
        found = find_driver(directory)
    print(f"Vulkan: {found}" if found else "Vulkan: no driver; tests of the GPU are skipped")
    return 0 if found else 3


if __name__ == "__main__":
    sys.exit(main())
