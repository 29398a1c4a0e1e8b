"""Builds `native/bundle_runner`, the program that runs bundles with LiteRT's C library: for Android and for Linux.

It loads the library at run time, so it cannot be static. For Linux, zig links it against glibc 2.27, as old as LiteRT's
own wheel needs. For Android no NDK is needed: zig compiles for it with musl's headers, the program uses only functions
that are the same in Android's C library (ARCHITECTURE.md, "The runner on the device"), and it is linked against empty
libraries with the right names, as the NDK's libraries are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from device_harness.programs.build import (
    Architecture,
    NativeProgram,
    build_once,
    compiler,
    compiler_version,
    described_program,
)
from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.weight_cache import default_directory

System = Literal["android", "linux"]

BUNDLE_RUNNER = "bundle_runner"
ZIG_VERSION = "0.17.1"
"""The only version that builds it: the same sources give the same bytes, and its folder of headers is as expected."""

_NATIVE = Path(__file__).parent / "native"
_ANDROID = _NATIVE / "android"
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-fno-stack-protector")
_LINK_FLAGS = ("-Wl,-z,max-page-size=16384", "-Wl,-z,relro", "-Wl,-z,now")
_PRELOADED = {"aarch64": ("-ffixed-x18",), "x86_64": ()}
"""x18 is the register of Android's shadow call stack."""
_IMPORTS = {
    "libc": "__errno __libc_init _exit calloc clock_gettime close closedir dup dup2 flock fork free fsync futimens "
    "getauxval getpid getrusage lseek madvise malloc memchr memcmp memcpy memmove memset mkdir open opendir "
    "pipe poll posix_fadvise pread qsort read readdir realloc realpath rename sched_getaffinity signal snprintf stat "
    "statvfs strchr strcmp strcspn strerror strlen strncmp strrchr strspn strstr strtod strtoll strtoull uname unlink "
    "vsnprintf waitpid write",
    "libdl": "dlerror dlopen dlsym",
    "libm": "exp ldexpf",
}
"""The functions that the program may use of Android's libraries; linking fails for any other."""


def bundle_runner(
    system: System,
    architecture: Architecture,
    *,
    directory: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> NativeProgram:
    """Return the program, and build it first if it is not in `directory` (None: the user's cache).

    EnvironmentFault if the compiler is missing, has another version, or fails. `say` is called when a build begins.
    """
    version = _required_version()
    name = f"{BUNDLE_RUNNER}-{system}-{architecture}-{_key(version, system, architecture)}"
    path = (directory or default_directory()) / "native" / name
    build_once(path, partial(_build, system, architecture), f"{BUNDLE_RUNNER} for {architecture} {system}", say)
    return described_program(BUNDLE_RUNNER, architecture, path)


def sources() -> tuple[Path, ...]:
    """The C files of the program."""
    return tuple(sorted((_NATIVE / BUNDLE_RUNNER).glob("*.c")))


def _required_version() -> str:
    version = compiler_version()
    if version != ZIG_VERSION:
        remedy = f"pip install ziglang=={ZIG_VERSION}"
        raise EnvironmentFault("ziglang", found=version, wanted=ZIG_VERSION, remedy=remedy)
    return version


def _key(version: str, system: System, architecture: Architecture) -> str:
    """A short hash of everything that the program depends on."""
    digest = hashlib.sha256()
    headers = (*(_NATIVE / BUNDLE_RUNNER).glob("*.h"), *_NATIVE.glob("*.h"))
    for path in (*sources(), *sorted(headers), *sorted(_ANDROID.iterdir()), Path(__file__)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update("\0".join((version, system, architecture)).encode())
    return digest.hexdigest()[:16]


def _build(system: System, architecture: Architecture, target: Path) -> None:
    with compiler() as compile_with:
        if system == "linux":
            words = ("-target", f"{architecture}-linux-gnu.2.27", *_FLAGS, *_LINK_FLAGS, "-lm", "-ldl")
            compile_with(*words, "-o", str(target), *map(str, sources()))
        else:
            _build_for_android(compile_with, architecture, target)


def _build_for_android(compile_with: Callable[..., None], architecture: Architecture, target: Path) -> None:
    machine = ("-target", f"{architecture}-linux-android", *_PRELOADED[architecture])
    with tempfile.TemporaryDirectory(prefix="gemma-edge-build-") as folder:
        libraries = [_stub_library(compile_with, machine, Path(folder), name) for name in _IMPORTS]
        linking = ("-nostdlib", "-pie", "-Wl,--dynamic-linker=/system/bin/linker64", *_LINK_FLAGS)
        words = (*machine, *_headers(architecture), *_FLAGS, "-fPIE", *linking, "-o", str(target))
        compile_with(*words, *map(str, (*sources(), _ANDROID / "start.c", *libraries)))


def _stub_library(compile_with: Callable[..., None], machine: Iterable[str], folder: Path, name: str) -> Path:
    """Build an empty library with the name, version and functions of one of Android's."""
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text("".join(f"void {function}(void) {{}}\n" for function in _IMPORTS[name].split()), encoding="ascii")
    naming = (f"-Wl,-soname,{name}.so", f"-Wl,--version-script={_ANDROID / 'libc.map'}")
    compile_with(
        *machine, "-shared", "-nostdlib", "-fPIC", "-w", "-fno-builtin", *naming, "-o", str(library), str(source)
    )
    return library


def _headers(architecture: Architecture) -> list[str]:
    """Musl's headers as zig has them, with Android's name for the place of errno."""
    found = importlib.util.find_spec("ziglang")
    assert found is not None and found.origin is not None, "its version was asked for before"
    library = Path(found.origin).parent / "lib"
    kernel = "x86" if architecture == "x86_64" else architecture
    names = (f"{architecture}-linux-musl", "generic-musl", f"{kernel}-linux-any", "any-linux-any")
    folders = [library / "include", *(library / "libc" / "include" / name for name in names)]
    options = [word for folder in folders for word in ("-isystem", str(folder))]
    return ["-nostdinc", *options, "-D__errno_location=__errno"]
