"""The runners for Google's LiteRT-LM engine: its two programs and its Python package, which share a parser."""

from device_harness.runners.interface import Runner, Workload
from device_harness.runners.program_options import PROGRAM_OPTIONS
from device_harness.runners.spec import RunnerOptions, RunnerRequest, RunnerSpec


def _make_python(request: RunnerRequest) -> Runner:
    from device_harness.runners.litert_lm.python_runner import LiteRtLmPythonRunner

    return LiteRtLmPythonRunner()


def _make_advanced_main(request: RunnerRequest) -> Runner:
    from device_harness.runners.litert_lm.runner import ADVANCED, make_runner

    return make_runner(request, ADVANCED)


def _make_main(request: RunnerRequest) -> Runner:
    from device_harness.runners.litert_lm.runner import PLAIN, make_runner

    return make_runner(request, PLAIN)


def _check_advanced_main(options: RunnerOptions, workload: Workload) -> None:
    from device_harness.runners.google_program import check_program

    check_program(ADVANCED_MAIN.name, options)


def _check_main(options: RunnerOptions, workload: Workload) -> None:
    from device_harness.runners.google_program import check_program

    check_program(MAIN.name, options)


PYTHON = RunnerSpec(
    name="litert_lm_python",
    about="Google's engine from Python, if the machine has Python with gemma-edge and litert-lm-api",
    takes=("litertlm",),
    default_for=("litertlm",),
    make=_make_python,
)
ADVANCED_MAIN = RunnerSpec(
    name="litert_lm_advanced_main",
    about="Google's program for its engine, pushed to the device",
    takes=("litertlm",),
    default_on_phones=("litertlm",),
    options=PROGRAM_OPTIONS,
    check=_check_advanced_main,
    make=_make_advanced_main,
)
MAIN = RunnerSpec(
    name="litert_lm_main",
    about="the same, with fewer options",
    takes=("litertlm",),
    options=PROGRAM_OPTIONS,
    check=_check_main,
    make=_make_main,
)
