"""Options of the runners that are programs of Google's (`google_program.py` reads them)."""

from device_harness.runners.spec import RunnerOption

SERVER_VARIABLE = "GEMMA_EDGE_BINARY_SERVER"

PROGRAM_OPTIONS = (
    RunnerOption("binary", "FILE", "the program, its libraries (*.so) beside it"),
    RunnerOption(
        "binary_version",
        "VERSION",
        "without --binary: download the program that Google published under VERSION, such as latest, for the device, "
        "once, and keep it; with --binary: its version, for the record",
    ),
    RunnerOption(
        "binary_sha256",
        "[NAME=]HEX",
        "refuse the program, or the library NAME, if it has another hash; may be repeated (default: what the first "
        "download brought is recorded and trusted)",
        repeats=True,
    ),
    RunnerOption(
        "binary_server",
        "URL",
        f"a mirror of Google's storage to download from (default: {SERVER_VARIABLE}, else Google's own)",
    ),
    RunnerOption("runner_arg", "ARG", "one more argument for the program; may be repeated", repeats=True),
)
