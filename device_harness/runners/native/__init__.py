"""The runner for our program in C, which runs a bundle on devices without Python."""

from device_harness.runners.interface import Runner, Workload
from device_harness.runners.spec import RunnerOption, RunnerOptions, RunnerRequest, RunnerSpec


def _make(request: RunnerRequest) -> Runner:
    from device_harness.runners.native.runner import make_runner

    return make_runner(request)


def _check(options: RunnerOptions, workload: Workload) -> None:
    from device_harness.runners.native.runner import check_options

    check_options(options, workload)


SPEC = RunnerSpec(
    name="native",
    about="our own program in C with LiteRT's library, pushed to the device",
    takes=("bundle",),
    default_on_phones=("bundle",),
    options=(
        RunnerOption("library", "FILE", "LiteRT's library for the device (default: downloaded once by pip for arm64)"),
        RunnerOption(
            "library_version", "VERSION", "download this version of the library from Google's storage instead"
        ),
    ),
    check=_check,
    make=_make,
)
