"""`gemma_edge.convert`: converts a checkpoint to a bundle that has passed the quality gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from converters.assistant import AssistantChoice
from converters.calibration.media import read_calibration_media
from converters.calibration.mix import MixBudget
from converters.calibration.text import (
    CalibrationChoice,
    built_in_calibration_text,
    calibration_output,
    read_calibration_text,
)
from converters.convert import Conversion
from converters.convert import convert as convert_request
from converters.families import FAMILIES
from converters.family import Checkpoint, Family, RecipeChoice, StageProgress
from converters.gate import ShortGate
from converters.huggingface.adapters.choice import AdapterLike, adapter_choices
from converters.huggingface.hub.locate import with_revision
from converters.quality_record import QUALITY, write_quality
from converters.request import DEFAULT_CONTEXT, ConvertRequest
from converters.slices import Budget, Slice, parse_budget
from converters.verify import VerifyReport
from toolkit.base.environment import ENVIRONMENT, write_environment
from toolkit.base.errors import UsageError
from toolkit.base.files import Progress, write_bytes
from toolkit.base.outputs import Output
from toolkit.base.strict_json import shorten
from toolkit.bundle.lock import DrafterSettings
from toolkit.bundle.ple_shards import DEFAULT_SHARD_BYTES
from toolkit.drafting.make import Drafting, fit_settings
from toolkit.quant.scheme import Search
from toolkit.runtime.session import SessionSettings


def convert(
    checkpoint: Checkpoint | Path | str,
    output: Path | str,
    *,
    revision: str | None = None,
    adapters: Sequence[AdapterLike] = (),
    quant: RecipeChoice | None = None,
    ple_quant: str | None = None,
    vision_quant: RecipeChoice | None = None,
    audio_quant: RecipeChoice | None = None,
    search: Search | None = None,
    calibrate: Path | str | bool = False,
    calibration_media: Path | str | None = None,
    bytes_per_token: str | None = None,
    kl: float | None = None,
    groups: Sequence[str] | None = None,
    sizes: Sequence[str | Slice] = (),
    slice_file: Path | str | None = None,
    budget: str | None = None,
    context: int = DEFAULT_CONTEXT,
    prefill_sizes: Sequence[int] = (),
    shard_mb: int = DEFAULT_SHARD_BYTES >> 20,
    audio_lengths: Sequence[float] = (),
    draft_tokens: int | None = None,
    drafter: Path | str | None = None,
    drafter_tokens: int | None = None,
    verify: bool = True,
    report: Path | str | None = None,
    force: bool = False,
    session: SessionSettings | None = None,
    families: Sequence[Family] = FAMILIES,
    progress: Progress | None = None,
    calibration_progress: Progress | None = None,
    gate_progress: StageProgress | None = None,
    download_progress: Progress | None = None,
    drafter_progress: StageProgress = lambda _stage, _done, _total: None,
    on_report: Callable[[VerifyReport], None] = lambda _: None,
) -> Conversion:
    """Convert a checkpoint to the bundle `output`, complete or not at all; by default, only if it passes the gate.

    Beside it, `output`.environment.json records what it was made with, such as the version of NumPy, and
    `output`.quality.json what the gates found.

    checkpoint: a directory, a Hugging Face id, or an open checkpoint.
    revision: a branch, tag or commit of the Hugging Face id, which may also follow it, as in "owner/name@main".
    adapters: LoRA adapters that are merged into it, in this order: directories or Hugging Face ids, with "=0.5" at the
        end to merge them at half their strength (docs/fine_tunes.md).
    quant: the recipe for the text weights, by name or as a file; None for int8, or for a checkpoint that is already
        quantised, "qat", which copies its codes.
    vision_quant, audio_quant: the recipes for the towers; None for int8, or f32 if `quant` is f32.
    ple_quant: the element type of the per-layer embeddings; None for that of `quant`, or int8 if `quant` is a file.
    search: how scales are chosen, `mse` or `absmax`; None for what the recipes say.
    calibrate: round the decoder's weights for the inputs that they get from a text (docs/calibration.md): True for the
        built-in text, "self" for one that the model writes, or a text file. The text is kept beside the bundle, as
        `output`.calibration.json.
    calibration_media: round the matrices of the vision and audio towers for the inputs that they get from the pictures
        and sounds in this folder; None to round them by themselves.
    bytes_per_token, kl: choose int8, int4 or int2 for each matrix of the decoder, by what it is measured to cost: for
        the least divergence within so many bytes of weights a token ("1.2GB"), or for the fewest bytes within so much
        mean KL divergence, in nats. `quant` still says which weights stay float. Calibrates, with the built-in text
        unless `calibrate` names another.
    groups: the groups to convert: `text`, which includes its embeddings, `vision` and `audio`; None for all.
    sizes: MatFormer sizes, the first of them the default; empty for the whole model. Instead, `slice_file` may give
        a custom size (docs/formats/matformer.md), or `budget` choose the best size that fits so much memory ("3GB") or
        so many effective parameters ("3.0B").
    context: positions in the KV cache.
    prefill_sizes: how many tokens a prefill processes at once; empty for those that suit the context.
    shard_mb: the maximum size of a file of per-layer embeddings, in MiB.
    audio_lengths: maximum lengths in seconds, one for each audio encoder; empty for 1, 5, 10 and 30.
    draft_tokens: how many drafted tokens a step of speculative decoding checks (docs/speculative.md); None for a bundle
        without it.
    drafter: `fit` for a drafter of the default size, which guesses tokens that the model then checks, three in a step
        (docs/speculative.md). It is left out, with a warning, if the model would accept too few of its guesses. Or the
        checkpoint of a drafter that was published for the model: a directory, or a Hugging Face id.
    drafter_tokens: how many tokens the model writes for the drafter to be fitted to, not counting those of openings;
        None for 8,192.
    force: replace a directory at `output` that is not a bundle, and a file at `report` that is not a gemma-edge page;
        an older bundle or page is replaced in any case.
    report: an HTML page to write about the conversion: groups, bytes per token, what the gate found, and what each size
        needs. The same conversion gives the same bytes.
    verify: whether the bundle must pass the quality gate. session: how the gate runs it.
    families: the model families that the checkpoint may belong to.
    progress: called with the weight bytes done and their total; `calibration_progress` with operations done and their
        total; `gate_progress` with a size, percent done, and 100; `download_progress` with the bytes downloaded and
        their total; `drafter_progress` with a stage of the drafter, how much of it is done, and the total.
    on_report: called with the gate's report, even if the bundle fails.

    CheckpointError, RecipeError, SliceError or UsageError if this cannot be converted, or if a drafter is for another
    model; QualityError for a bundle that fails the gate, which is then removed.

    >>> import gemma_edge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = gemma_edge.convert(checkpoint, folder + "/bundle", sizes=["small"], context=32, verify=False)
    >>> list(result.manifest.sizes), result.report
    (['small'], None)
    """
    mix = mix_budget(bytes_per_token, kl)
    recipes = {"text": quant, "ple": ple_quant, "vision": vision_quant, "audio": audio_quant}
    request = ConvertRequest(
        checkpoint=with_revision(checkpoint, revision) if isinstance(checkpoint, (Path, str)) else checkpoint,
        output=Path(output),
        adapters=adapter_choices(adapters),
        recipes={role: choice for role, choice in recipes.items() if choice is not None},
        search=search,
        groups=None if groups is None else tuple(groups),
        sizes=_sizes(sizes, slice_file, budget),
        calibration=_calibration(calibrate or mix is not None),
        calibration_media=None if calibration_media is None else read_calibration_media(Path(calibration_media)),
        mix=mix,
        context=context,
        prefill_sizes=tuple(prefill_sizes),
        shard_bytes=shard_mb << 20,
        audio_seconds=tuple(audio_lengths),
        force=force,
        draft_tokens=draft_tokens,
        drafter=_drafter(drafter, drafter_tokens),
    )

    def gate(path: Path, opened: Checkpoint) -> VerifyReport:
        found = ShortGate(session, progress=gate_progress)(path, opened)
        on_report(found)
        return found

    target = request.bundle_output(*([] if isinstance(calibrate, bool) or calibrate == "self" else [Path(calibrate)]))
    from gemma_edge.api.conversion_page import conversion_page
    from toolkit.report.page import PAGE, render_page

    page = None if report is None else Output(Path(report), PAGE, (target.path, *target.inputs), force)
    if page is not None:
        page.require()
    target.require()
    ENVIRONMENT.require(target)
    QUALITY.require(target)
    if request.calibration is not None:
        calibration_output(target).require()
    result = convert_request(
        request,
        families=families,
        gate=gate if verify else None,
        progress=progress,
        calibration_progress=calibration_progress,
        download_progress=download_progress,
        drafting=Drafting(session, drafter_progress),
    )
    write_environment(target)
    write_quality(target, result)
    if page is not None:
        page.require()  # it may have changed since
        write_bytes(page.path, render_page(conversion_page(result)))
    return result


def _drafter(wanted: Path | str | None, tokens: int | None) -> DrafterSettings | AssistantChoice | None:
    settings = fit_settings(wanted, tokens)
    return settings if settings is not None or wanted is None else AssistantChoice(wanted)


def _calibration(wanted: Path | str | bool) -> CalibrationChoice | None:
    if isinstance(wanted, bool):
        return built_in_calibration_text() if wanted else None
    return "self" if wanted == "self" else read_calibration_text(Path(wanted))


def mix_budget(bytes_per_token: str | None, kl: float | None) -> MixBudget | None:
    """The budget for a mix of types, if one is given; UsageError for one that cannot be."""
    if bytes_per_token is not None and kl is not None:
        raise UsageError("mix of types", found="both bytes_per_token and kl", wanted="one of them")
    if kl is not None:
        if not 0 < kl < math.inf:
            raise UsageError("kl", found=f"{kl:g}", wanted="a number of nats above 0, such as 0.01")
        return MixBudget(kl, "nats")
    if bytes_per_token is None:
        return None
    limit = parse_budget(bytes_per_token)
    if limit.unit != "bytes":
        raise UsageError("bytes per token", found=shorten(bytes_per_token), wanted="such as 1.2GB or 900MB")
    return MixBudget(limit.amount, "bytes")


def _sizes(
    sizes: Sequence[str | Slice], slice_file: Path | str | None, budget: str | None
) -> tuple[str | Slice, ...] | Path | Budget:
    if (len(sizes) > 0) + (slice_file is not None) + (budget is not None) > 1:
        raise UsageError("sizes", found="only one of sizes, slice_file and budget can be given")
    if slice_file is not None:
        return Path(slice_file)
    return tuple(sizes) if budget is None else parse_budget(budget)
