"""The runner that times reads of per-layer embedding rows with the flash probe."""

from device_harness.runners.interface import Runner, Workload
from device_harness.runners.spec import RunnerOptions, RunnerRequest, RunnerSpec


def _make(request: RunnerRequest) -> Runner:
    from device_harness.runners.flash_probe.runner import FlashProbeRunner

    return FlashProbeRunner()


def _check(options: RunnerOptions, workload: Workload) -> None:
    from device_harness.runners.flash_probe.runner import check_workload

    check_workload(workload)


SPEC = RunnerSpec(
    name="flash_probe",
    about="reads per-layer embeddings from flash, as gemma-edge probe does",
    takes=("bundle",),
    has_lengths=False,
    check=_check,
    make=_make,
)
