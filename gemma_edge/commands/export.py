"""`gemma-edge export`: writes a bundle as one .litertlm."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemma_edge.api.export import export
from gemma_edge.options.drafter import add_drafter_arguments, drafter_bars
from gemma_edge.options.groups import group_names
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.session import natural, number
from gemma_edge.terminal import Terminal, one_line
from toolkit.base.activations import ACTIVATIONS
from toolkit.litertlm.export import TARGETS
from toolkit.litertlm.schema import MODEL_TYPES
from toolkit.results.quantities import bytes_text

EXAMPLES = (
    "gemma-edge export BUNDLE -o model.litertlm",
    "gemma-edge export BUNDLE -o small.litertlm --size E2B",
    "gemma-edge export BUNDLE -o words.litertlm --groups text",
    "gemma-edge export BUNDLE -o model.litertlm --model-type gemma3n",
    "gemma-edge export BUNDLE -o exact.litertlm --activations fp32",
    "gemma-edge export BUNDLE -o phone.litertlm --target gpu",
    "gemma-edge export BUNDLE -o fast.litertlm --drafter fit",
    "gemma-edge export BUNDLE -o fast.litertlm --drafter google/gemma-4-E2B-it-assistant",
    "gemma-edge export BUNDLE -o model.litertlm --temperature 0.7 --top-k 40 --top-p 0.9",
    "gemma-edge export BUNDLE -o model.litertlm --sign key.pem",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a directory written by gemma-edge convert")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the .litertlm file to write")
    add_force_option(parser, "a file that gemma-edge did not export")
    parser.add_argument("--size", metavar="NAME", help="the size to export (default: the bundle's default size)")
    parser.add_argument(
        "--groups", metavar="NAME[,...]", type=group_names,
        help="parameter groups to export: text, vision, audio, drafter; text includes its embeddings (default: all "
        "that the bundle has)",
    )  # fmt: skip
    parser.add_argument(
        "--model-type", choices=MODEL_TYPES,
        help="how LiteRT-LM prepares images and sounds: generic_model as transformers does; gemma3n as for Google's "
        "own files, with different mel frames; gemma4 for text of Gemma 4 (default: generic_model; if only text is "
        "exported, gemma3n or gemma4)",
    )  # fmt: skip
    parser.add_argument(
        "--activations", choices=ACTIVATIONS,
        help="precision of LiteRT-LM on a GPU: fp16, whose range activations of images and sounds may exceed, or "
        "fp32 (default: fp32 for the encoders of images and sounds, otherwise the engine's choice, fp16)",
    )  # fmt: skip
    parser.add_argument(
        "--target", choices=TARGETS, default=TARGETS[0],
        help="gpu: each norm is one op of LiteRT-LM's GPU delegate, about 40 %% fewer ops on a GPU; cpu: the bundle's "
        "own graphs, which run on a GPU too (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--sign", metavar="KEY", type=Path,
        help="sign the file's hashes with the Ed25519 private key in this file, in PEM or OpenSSH format",
    )  # fmt: skip
    add_drafter_arguments(parser, "the file")
    group = parser.add_argument_group(
        "sampling",
        "for apps that set no sampler (default: the checkpoint's generation_config.json, else greedy)",
    )
    group.add_argument("--temperature", metavar="T", type=number, help="0 always chooses the most likely token")
    group.add_argument("--top-k", metavar="K", type=natural, help="draw from the K most likely tokens; 0: no limit")
    group.add_argument("--top-p", metavar="P", type=number, help="draw from the tokens that make up this probability")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0."""
    with (
        terminal.bar("download") as downloaded,
        drafter_bars(terminal) as drafting,
        terminal.bar("export") as show,
    ):
        result = export(
            arguments.bundle,
            arguments.output,
            size=arguments.size,
            groups=arguments.groups,
            model_type=arguments.model_type,
            activations=arguments.activations,
            target=arguments.target,
            sign=arguments.sign,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            force=arguments.force,
            drafter=arguments.drafter,
            drafter_tokens=arguments.drafter_tokens,
            progress=show,
            download_progress=downloaded,
            drafter_progress=drafting,
        )
    value = {
        "file": str(arguments.output),
        "bytes": result.bytes,
        "size": result.size,
        "groups": list(result.groups),
        "model_type": result.model_type,
    }
    text = f"{arguments.output}: {bytes_text(result.bytes)}, size {result.size}, {', '.join(result.groups)}"
    terminal.result(value, one_line(text))
    return 0
