"""The runner that times reads of per-layer embedding rows with the flash probe."""

from device_harness.runners.interface import Runner
from device_harness.runners.spec import RunnerRequest, RunnerSpec


def _make(request: RunnerRequest) -> Runner:
    from device_harness.runners.flash_probe.runner import FlashProbeRunner

    return FlashProbeRunner()


SPEC = RunnerSpec(
    name="flash_probe",
    about="reads per-layer embeddings from flash, as gemma-edge probe does",
    takes=("bundle",),
    make=_make,
)
