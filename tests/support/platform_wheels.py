"""Asks the package index whether each dependency has a wheel for other systems: `nox -s wheels`. Installs nothing.

    python tests/support/platform_wheels.py [PYTHON_VERSION...]

Every dependency of the package, and what these need in turn. pip judges the conditions in their metadata for the system
that it runs on, so what a dependency needs on another system alone is not seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from paths import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SYSTEMS = {
    "macOS 12 on arm64": ["macosx_12_0_arm64"],
    "Windows on x86-64": ["win_amd64"],
    "Linux on x86-64": ["manylinux_2_17_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64"],
}
SOURCE_ONLY = {"adb-shell": ("pyasn1", "rsa")}
"""Dependencies that are published as source alone, in pure Python, and what they need in turn."""
USUAL = ("3.10", "3.13")


def dependencies() -> list[str]:
    """The requirements in pyproject.toml; for those without wheels, what they need."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = []
    for requirement in project["dependencies"]:
        name = next((name for name in SOURCE_ONLY if requirement.startswith(name)), None)
        found += SOURCE_ONLY[name] if name else [requirement]
    return found


def wheels(platforms: list[str], python: str) -> dict[str, str]:
    """The file of each package that pip would install; SystemExit with pip's words if one has none."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--only-binary=:all:", "--python-version", python, "--target", scratch, "--report", str(report)]
        for platform in platforms:
            command += ["--platform", platform]
        outcome = subprocess.run([*command, *dependencies()], capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise SystemExit(f"{', '.join(platforms)}, Python {python}: no wheel\n{outcome.stderr[-2000:]}")
        found = json.loads(report.read_bytes())["install"]
        return {item["metadata"]["name"]: item["download_info"]["url"].rpartition("/")[2] for item in found}


def main(versions: list[str]) -> None:
    for system, platforms in SYSTEMS.items():
        for python in versions or USUAL:
            found = wheels(platforms, python)
            native = sorted(file for file in found.values() if not file.endswith("-none-any.whl"))
            print(f"{system}, Python {python}: wheels of all {len(found)} packages, {len(native)} of them compiled:")
            print("\n".join(f"  {file}" for file in native))


if __name__ == "__main__":
    main(sys.argv[1:])
