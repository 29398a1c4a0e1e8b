"""The options of runners that run Google's programs; `google_program.py` reads them."""

from device_harness.runners.spec import RunnerOption

SERVER_VARIABLE = "GEMMA_EDGE_BINARY_SERVER"

PROGRAM_OPTIONS = (
    RunnerOption("binary", "FILE", "the program, with its libraries (*.so) in the same folder"),
    RunnerOption(
        "binary_version",
        "VERSION",
        "without --binary: the published version of Google's program to download once for the device, such as latest; "
        "with --binary: its version, for the record",
    ),
    RunnerOption(
        "binary_sha256",
        "[NAME=]HEX",
        "fail if the program, or the library NAME, has another hash; may be repeated (default: trust the first "
        "download, and record its hash)",
        repeats=True,
    ),
    RunnerOption(
        "binary_server",
        "URL",
        f"a mirror of Google's storage to download from (default: {SERVER_VARIABLE}, else Google's own)",
    ),
    RunnerOption("runner_arg", "ARG", "an additional argument for the program; may be repeated", repeats=True),
)
