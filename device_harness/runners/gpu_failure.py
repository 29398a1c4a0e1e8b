"""Tells the crash of a process in a GPU's driver from other ends of a process."""

from __future__ import annotations

from device_harness.adb.shell import fault_signal
from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.backends.gpu.log import driver_fault


def read_gpu_failure(output: str, exit_code: int) -> EnvironmentFault | None:
    """The error for a process on the GPU that crashed with a signal; None if it ended in another way."""
    signal = fault_signal(exit_code)
    return None if signal is None else driver_fault(output, f"with signal {signal}")
