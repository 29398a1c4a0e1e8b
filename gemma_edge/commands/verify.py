"""`gemma-edge verify`: a bundle's predictions against its checkpoint's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from converters.families import open_checkpoint
from converters.gate import judge, judge_towers
from converters.verify import LONG_TOKENS
from gemma_edge.commands.gate import gate_bars, report_text
from gemma_edge.options.groups import group_names
from gemma_edge.options.media import add_media_arguments
from gemma_edge.options.session import add_machine_arguments, positive, session_settings
from gemma_edge.terminal import Terminal
from toolkit.base.errors import UsageError
from toolkit.bundle.manifest_json import read_manifest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import read_media

EXAMPLES = (
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint",
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint --groups text",
    "gemma-edge verify BUNDLE --checkpoint google/gemma-3n-E2B-it --size E2B --tokens 4096",
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint --text chapter.txt --json",
    "gemma-edge verify BUNDLE --checkpoint path/to/checkpoint --image shots/*.jpg --audio words/*.wav",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory that gemma-edge convert made")
    parser.add_argument(
        "--checkpoint", metavar="DIR|ID", required=True, help="what the bundle was made from: a directory or an id"
    )
    parser.add_argument("--text", metavar="FILE", type=Path, help="text to predict (default: a built-in one)")
    parser.add_argument(
        "--tokens", metavar="N", type=positive, default=LONG_TOKENS,
        help="of the text, so many tokens (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--groups", metavar="NAME[,...]", type=group_names,
        help="towers to judge besides text; at full size they take minutes and 8 GB of scratch space in TMPDIR "
        "(default: all of the bundle; text: none)",
    )  # fmt: skip
    add_media_arguments(
        parser,
        images="images to judge the vision tower on (default: a drawn one)",
        sounds="sounds to judge the audio tower on (default: a made one); a long one is cut into pieces",
    )
    group = add_machine_arguments(parser)
    group.add_argument("--size", metavar="NAME", action="append", help="only this size; may be repeated (default: all)")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0 when every measure is in bounds, else 1."""
    manifest = read_manifest(arguments.bundle)
    for name in arguments.size or ():
        manifest.size(name)
    bundle = Bundle(arguments.bundle)
    groups = bundle.allowed_groups(arguments.groups)
    media = read_media(bundle, arguments.media, groups)
    text = None if arguments.text is None else _read_text(arguments.text)
    with open_checkpoint(arguments.checkpoint) as checkpoint:
        if checkpoint.fingerprint() != manifest.checkpoint.sha256:
            made_from = f"{manifest.checkpoint.name} with sha256 {manifest.checkpoint.sha256[:16]}..."
            terminal.warn(f"the bundle was not made from {arguments.checkpoint} but from {made_from}")
        settings = session_settings(arguments)
        with gate_bars(terminal) as progress:
            report = judge(
                arguments.bundle,
                checkpoint,
                settings,
                tokens=arguments.tokens,
                text=text,
                sizes=None if arguments.size is None else list(dict.fromkeys(arguments.size)),
                progress=progress,
            )
        with gate_bars(terminal, notes=True) as progress:
            towers = judge_towers(arguments.bundle, checkpoint, settings, groups=groups, media=media, progress=progress)
        report = replace(report, towers=towers)
    terminal.result(report.to_json(), report_text(report))
    return 0 if report.passed else 1


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(file=path, found=f"not UTF-8 text ({error})") from error
