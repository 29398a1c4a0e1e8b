"""The runner for our own session, in a separate process."""

from device_harness.runners.interface import Runner
from device_harness.runners.spec import RunnerRequest, RunnerSpec


def _make(request: RunnerRequest) -> Runner:
    from device_harness.runners.session.runner import SessionRunner

    return SessionRunner()


SPEC = RunnerSpec(
    name="session",
    about="our own runtime, if the machine has Python with gemma-edge",
    takes=("bundle",),
    default_for=("bundle",),
    make=_make,
)
