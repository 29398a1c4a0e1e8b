"""Converts a checkpoint to a bundle: makes the family's plan, writes its files, runs the gate, renames the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from converters.assistant import AssistantChoice, OpenedAssistant, open_chosen
from converters.behaviour import PromptReport
from converters.calibration.budget import KeptDivergences, MixPlan, SensitivityRun, mixed_recipe, within_budget
from converters.calibration.calibrate import (
    Calibration,
    prepare_work,
    remove_work,
    restore_text,
    text_for,
    work_directory,
)
from converters.calibration.mix import Mix, MixBudget
from converters.calibration.own_text import CONTEXT as WRITER_CONTEXT
from converters.calibration.own_text import text_written_by
from converters.calibration.text import CalibrationText, write_calibration_text
from converters.calibration.towers import TowerCalibration, media_directory
from converters.families import FAMILIES, open_checkpoint
from converters.family import Checkpoint, Family
from converters.gate import Gate, ShortGate
from converters.lock import described, lock_of, quant_record
from converters.plan import PlanRequest
from converters.prepare import (
    Prepared,
    calibration_sequences,
    plan_bundle,
    prepare,
    short_gate_sequences,
    with_prompts,
)
from converters.request import ConvertRequest, check_recipe_names
from converters.verify import VerifyReport
from toolkit.base.errors import BundleError, CheckpointError, ToolkitError, UsageError, errors_about
from toolkit.base.files import Advance, BackgroundHasher, Progress, scratch_beside
from toolkit.base.warnings_once import each_warning_once
from toolkit.bundle.lock import DrafterSettings, Lock, LockedMedia
from toolkit.bundle.manifest import TOWER_FILES, CheckpointRecord, Manifest
from toolkit.bundle.write import BundleDraft, write_bundle
from toolkit.drafting.make import AS_USUAL, Drafting, make_drafter
from toolkit.tflite.target import CPU

DRAFT_TOKENS = 3
"""How many drafts a step checks in a bundle with a drafter."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A written bundle; `report` is None if it was not verified, `prompts` is None without a chat template."""

    path: Path
    manifest: Manifest
    report: VerifyReport | None
    seconds: float
    calibration: CalibrationText | None = None
    """The text that it was calibrated with."""
    prompts: PromptReport | None = None
    calibration_media: LockedMedia | None = None
    """The pictures and sounds that its towers were calibrated with."""


def convert(
    request: ConvertRequest,
    *,
    families: Sequence[Family] = FAMILIES,
    gate: Gate | None = ShortGate(),  # noqa: B008, it is frozen
    accept: Callable[[Path], None] = lambda _: None,
    progress: Progress | None = None,
    calibration_progress: Progress | None = None,
    download_progress: Progress | None = None,
    drafting: Drafting = AS_USUAL,
) -> Conversion:
    """Write the bundle `request.output`, complete or not at all; beside it, the text that it was calibrated with.

    `gate` verifies the complete files before the directory gets its name; if they fail, they are removed and
    QualityError is raised. None skips this. `accept` gets the directory before that, and raises to reject it.
    `families`: the model families that the checkpoint may belong to.
    `progress` is called with the weight bytes written so far, without scales, and their total; `calibration_progress`
    with operations done and their total; `download_progress` with the bytes downloaded and their total.
    `drafting`: how a drafter is made, if the request has one.
    """
    if request.drafter is not None and request.draft_tokens is None:
        request = replace(request, draft_tokens=DRAFT_TOKENS)
    extend = None
    if isinstance(request.drafter, DrafterSettings):
        extend = partial(_with_drafter, request.drafter, drafting)
    request.bundle_output().require()
    if request.search is not None and (request.calibration is not None or request.calibration_media is not None):
        raise UsageError("search", found=request.search, wanted="none: calibration chooses scales by the inputs")
    if request.calibration is None and request.mix is not None:
        raise UsageError("mix of types", found="no calibration", wanted="one: it measures what each type costs")
    check_recipe_names(request, families)
    with ExitStack() as opened:
        if isinstance(request.drafter, AssistantChoice):
            drafter = opened.enter_context(closing(open_chosen(request.drafter, families, progress=download_progress)))
            request = replace(request, drafter=drafter)
        checkpoint = request.checkpoint
        if isinstance(checkpoint, (Path, str)):
            # A checkpoint on the Hub is judged twice: by its headers, and downloaded.
            opened.enter_context(each_warning_once("converters"))
            judge = partial(prepare, request)
            checkpoint = opened.enter_context(
                open_checkpoint(checkpoint, families, request.adapters, judge=judge, progress=download_progress)
            )
        elif request.adapters:
            raise UsageError(
                "adapters",
                found="adapters for a checkpoint that is already open",
                wanted="an open_checkpoint call that includes them",
            )
        return _convert(request, checkpoint, gate, accept, extend, progress, calibration_progress)


def conversion_faults(checkpoint: Checkpoint) -> dict[str, ToolkitError]:
    """Why `convert` would refuse an open checkpoint, by group; empty if it would not. Headers are enough.

    `text` stands for everything that each bundle needs, such as the tokenizer and the chat template. The warnings of
    `convert` are logged.
    """
    faults = dict(checkpoint.tower_faults())
    there = (group.name for group in checkpoint.groups if group.tensors and group.name in TOWER_FILES)
    groups = ("text", *(name for name in there if name not in faults))
    # The smallest bundle; larger ones have more signatures, but need nothing else.
    context = min(CPU.smallest_prefill_limit, checkpoint.max_positions)
    request = ConvertRequest(checkpoint, Path(), groups=groups, context=context, prefill_sizes=(context,))
    try:
        plan_bundle(request, checkpoint)
    except (CheckpointError, BundleError) as error:
        return {**faults, "text": error}
    return faults


def _convert(
    request: ConvertRequest,
    checkpoint: Checkpoint,
    gate: Gate | None,
    accept: Callable[[Path], None],
    extend: Callable[[Path, BundleDraft], BundleDraft] | None,
    progress: Progress | None,
    calibration_progress: Progress | None,
) -> Conversion:
    started = time.perf_counter()
    output = request.bundle_output(checkpoint.path, *(adapter.path for adapter in checkpoint.adapters))
    output.require()
    restore_text(output.path)
    if request.described_as is not None:
        _checkpoint_record(checkpoint, request.described_as)  # refused now, instead of after the work
    prepared, text = prepare(request, checkpoint), None
    towers = None
    if prepared.media is not None:
        towers = TowerCalibration(prepared.media, request.output, request.workers, calibration_progress)
        lock = lock_of(prepared.request, _checkpoint_record(checkpoint, None), None, media=prepared.media)
        towers.round(prepared.plan, checkpoint, lock)
    if request.calibration is not None:
        prepared, text = _calibrated(request, checkpoint, prepared, calibration_progress)
    if towers is not None:
        prepared = replace(prepared, plan=towers.rounded(prepared.plan))
    advance = Advance(prepared.plan.weight_bytes, progress)
    reports: list[VerifyReport] = []
    works = work_directory(output.path), media_directory(output.path)

    def judge(directory: Path) -> None:
        try:
            accept(directory)
        except ToolkitError:
            remove_work(*works)  # it would give the same bytes again
            raise
        if gate is not None:
            reports.append(gate(directory, checkpoint))
            reports[0].require_passed(request.output)

    with BackgroundHasher() as hasher:
        fill = partial(_fill, prepared, checkpoint, request, text, advance, hasher.add)
        manifest = write_bundle(
            request.output,
            fill,
            extend=extend,
            accept=judge,
            hasher=hasher,
            inputs=output.inputs,
            force=output.force,
        )
    if text is not None:
        write_calibration_text(output, text)  # first: until then, only the work has it
    remove_work(*works)
    seconds, media = time.perf_counter() - started, None if prepared.media is None else prepared.media.record
    return Conversion(request.output, manifest, reports[0] if reports else None, seconds, text, prepared.prompts, media)


def _calibrated(
    request: ConvertRequest, checkpoint: Checkpoint, prepared: Prepared, progress: Progress | None
) -> tuple[Prepared, CalibrationText]:
    """The plan with its matrices rounded against a text, in the types of a mix if the request has a budget for one."""
    assert request.calibration is not None
    work, lock = work_directory(request.output), _work_lock(prepared, checkpoint)
    write = partial(_own_text, request, checkpoint, prepared.request, progress)
    text = text_for(request.calibration, work, lock, write)
    sequences = prepared.sequences or calibration_sequences(text, prepared, checkpoint)
    calibration = Calibration(text, sequences, work, request.workers, progress)
    if request.mix is None:
        found = calibration.round(prepared.plan, prepared.request.slices, checkpoint, lock)
        return replace(prepared, plan=found.plan), text
    prepare_work(work, text, lock)
    return _mixed(checkpoint, prepared, calibration, request.mix), text


def _mixed(checkpoint: Checkpoint, prepared: Prepared, calibration: Calibration, budget: MixBudget) -> Prepared:
    """The plan with its matrices rounded in the types of a mix within a budget."""
    work, slices, mixing = calibration.directory, prepared.request.slices, MixPlan.of(prepared.plan)
    run = SensitivityRun(work / "sensitivity.json", calibration.workers, calibration.progress)
    sensitivity = run.measure(mixing, checkpoint, slices, calibration.sequences)
    calibration = replace(calibration, directory=work / "rounded")
    judged = short_gate_sequences(prepared, checkpoint) if budget.unit == "nats" else ()
    kept = KeptDivergences(work / "divergences.json")

    def make(mix: Mix) -> tuple[Prepared, float | None]:
        known = kept.of(mix)
        if known is not None and known > budget.amount:
            return prepared, known  # an interrupted run has tried it; one within the budget is not judged again
        recipe = mixed_recipe(prepared.request.recipes["text"], mix, budget)
        chosen = replace(prepared.request, recipes={**prepared.request.recipes, "text": recipe})
        plan = with_prompts(checkpoint.plan(chosen), prepared.prompt_files, checkpoint)
        made = replace(prepared, request=chosen)
        found = calibration.round(
            plan, slices, checkpoint, _work_lock(made, checkpoint), judged if known is None else ()
        )
        if found.divergence is not None:
            kept.keep(mix, found.divergence)
        return replace(made, plan=found.plan), found.divergence

    return within_budget(mixing, budget, sensitivity, make)


def _work_lock(prepared: Prepared, checkpoint: Checkpoint) -> Lock:
    """What a calibration's work is of: the bundle without it, and the files that turn a text into tokens."""
    lock = lock_of(prepared.request, _checkpoint_record(checkpoint, None), None)
    return replace(lock, files=prepared.prompt_files.hashes)


def _with_drafter(settings: DrafterSettings, how: Drafting, directory: Path, draft: BundleDraft) -> BundleDraft:
    """Add a drafter to a bundle that is otherwise complete, if the drafter saves more time than it costs."""
    group = make_drafter(directory, directory, settings, how=how)
    return draft if group is None else replace(draft, groups={**draft.groups, "drafter": group})


def _own_text(
    request: ConvertRequest, checkpoint: Checkpoint, chosen: PlanRequest, progress: Progress | None
) -> CalibrationText:
    """The text that the default size writes, run as an uncalibrated bundle with the same recipe."""
    with scratch_beside(work_directory(request.output).with_suffix(".writer")) as scratch:
        writer = ConvertRequest(
            checkpoint=checkpoint,
            output=scratch / "bundle",
            recipes={role: chosen.recipes[role] for role in ("text", "ple")},
            groups=("text",),
            sizes=chosen.slices[:1],
            context=min(WRITER_CONTEXT, checkpoint.max_positions),
            workers=request.workers,
        )
        convert(writer, gate=None)
        return text_written_by(writer.output, progress=progress or (lambda done, of: None))


def _checkpoint_record(checkpoint: Checkpoint, described_as: CheckpointRecord | None) -> CheckpointRecord:
    adapters = tuple(adapter.record for adapter in checkpoint.adapters)
    with errors_about(file=checkpoint.path):
        return described(CheckpointRecord(checkpoint.name, checkpoint.fingerprint(), adapters), described_as)


def _fill(
    prepared: Prepared,
    checkpoint: Checkpoint,
    request: ConvertRequest,
    text: CalibrationText | None,
    advance: Advance,
    finished: Callable[[Path], None],
    directory: Path,
) -> BundleDraft:
    """Write every file of the bundle except its manifest."""
    plan = prepared.plan
    prepared.prompt_files.copy_to(directory)
    for files in plan.files:
        files.write(directory, workers=request.workers, progress=advance, finished=finished)
    checkpoint.require_unchanged()
    record = _checkpoint_record(checkpoint, request.described_as)
    groups, default, drafter = plan.groups, next(iter(plan.sizes)), request.drafter
    if isinstance(drafter, OpenedAssistant) and prepared.drafter is not None:
        groups = {**groups, "drafter": drafter.write(prepared.drafter, directory, default)}
    assert not isinstance(drafter, AssistantChoice), "convert opens it"
    made_with = drafter.record if isinstance(drafter, OpenedAssistant) else drafter
    return BundleDraft(
        architecture=checkpoint.architecture,
        checkpoint=record,
        sizes=plan.sizes,
        default_size=default,
        quant={role: quant_record(recipe) for role, recipe in plan.recipes.items()},
        groups=groups,
        lock=lock_of(prepared.request, record, text, made_with, prepared.media),
    )
