"""`gemma-edge verify`: compares a bundle's predictions with its checkpoint's."""

from __future__ import annotations

import argparse
from pathlib import Path

from converters.verify import LONG_TOKENS
from gemma_edge.api.verify import verify
from gemma_edge.options.checkpoints import add_checkpoint_arguments
from gemma_edge.options.groups import group_names
from gemma_edge.options.media import add_media_arguments
from gemma_edge.options.session import add_machine_arguments, positive, session_settings
from gemma_edge.terminal import Terminal
from gemma_edge.words.quality import gate_bars, report_text
from toolkit.base.errors import UsageError
from toolkit.bundle.chat import MAX_PROMPT_CHARACTERS, read_bounded_text
from toolkit.runtime.media_prompt import TOWERS

EXAMPLES = (
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint",
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint --groups text",
    "gemma-edge verify BUNDLE --checkpoint google/gemma-3n-E2B-it --size E2B --tokens 4096",
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint --text chapter.txt --json",
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint --image shots/*.jpg --audio words/*.wav",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a directory written by gemma-edge convert")
    parser.add_argument(
        "--checkpoint",
        metavar="DIR|ID",
        required=True,
        help="the checkpoint that the bundle was made from: a directory or a Hugging Face id",
    )
    add_checkpoint_arguments(parser, "a LoRA adapter that was merged into it")
    parser.add_argument(
        "--text", metavar="FILE", type=Path, help="text to predict (default: a built-in one in 18 languages)"
    )
    parser.add_argument(
        "--tokens", metavar="N", type=positive, default=LONG_TOKENS,
        help="how many predictions to judge (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--groups", metavar="NAME[,...]", type=group_names,
        help="parameter groups to verify; text is always verified, and each tower takes minutes and 8 GB of temporary "
        "space in TMPDIR at full size (default: all that the bundle has)",
    )  # fmt: skip
    add_media_arguments(
        parser,
        several=True,
        images="images for verifying the vision tower (default: a generated one)",
        sounds="sounds for verifying the audio tower (default: a generated one); one longer than 30 s is split",
    )
    group = add_machine_arguments(parser)
    group.add_argument(
        "--size", metavar="NAME", action="append", help="verify only this size; may be repeated (default: all)"
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0 if all measures are within bounds, else 1."""
    files = {group: [file.source for file in arguments.media if file.group == group] for group in TOWERS}
    given = arguments.text
    text = None if given is None else read_bounded_text(given, UsageError, MAX_PROMPT_CHARACTERS)
    with (
        terminal.bar("download") as downloaded,
        gate_bars(terminal) as judged,
        gate_bars(terminal, notes=True) as towers_judged,
    ):
        report = verify(
            arguments.bundle,
            arguments.checkpoint,
            revision=arguments.revision,
            adapters=arguments.adapters,
            text=text,
            tokens=arguments.tokens,
            sizes=arguments.size,
            groups=arguments.groups,
            images=files["vision"],
            audio=files["audio"],
            session=session_settings(arguments),
            progress=judged,
            tower_progress=towers_judged,
            download_progress=downloaded,
        )
    terminal.result(report.to_json(), report_text(report))
    return 0 if report.passed else 1
