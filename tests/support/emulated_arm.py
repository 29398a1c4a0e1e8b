"""Programs for ARM on this computer, with qemu: what they compute, never how fast."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from debian import Unavailable, UnpackedPackages

from toolkit.runtime.weight_cache import default_directory

SYSROOT = Path("/usr/aarch64-linux-gnu")
NEW_QEMU = UnpackedPackages("qemu-user-10", "trixie", ("qemu-user",), with_dependencies=False)
CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4

"""
"""An ARM's /proc/cpuinfo: qemu before version 10 shows the host's, on which XNNPACK fails."""


def emulated_arm(cpu: str, tmp_path: Path) -> list[str]:
    """The command that runs an ARM program on this CPU; skips the test without qemu and ARM's C library.

    Before version 10 qemu computes the products of int8 matrices wrongly that the CPU `max` has: a prefill's logits
    differed by 4.6, and with version 10 by 0.06. So that CPU gets Debian's qemu 10 where this system's is older.
    """
    if not (SYSROOT / "lib" / "libstdc++.so.6").exists():
        pytest.skip("needs libc6-arm64-cross and libstdc++6-arm64-cross")
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is not None and _major(found) >= 10:
        return ["env", f"QEMU_CPU={cpu}", found, "-L", str(SYSROOT)]
    if cpu == "max":
        try:
            return ["env", f"QEMU_CPU={cpu}", str(NEW_QEMU.fetch() / "usr/bin/qemu-aarch64"), "-L", str(SYSROOT)]
        except Unavailable as error:
            pytest.skip(str(error))
    if found is None or shutil.which("bwrap") is None:
        pytest.skip("needs qemu-user-static and bubblewrap")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    bound = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(cpuinfo), "/proc/cpuinfo"]
    if subprocess.run([*bound, "true"], capture_output=True).returncode:
        pytest.skip("bubblewrap may not make namespaces here")
    return [*bound, "--setenv", "QEMU_CPU", cpu, found, "-L", str(SYSROOT)]


def _major(qemu: str) -> int:
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)", said)
    return int(version[1]) if version else 0


def arm_library() -> Path:
    """libLiteRt.so for ARM Linux, from the wheel of the installed version, downloaded by pip once."""
    from importlib.metadata import version

    name = f"ai-edge-litert=={version('ai-edge-litert')}"
    folder = default_directory().parent / "gemma-edge-tests" / name
    library = folder / "ai_edge_litert" / "libLiteRt.so"
    if not library.is_file():
        options = ("--no-deps", "--only-binary=:all:", "--python-version=3.12", "--platform=manylinux_2_27_aarch64")
        command = [sys.executable, "-m", "pip", "download", "-q", name, *options, "-d", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"needs {name} for ARM")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            archive.extract("ai_edge_litert/libLiteRt.so", folder)
    return library
