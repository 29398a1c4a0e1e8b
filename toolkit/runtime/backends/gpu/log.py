"""Finds in LiteRT's log which GPU is used, and why a graph was refused: LiteRT reports neither in another way."""

from __future__ import annotations

import re

from toolkit.base.errors import EnvironmentFault

PLACE = "--backend gpu"
_ADAPTER = re.compile(r"Selected adapter: (.+?), arch=")
_REFUSED = re.compile(r"Following operations are not supported by GPU delegate:\n((?:\w+: .*\n)+)")
_NO_GPU = "No adapters found"
_NO_DELEGATE = "GPU accelerator could not be loaded and registered"
_CPU_INSTEAD = "use --backend cpu"


def selected_adapter(log: str) -> str | None:
    r"""The name of the GPU, or of a driver that computes on the CPU; None if LiteRT has chosen none.

    >>> selected_adapter("I0 1 environment.cc:532] Selected adapter: llvmpipe (LLVM 15), arch=software, vendor=mesa\n")
    'llvmpipe (LLVM 15)'
    """
    found = _ADAPTER.search(log)
    return None if found is None else found[1]


def explained_refusal(log: str, refusal: EnvironmentFault) -> EnvironmentFault:
    """The error for a graph that LiteRT could not open on the GPU, with what the log adds to it."""
    if _NO_GPU in log:
        remedy = f"install the Vulkan driver of the GPU, or {_CPU_INSTEAD}"
        return EnvironmentFault(PLACE, found="no GPU that LiteRT can use on this machine", remedy=remedy)
    if _NO_DELEGATE in log:
        remedy = f"put LiteRT's libLiteRt*Accelerator.so beside the library, or {_CPU_INSTEAD}"
        found = "LiteRT's library has no delegate for GPUs, and none is beside it"
        return EnvironmentFault(PLACE, found=found, remedy=remedy)
    found = refusal.found
    if refused := _REFUSED.search(log):
        found = f"ops that the GPU's delegate refuses: {'; '.join(refused[1].splitlines())}"
    place = refusal.place or PLACE
    return EnvironmentFault(place, file=refusal.file, found=found, wanted=refusal.wanted, remedy=_CPU_INSTEAD)


def driver_fault(log: str, how: str) -> EnvironmentFault:
    """The error for a process that ended while it used the GPU; `how`: for example "with signal SIGABRT"."""
    adapter = selected_adapter(log)
    found = f"its process ended {how}" + (f", adapter {adapter}" if adapter else "")
    tail = " | ".join(line.strip() for line in log.splitlines()[-3:])
    remedy = f"update the GPU's driver, or {_CPU_INSTEAD} (the end of its log: {tail})"
    return EnvironmentFault(PLACE, found=found, remedy=remedy)
