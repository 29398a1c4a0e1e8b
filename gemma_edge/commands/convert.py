"""`gemma-edge convert`: converts a checkpoint to a bundle that has passed the quality gate."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from converters.convert import Conversion
from converters.families import recipe_names
from converters.request import DEFAULT_CONTEXT
from converters.verify import VerifyReport
from gemma_edge.api.convert import convert
from gemma_edge.options.checkpoints import add_checkpoint_arguments
from gemma_edge.options.drafter import add_drafter_arguments, drafter_bars
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.session import add_machine_arguments, given_machine_option, positive, session_settings
from gemma_edge.options.towers import add_tower_arguments
from gemma_edge.options.unused import refuse_unused
from gemma_edge.terminal import Terminal, one_line, table
from gemma_edge.words.drafter import drafter_text
from gemma_edge.words.quality import gate_bars, report_text
from toolkit.base.errors import QualityError, UsageError
from toolkit.bundle.ple_shards import DEFAULT_SHARD_BYTES, ple_elements
from toolkit.drafting.make import FIT
from toolkit.quant.recipe import SEARCHES
from toolkit.results.quantities import bytes_text, count_text
from toolkit.runtime.memory import peak_rss_bytes
from toolkit.tflite.target import CPU

EXAMPLES = (
    "gemma-edge convert google/gemma-3n-E2B-it -o e2b",
    "gemma-edge convert path/to/E4B -o elastic --sizes E4B,E2B --quant int4",
    "gemma-edge convert path/to/E4B -o three --budget 3GB --report three.html",
    "gemma-edge convert google/gemma-3n-E2B-it -o precise --quant int4 --calibrate",
    "gemma-edge convert google/gemma-3n-E2B-it -o eyes --vision-quant recipe.json --calibrate-media path/to/photos",
    "gemma-edge convert google/gemma-3n-E2B-it -o mixed --bytes-per-token 1.2GB",
    "gemma-edge convert google/gemma-3n-E2B-it -o tuned --adapter path/to/adapter",
    "gemma-edge convert path/to/E4B -o words --groups text",
    "gemma-edge convert google/gemma-3n-E2B-it -o fast --quant int4 --drafter fit",
    "gemma-edge convert google/gemma-4-E2B-it -o fast --drafter google/gemma-4-E2B-it-assistant",
    "gemma-edge convert path/to/E4B -o ears --groups text,audio --audio-quant int4 --audio-lengths 5,30",
    "gemma-edge convert path/to/E4B -o own --slice own.json --quant recipe.json --ple-quant int4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="the directory of a checkpoint, or a Hugging Face id, as owner/name or owner/name@revision",
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True, help="the directory to write")
    add_checkpoint_arguments(parser, "a LoRA adapter of PEFT or mlx-lm to merge into the checkpoint")
    add_force_option(parser, "a directory that is not a bundle, or a report that is not a gemma-edge page")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--sizes", metavar="A[,B...]", type=_names,
        help="MatFormer sizes by name; the first is the bundle's default (gemma-edge inspect lists them; default: the "
        "whole model)",
    )  # fmt: skip
    sizes.add_argument("--slice", metavar="FILE", type=Path, help="a custom size: docs/formats/matformer.md")
    sizes.add_argument(
        "--budget",
        metavar="3GB|3.0B",
        help="choose the best size that fits into this much memory, or has at most so many effective parameters",
    )
    parser.add_argument(
        "--quant", metavar="RECIPE",
        help=f"recipe: {', '.join(recipe_names('text'))} (int4-small for Gemma 3n only), or a file as in "
        "docs/formats/recipe.md (default: int8; for a checkpoint that is already quantised, qat, which copies its "
        "codes)",
    )  # fmt: skip
    parser.add_argument(
        "--ple-quant", choices=tuple(element.name for element in ple_elements()),
        help="element type of the per-layer embeddings (default: that of --quant; int8 if --quant is a file)",
    )  # fmt: skip
    add_tower_arguments(parser)
    parser.add_argument(
        "--search", choices=tuple(SEARCHES),
        help="how the text model's scales are chosen: mse tries several and keeps the one with the least squared "
        "error; absmax fits the largest weight, which is faster and less accurate (default: the recipe's, which is mse "
        "unless a file says otherwise)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", metavar="FILE|self", nargs="?", const=True, default=False,
        help="round the decoder's weights for the inputs that they get from a text, which takes minutes and leaves "
        "less error at the same size. The text is a built-in one in many languages; FILE, a few pages in UTF-8; or "
        "self, which the model writes first. An interrupted run resumes where it stopped (docs/calibration.md)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate-media", metavar="FOLDER", type=Path,
        help="round the matrices of the vision and audio towers for the inputs that they get from the pictures and "
        "sounds in this folder, a few hundred of them as the model will see and hear; without it the towers are "
        "rounded by themselves, also with --calibrate (docs/calibration.md)",
    )  # fmt: skip
    mix = parser.add_mutually_exclusive_group()
    mix.add_argument(
        "--bytes-per-token", metavar="1.2GB",
        help="choose int8, int4 or int2 for each matrix of the decoder, by what it is measured to cost, so that a "
        "token reads at most so many bytes of weights; calibrates, which takes minutes (docs/calibration.md)",
    )  # fmt: skip
    mix.add_argument(
        "--kl", metavar="0.01", type=float,
        help="the same, for the fewest bytes with a mean KL divergence from the checkpoint of at most so many nats",
    )  # fmt: skip
    parser.add_argument(
        "--context", metavar="N", type=positive, default=DEFAULT_CONTEXT,
        help="positions in the KV cache (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--prefill", metavar="N[,N...]", type=_lengths, default=(),
        help="how many tokens a prefill processes at once (default: those of "
        f"{','.join(map(str, CPU.prefill_sizes))} that fit the context)",
    )  # fmt: skip
    parser.add_argument(
        "--shard-mb", metavar="MB", type=positive, default=DEFAULT_SHARD_BYTES >> 20,
        help="maximum size in MiB of a file of per-layer embeddings (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--draft-tokens", metavar="N", type=positive,
        help="add the signatures that `run --speculative` needs, which check N drafted tokens in one step "
        "(default: none; 4 suits int8: docs/speculative.md)",
    )  # fmt: skip
    add_drafter_arguments(parser, "the bundle")
    parser.add_argument(
        "--report", metavar="FILE.html", type=Path,
        help="also write an HTML page: groups, bytes per token, what the quality gate found, and what each size needs",
    )  # fmt: skip
    parser.add_argument("--no-verify", action="store_true", help="skip the short quality check")
    add_machine_arguments(parser)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0; QualityError for a bundle that fails the gate, which is not written."""
    if arguments.no_verify:
        used = ("threads", "weight_cache") if arguments.drafter == FIT else ()
        if (option := given_machine_option(arguments, used=used)) is not None:
            refuse_unused(option, True, "with --no-verify")

    def show_failure(report: VerifyReport) -> None:
        if not report.passed:
            terminal.note(report_text(report))

    with (
        terminal.bar("download") as downloaded,
        terminal.bar("calibrate", "%") as calibrated,
        terminal.bar("convert") as show,
        drafter_bars(terminal) as drafting,
        gate_bars(terminal) as judged,
    ):
        try:
            result = convert(
                arguments.checkpoint,
                arguments.output,
                revision=arguments.revision,
                adapters=arguments.adapters,
                quant=arguments.quant,
                ple_quant=arguments.ple_quant,
                vision_quant=arguments.vision_quant,
                audio_quant=arguments.audio_quant,
                search=arguments.search,
                calibrate=arguments.calibrate,
                calibration_media=arguments.calibrate_media,
                bytes_per_token=arguments.bytes_per_token,
                kl=arguments.kl,
                groups=arguments.groups,
                sizes=arguments.sizes or (),
                slice_file=arguments.slice,
                budget=arguments.budget,
                context=arguments.context,
                prefill_sizes=arguments.prefill,
                shard_mb=arguments.shard_mb,
                audio_lengths=arguments.audio_lengths,
                draft_tokens=arguments.draft_tokens,
                drafter=arguments.drafter,
                drafter_tokens=arguments.drafter_tokens,
                verify=not arguments.no_verify,
                report=arguments.report,
                force=arguments.force,
                session=session_settings(arguments),
                progress=show,
                calibration_progress=calibrated,
                gate_progress=judged,
                download_progress=downloaded,
                drafter_progress=drafting,
                on_report=show_failure,
            )
        except QualityError as error:
            remedy = f"{error.remedy}, or keep it with --no-verify"
            raise QualityError(
                error.place, file=error.file, found=error.found, wanted=error.wanted, remedy=remedy
            ) from error
    terminal.result(_as_json(result, arguments.report), _as_text(result))
    return 0


def _as_json(result: Conversion, report: Path | None) -> dict[str, object]:
    """The object of `convert --json`."""
    groups = result.manifest.groups.items()
    return {
        "bundle": str(result.path),
        "report": None if report is None else str(report),
        "seconds": result.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "sizes": list(result.manifest.sizes),
        "groups": {
            name: {"files": list(group.files), "bytes": group.bytes, "parameters": group.parameters}
            for name, group in groups
        },
        "calibration_media": None if result.calibration_media is None else dataclasses.asdict(result.calibration_media),
        "drafter": None if result.manifest.drafter is None else dataclasses.asdict(result.manifest.drafter),
        "verify": None if result.report is None else result.report.to_json(),
        "prompts": None if result.prompts is None else dataclasses.asdict(result.prompts),
    }


def _as_text(result: Conversion) -> str:
    groups = result.manifest.groups
    rows = [[name, count_text(group.parameters), bytes_text(group.bytes)] for name, group in groups.items()]
    took = f"{result.seconds:.1f} s, peak memory {bytes_text(peak_rss_bytes())}"
    lines = [table(["group", "parameters", "bytes"], rows), ""]
    if result.manifest.drafter is not None:
        lines += [drafter_text(result.manifest.drafter), ""]
    if result.report is not None:
        lines += [report_text(result.report), ""]
    return "\n".join([*lines, one_line(f"{result.path}: {', '.join(result.manifest.sizes)} in {took}")])


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UsageError(found=repr(text), wanted="names separated by commas, each once")
    return names


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))
