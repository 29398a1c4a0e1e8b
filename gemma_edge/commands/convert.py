"""``gemma-edge convert``: from a checkpoint to a bundle that has passed the quality gate."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.convert import DEFAULT_CONTEXT, DEFAULT_PREFILL_SIZES, ConvertRequest, convert
from converters.gemma3n.recipes import RECIPES, ple_recipe
from converters.gemma3n.sizes.choose import choose_slice, find_slice, parse_budget, read_slice
from converters.gemma3n.sizes.matformer import Slice
from converters.verify import SHORT_TOKENS, VerifyReport
from gemma_edge.commands.gate import judge, report_text
from gemma_edge.options.session import add_machine_arguments, positive, session_settings
from gemma_edge.options.towers import add_tower_arguments, tower_recipes
from gemma_edge.terminal import Terminal, bytes_text, count_text, table
from toolkit.base.elements import ElementName, element_names
from toolkit.base.errors import QualityError
from toolkit.bundle.manifest import Manifest
from toolkit.bundle.ple_shards import DEFAULT_SHARD_BYTES, ple_elements
from toolkit.quant.recipe import SEARCHES, Recipe
from toolkit.runtime.memory import peak_rss_bytes
from toolkit.runtime.session import SessionSettings

EXAMPLES = (
    "gemma-edge convert google/gemma-3n-E2B-it -o e2b",
    "gemma-edge convert path/to/E4B -o elastic --sizes E4B,E2B --quant int4",
    "gemma-edge convert path/to/E4B -o three --budget 3GB",
    "gemma-edge convert path/to/E4B -o words --groups text",
    "gemma-edge convert path/to/E4B -o ears --groups text,ple,audio --audio-quant int4 --audio-lengths 5,30",
    "gemma-edge convert path/to/E4B -o own --slice own.json --quant recipe.json --ple-quant int4",
)
# The largest matrices of every layer: what a budget's bits a weight are taken from.
_TYPICAL_WEIGHT = "layers.0.mlp.gate_proj.weight"


@dataclass(frozen=True, slots=True)
class Converted:
    """A finished conversion; without a report it was not judged."""

    path: Path
    manifest: Manifest
    report: VerifyReport | None
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's directory, or a Hugging Face id")
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True, help="the directory to write")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--sizes", metavar="A[,B...]", type=_names,
        help="MatFormer sizes by name, the first the default one (see gemma-edge inspect; default: the whole model)",
    )  # fmt: skip
    sizes.add_argument("--slice", metavar="FILE", type=Path, help="a size of one's own: docs/formats/matformer.md")
    sizes.add_argument(
        "--budget", metavar="3GB|3.0B", help="the best size that takes so much memory, or so many effective parameters"
    )
    parser.add_argument(
        "--quant", metavar="RECIPE", default="int8",
        help=f"{', '.join(RECIPES['text'].names)}, or a file: docs/formats/recipe.md (default: int8)",
    )  # fmt: skip
    parser.add_argument(
        "--ple-quant", choices=tuple(element.name for element in ple_elements()),
        help="per-layer embeddings (default: as --quant; with a file int8)",
    )  # fmt: skip
    add_tower_arguments(parser)
    parser.add_argument(
        "--search", choices=tuple(SEARCHES),
        help="how the text's scales are chosen: mse tries some and keeps that of least squared error; absmax fits the "
        "largest weight, which is faster and less accurate (default: as the recipe says, and it mse)",
    )  # fmt: skip
    parser.add_argument(
        "--context", metavar="N", type=positive, default=DEFAULT_CONTEXT,
        help="positions in the KV cache (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--prefill", metavar="N[,N...]", type=_lengths, default=(),
        help="tokens a prefill takes at once (default: those of "
        f"{','.join(map(str, DEFAULT_PREFILL_SIZES))} that fit the context)",
    )  # fmt: skip
    parser.add_argument(
        "--shard-mb", metavar="MB", type=positive, default=DEFAULT_SHARD_BYTES >> 20,
        help="largest file of per-layer embeddings (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-verify", action="store_true", help="leave the short quality gate out")
    add_machine_arguments(parser)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0; a bundle that fails the gate is not written: QualityError."""
    recipe = RECIPES["text"].load(arguments.quant)
    ple_dtype = arguments.ple_quant or _ple_dtype(recipe)
    if arguments.budget is not None:
        parse_budget(arguments.budget)
    with open_checkpoint(arguments.checkpoint) as checkpoint:
        towers = tower_recipes(arguments, checkpoint)
        ple = ple_recipe(ple_dtype, checkpoint.config.ple_size)
        if arguments.search is not None:
            recipe, ple = recipe.with_search(arguments.search), ple.with_search(arguments.search)
        request = ConvertRequest(
            checkpoint=checkpoint,
            output=arguments.output,
            recipe=recipe,
            ple_recipe=ple,
            sizes=_sizes(arguments, checkpoint, recipe),
            context=arguments.context,
            prefill_sizes=arguments.prefill,
            shard_bytes=arguments.shard_mb << 20,
            vision_recipe=towers.vision,
            audio_recipe=towers.audio,
            audio_seconds=arguments.audio_lengths,
        )
        settings = None if arguments.no_verify else session_settings(arguments)
        result = convert_and_judge(request, terminal, settings)
    terminal.result(describe(result), _as_text(result))
    return 0


def convert_and_judge(request: ConvertRequest, terminal: Terminal, settings: SessionSettings | None) -> Converted:
    """Convert, and unless ``settings`` is None judge the bundle before it gets its name."""
    started = time.perf_counter()
    reports: list[VerifyReport] = []

    def accept(path: Path) -> None:
        if settings is None:
            return
        report = judge(path, request.checkpoint, terminal, settings, tokens=SHORT_TOKENS)
        reports.append(report)
        if not report.passed:
            terminal.note(report_text(report))
        try:
            report.require_passed(str(request.output))
        except QualityError as error:
            remedy = f"{error.remedy}, or keep it with --no-verify"
            raise QualityError(error.what, found=error.found, wanted=error.wanted, remedy=remedy) from error

    with terminal.bar("convert") as show:
        manifest = convert(request, accept=accept, progress=show)
    return Converted(request.output, manifest, reports[0] if reports else None, time.perf_counter() - started)


def describe(result: Converted) -> dict[str, object]:
    """The object of ``convert --json``."""
    groups = result.manifest.groups.items()
    return {
        "bundle": str(result.path),
        "seconds": result.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "sizes": list(result.manifest.sizes),
        "groups": {
            name: {"files": list(group.files), "bytes": group.bytes, "parameters": group.parameters}
            for name, group in groups
        },
        "verify": None if result.report is None else result.report.to_json(),
    }


def _as_text(result: Converted) -> str:
    groups = result.manifest.groups
    rows = [[name, count_text(group.parameters), bytes_text(group.bytes)] for name, group in groups.items()]
    took = f"{result.seconds:.1f} s, peak memory {bytes_text(peak_rss_bytes())}"
    lines = [table(["group", "parameters", "bytes"], rows), ""]
    if result.report is not None:
        lines += [report_text(result.report), ""]
    return "\n".join([*lines, f"{result.path}: {', '.join(result.manifest.sizes)} in {took}"])


def _sizes(arguments: argparse.Namespace, checkpoint: Checkpoint, recipe: Recipe) -> tuple[Slice, ...]:
    """The slices asked for; none stands for the whole checkpoint."""
    if arguments.sizes is not None:
        return tuple(find_slice(checkpoint.slices, name) for name in arguments.sizes)
    if arguments.slice is not None:
        return (read_slice(arguments.slice, checkpoint.config),)
    if arguments.budget is not None:
        return (choose_slice(checkpoint, arguments.budget, bits_per_weight=_bits_per_weight(recipe)),)
    return ()


def _bits_per_weight(recipe: Recipe) -> float:
    """Code and share of the scale, by the scheme of a feed-forward matrix."""
    scheme = next((rule.scheme for rule in recipe.rules if fnmatchcase(_TYPICAL_WEIGHT, rule.match)), None)
    if scheme is None:
        return 8.0
    # A block has one float16 scale; one scale a row is next to nothing.
    return scheme.element.bits + (16 / scheme.block_size if scheme.block_size else 0.0)


def _ple_dtype(recipe: Recipe) -> ElementName:
    built_in = recipe.name in RECIPES["text"].names
    return next((dtype for dtype in element_names() if built_in and recipe.name.startswith(dtype)), "int8")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted names with commas between, each once")
    return names


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))
