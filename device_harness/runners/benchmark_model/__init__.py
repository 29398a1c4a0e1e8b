"""The runner for Google's program benchmark_model, which times one signature of one graph."""

from device_harness.runners.interface import Runner, Workload
from device_harness.runners.program_options import PROGRAM_OPTIONS
from device_harness.runners.spec import RunnerOption, RunnerOptions, RunnerRequest, RunnerSpec

_SIGNATURE = RunnerOption(
    "signature",
    "FILE:NAME",
    "signatures to measure, such as text_decoder:decode or '*:prefill_*' (default: all)",
    repeats=True,
)


def _make(request: RunnerRequest) -> Runner:
    from device_harness.runners.benchmark_model.runner import make_runner

    return make_runner(request)


def _check(options: RunnerOptions, workload: Workload) -> None:
    from device_harness.runners.benchmark_model.runner import check_options

    check_options(options, workload)


SPEC = RunnerSpec(
    name="benchmark_model",
    about="Google's program for single graphs, run on each .tflite and signature of a bundle",
    takes=("bundle",),
    has_lengths=False,
    options=(*PROGRAM_OPTIONS, _SIGNATURE),
    check=_check,
    make=_make,
)
