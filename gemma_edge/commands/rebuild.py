"""`gemma-edge rebuild`: makes a bundle or a .litertlm again from its lock."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemma_edge.api.rebuild import rebuild
from gemma_edge.options.checkpoints import add_checkpoint_arguments
from gemma_edge.options.outputs import add_force_option
from gemma_edge.terminal import Terminal, one_line

EXAMPLES = (
    "gemma-edge rebuild BUNDLE --checkpoint google/gemma-3n-E2B-it -o again",
    "gemma-edge rebuild lock.json --checkpoint path/to/E4B -o again",
    "gemma-edge rebuild model.litertlm --checkpoint path/to/E4B -o again.litertlm",
    "gemma-edge rebuild BUNDLE --checkpoint google/gemma-4-E2B-it --drafter google/gemma-4-E2B-it-assistant -o again",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "lock", metavar="LOCK", type=Path,
        help="a bundle's lock.json; or a bundle's directory or a .litertlm, which contain a lock",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", metavar="CHECKPOINT", required=True,
        help="the checkpoint that it was made from: a directory, or a Hugging Face id",
    )  # fmt: skip
    add_checkpoint_arguments(parser, "a LoRA adapter that was merged into it")
    parser.add_argument(
        "-o", "--output", metavar="PATH", type=Path, required=True, help="the directory or the .litertlm to write"
    )
    parser.add_argument(
        "--calibrate", metavar="FILE", type=Path,
        help="the text that the bundle was calibrated with (default: the built-in one, or the file "
        "BUNDLE.calibration.json that convert wrote beside the bundle)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate-media", metavar="FOLDER", type=Path,
        help="the folder with the pictures and sounds that the bundle's towers were calibrated with",
    )  # fmt: skip
    parser.add_argument(
        "--drafter",
        metavar="DIR",
        action="append",
        default=[],
        help="the checkpoint of the drafter that the bundle was converted with, or a .litertlm exported: a directory "
        "or a Hugging Face id; where these are two, repeat it, the bundle's first",
    )
    add_force_option(parser, "a file or a directory that gemma-edge did not write")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0; QualityError if the bytes differ, and then nothing is written."""
    with (
        terminal.bar("download") as downloaded,
        terminal.bar("calibrate", "%") as calibrated,
        terminal.bar("rebuild") as show,
    ):
        result = rebuild(
            arguments.lock,
            arguments.output,
            checkpoint=arguments.checkpoint,
            revision=arguments.revision,
            adapters=arguments.adapters,
            calibrate=arguments.calibrate,
            calibration_media=arguments.calibrate_media,
            drafter=arguments.drafter,
            force=arguments.force,
            progress=show,
            calibration_progress=calibrated,
            download_progress=downloaded,
        )
    value = {"output": str(result.path), "files": dict(result.lock.files), "manifest": result.lock.manifest}
    terminal.result(value, one_line(f"{result.path}: the same bytes as {arguments.lock}"))
    return 0
