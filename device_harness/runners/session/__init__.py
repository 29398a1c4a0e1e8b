"""The runner for our own session, in a separate process."""

from device_harness.runners.interface import Runner
from device_harness.runners.spec import RunnerOption, RunnerRequest, RunnerSpec


def _make(request: RunnerRequest) -> Runner:
    from pathlib import Path

    from device_harness.runners.session.runner import SessionRunner

    text = request.options.text("speculative")
    return SessionRunner(None if text is None else Path(text))


SPEC = RunnerSpec(
    name="session",
    about="our own runtime, if the machine has Python with gemma-edge",
    takes=("bundle",),
    default_for=("bundle",),
    make=_make,
    options=(
        RunnerOption(
            "speculative",
            "FILE",
            "decode speculatively after the text in FILE, in place of random tokens, and record how many drafts were "
            "right (for a bundle converted with --draft-tokens or --drafter)",
        ),
    ),
)
