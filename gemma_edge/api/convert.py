"""`gemma_edge.convert`: from a checkpoint to a bundle that has passed the quality gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from converters.convert import DEFAULT_CONTEXT, Conversion, ConvertRequest
from converters.convert import convert as convert_request
from converters.families import FAMILIES
from converters.family import Checkpoint, Family, RecipeChoice
from converters.gate import GateProgress, ShortGate
from converters.slices import Budget, Slice, parse_budget
from converters.verify import VerifyReport
from toolkit.base.errors import UsageError
from toolkit.base.files import Progress
from toolkit.bundle.ple_shards import DEFAULT_SHARD_BYTES
from toolkit.quant.scheme import Search
from toolkit.runtime.session import SessionSettings


def convert(
    checkpoint: Checkpoint | Path | str,
    output: Path | str,
    *,
    quant: RecipeChoice = "int8",
    ple_quant: str | None = None,
    vision_quant: RecipeChoice | None = None,
    audio_quant: RecipeChoice | None = None,
    search: Search | None = None,
    groups: Sequence[str] | None = None,
    sizes: Sequence[str | Slice] = (),
    slice_file: Path | str | None = None,
    budget: str | None = None,
    context: int = DEFAULT_CONTEXT,
    prefill_sizes: Sequence[int] = (),
    shard_mb: int = DEFAULT_SHARD_BYTES >> 20,
    audio_lengths: Sequence[float] = (),
    verify: bool = True,
    session: SessionSettings | None = None,
    families: Sequence[Family] = FAMILIES,
    progress: Progress | None = None,
    gate_progress: GateProgress | None = None,
    on_report: Callable[[VerifyReport], None] = lambda _: None,
) -> Conversion:
    """Write the bundle `output`, whole or not at all; unless told not to, judge it against its checkpoint first.

    checkpoint: a directory, a Hugging Face id, or an open checkpoint.
    quant: a recipe of the text's weights, its name or its file; of the towers, int8 unless named, or f32 beside f32.
    ple_quant: element type of the per-layer embeddings; None is as `quant`, beside a file int8.
    search: how scales are chosen, `mse` or `absmax`; None is as the recipes say.
    groups: `text`, which brings its embeddings along, and of `vision` and `audio` those wanted; None is all there are.
    sizes: MatFormer sizes, the first the default; empty is the whole model. Or in place of them a `slice_file`
        (docs/formats/matformer.md), or a `budget`: the best size in so much memory ("3GB") or parameters ("3.0B").
    context: positions in the KV cache. prefill_sizes: tokens a prefill takes at once; empty is what suits the context.
    shard_mb: largest file of per-layer embeddings, in MiB.
    audio_lengths: seconds of the longest sound of each audio encoder; empty is 1, 5, 10 and 30.
    session: how the bundle is run to be judged. families: those that the checkpoint may be of.
    progress: gets weight bytes, done and in all; `gate_progress` a size, percent done, and 100.
    on_report: told the verdict, before a bundle that fails is refused.

    CheckpointError, RecipeError, SliceError and UsageError for what cannot be converted so; QualityError for a bundle
    that fails, of which nothing is left.

    >>> import gemma_edge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = gemma_edge.convert(checkpoint, folder + "/bundle", sizes=["small"], context=32, verify=False)
    >>> list(result.manifest.sizes), result.report
    (['small'], None)
    """
    recipes = {"text": quant, "ple": ple_quant, "vision": vision_quant, "audio": audio_quant}
    request = ConvertRequest(
        checkpoint=checkpoint,
        output=Path(output),
        recipes={role: choice for role, choice in recipes.items() if choice is not None},
        search=search,
        groups=None if groups is None else tuple(groups),
        sizes=_sizes(sizes, slice_file, budget),
        context=context,
        prefill_sizes=tuple(prefill_sizes),
        shard_bytes=shard_mb << 20,
        audio_seconds=tuple(audio_lengths),
    )

    def gate(path: Path, opened: Checkpoint) -> VerifyReport:
        report = ShortGate(session, progress=gate_progress)(path, opened)
        on_report(report)
        return report

    return convert_request(request, families=families, gate=gate if verify else None, progress=progress)


def _sizes(
    sizes: Sequence[str | Slice], slice_file: Path | str | None, budget: str | None
) -> tuple[str | Slice, ...] | Path | Budget:
    if (len(sizes) > 0) + (slice_file is not None) + (budget is not None) > 1:
        raise UsageError("sizes", found="several of sizes, slice_file and budget", wanted="one of them")
    if slice_file is not None:
        return Path(slice_file)
    return tuple(sizes) if budget is None else parse_budget(budget)
