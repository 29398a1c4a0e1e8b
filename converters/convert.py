"""Converts a checkpoint to a bundle: makes the family's plan, writes its files, runs the gate, renames the bundle."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.assistant import AssistantChoice, OpenedAssistant, open_chosen
from converters.behaviour import PromptReport, require_same_prompts
from converters.calibration.budget import KeptDivergences, MixPlan, SensitivityRun, mixed_recipe, within_budget
from converters.calibration.calibrate import (
    Calibration,
    measured_tokens,
    prepare_work,
    remove_work,
    restore_text,
    sequences_of,
    text_for,
    work_directory,
)
from converters.calibration.media import CalibrationMedia
from converters.calibration.mix import Mix
from converters.calibration.own_text import CONTEXT as WRITER_CONTEXT
from converters.calibration.own_text import text_written_by
from converters.calibration.rounding import decoder_pieces
from converters.calibration.text import CalibrationText, write_calibration_text
from converters.calibration.towers import TowerCalibration, calibrated_groups, media_directory
from converters.families import FAMILIES, open_checkpoint
from converters.family import Checkpoint, Family
from converters.gate import Gate, ShortGate
from converters.huggingface.prompt_files import PromptFiles, read_prompt_files
from converters.huggingface.sampling import read_sampling
from converters.lock import described, lock_of, quant_record, require_merged
from converters.plan import Plan, PlannedDrafter, PlanRequest
from converters.request import ConvertRequest, check_recipe_names, plan_request
from converters.verify import SHORT_TOKENS, VerifyReport, built_in_text
from converters.verify import sequences_of as judged_sequences
from toolkit.base.errors import BundleError, CheckpointError, ToolkitError, UsageError, errors_about
from toolkit.base.files import Advance, BackgroundHasher, Progress, require_room, scratch_beside
from toolkit.base.warnings_once import each_warning_once
from toolkit.bundle.lock import DrafterSettings, Lock, LockedMedia
from toolkit.bundle.manifest import (
    TOKENIZER,
    TOWER_FILES,
    AudioRecord,
    CheckpointRecord,
    Manifest,
    TextRecord,
    VisionRecord,
)
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.tokenizer_file import token_texts
from toolkit.bundle.write import BundleDraft, write_bundle
from toolkit.drafting.make import AS_USUAL, Drafting, make_drafter
from toolkit.tflite.target import CPU

_log = logging.getLogger(__name__)

DRAFT_TOKENS = 3
"""How many drafts a step checks in a bundle with a drafter."""
_MANIFEST_BYTES = 1 << 20  # that of E4B in float32 takes 0.2 MB; the rest is for what a file system adds to files


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
            judge = partial(_prepare, request)
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
        _planned(request, checkpoint)
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
    _checkpoint_record(checkpoint, request.described_as)  # refused now, instead of after the work
    prepared, text = _prepare(request, checkpoint), None
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
    request: ConvertRequest, checkpoint: Checkpoint, prepared: _Prepared, progress: Progress | None
) -> tuple[_Prepared, CalibrationText]:
    """The plan with its matrices rounded against a text, in the types of a mix if the request has a budget for one."""
    assert request.calibration is not None
    work, record = work_directory(request.output), _checkpoint_record(checkpoint, None)

    def lock_for(chosen: PlanRequest) -> Lock:
        """What the work is of: a bundle without its calibration, and the files that turn a text into tokens."""
        return replace(lock_of(chosen, record, None), files=prepared.prompt_files.hashes)

    lock = lock_for(prepared.request)
    write = partial(_own_text, request, checkpoint, prepared.request, progress)
    text = text_for(request.calibration, work, lock, write)
    sequences = prepared.sequences or _sequences(text, prepared, checkpoint)
    calibration = Calibration(text, sequences, work, request.workers, progress)
    slices = prepared.request.slices
    budget = request.mix
    if budget is None:
        return replace(prepared, plan=calibration.round(prepared.plan, slices, checkpoint, lock).plan), text
    prepare_work(work, text, lock)
    mixing = MixPlan.of(prepared.plan)
    run = SensitivityRun(work / "sensitivity.json", request.workers, progress)
    sensitivity = run.measure(mixing, checkpoint, slices, sequences)
    calibration = replace(calibration, directory=work / "rounded")
    judged = _judged(prepared, checkpoint) if budget.unit == "nats" else ()
    kept = KeptDivergences(work / "divergences.json")

    def convert_mix(mix: Mix) -> tuple[_Prepared, float | None]:
        known = kept.of(mix)
        if known is not None and known > budget.amount:
            return prepared, known  # an interrupted run has tried it; one within the budget is not judged again
        recipe = mixed_recipe(prepared.request.recipes["text"], mix, budget)
        chosen = replace(prepared.request, recipes={**prepared.request.recipes, "text": recipe})
        plan = _with_prompts(checkpoint.plan(chosen), prepared.prompt_files, checkpoint)
        found = calibration.round(plan, slices, checkpoint, lock_for(chosen), judged if known is None else ())
        if found.divergence is not None:
            kept.keep(mix, found.divergence)
        return replace(prepared, request=chosen, plan=found.plan), found.divergence

    return within_budget(mixing, budget, sensitivity, convert_mix), text


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known before any weight is read."""

    request: PlanRequest
    plan: Plan
    prompt_files: PromptFiles
    prompts: PromptReport | None
    drafter: PlannedDrafter | None = None
    """The file of a drafter that was published; one that is fitted is made last."""
    media: CalibrationMedia | None = None
    """The pictures and sounds of the towers that are calibrated."""
    sequences: Sequence[NDArray[np.int32]] = ()
    """Those of the text to calibrate with, unless the model writes it."""


def _with_drafter(settings: DrafterSettings, how: Drafting, directory: Path, draft: BundleDraft) -> BundleDraft:
    """Add a drafter to a bundle that is otherwise complete, if the drafter saves more time than it costs."""
    group = make_drafter(directory, directory, settings, how=how)
    return draft if group is None else replace(draft, groups={**draft.groups, "drafter": group})


def _prepare(request: ConvertRequest, checkpoint: Checkpoint) -> _Prepared:
    """Find out, and refuse, what can be before any weight is read."""
    if request.described_as is not None:
        require_merged([adapter.record for adapter in checkpoint.adapters], request.described_as)
    found = _planned(request, checkpoint)
    if request.mix is not None:
        MixPlan.of(found.plan).require_reachable(request.mix)
    elif request.calibration is not None:
        decoder_pieces(found.plan)
    if isinstance(request.calibration, CalibrationText):
        found = replace(found, sequences=_sequences(request.calibration, found, checkpoint))
    bytes_ = found.plan.size_bytes + found.prompt_files.bytes + _MANIFEST_BYTES
    if isinstance(request.drafter, OpenedAssistant):
        recipe = found.request.recipes["text"].name
        drafter = request.drafter.plan(_text_record(found.plan), recipe, checkpoint.architecture)
        found = replace(found, drafter=drafter)
        bytes_ += drafter.files.size_bytes
    require_room(request.output, bytes_)
    if request.calibration_media is not None:
        groups = calibrated_groups(found.plan, request.calibration_media)
        found = replace(found, media=request.calibration_media.of(groups))
    return found


def _planned(request: ConvertRequest, checkpoint: Checkpoint) -> _Prepared:
    """The same without regard to the output."""
    chosen = plan_request(request, checkpoint)
    plan = checkpoint.plan(chosen)
    prompt_files = read_prompt_files(
        checkpoint.path,
        checkpoint.vocab_size,
        _text_record(plan).bos_token_id,
        adapters=[adapter.path for adapter in checkpoint.adapters],
    )
    plan = _with_prompts(plan, prompt_files, checkpoint)
    prompts = require_same_prompts(prompt_files, _text_record(plan), *_tower_records(plan), checkpoint.architecture)
    return _Prepared(chosen, plan, prompt_files, prompts)


def _sequences(text: CalibrationText, prepared: _Prepared, checkpoint: Checkpoint) -> list[NDArray[np.int32]]:
    tokens = measured_tokens(decoder_pieces(prepared.plan))
    bos = _text_record(prepared.plan).bos_token_id
    return sequences_of(text, _tokenizer(prepared, checkpoint), bos, tokens=tokens)


def _judged(prepared: _Prepared, checkpoint: Checkpoint) -> list[NDArray[np.int32]]:
    """The sequences that the short gate judges."""
    ids, record = _tokenizer(prepared, checkpoint).encode_limited(built_in_text()), _text_record(prepared.plan)
    found = judged_sequences(ids, record.bos_token_id, context=record.context, tokens=SHORT_TOKENS)
    return [np.array(sequence, np.int32) for sequence in found]


def _tokenizer(prepared: _Prepared, checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint.path / TOKENIZER, prepared.prompt_files.tokenizer)


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
    prepared: _Prepared,
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


def _with_prompts(plan: Plan, prompt_files: PromptFiles, checkpoint: Checkpoint) -> Plan:
    """The plan with what tokenizer, chat template and generation_config.json say about generated text."""
    record, end = _text_record(plan), prompt_files.turn_end
    stops = set(record.stop_token_ids)
    if end is not None and end not in stops:
        _log.warning("the chat template ends a turn with token %d, which becomes a stop token too", end)
        stops.add(end)
    record = replace(
        record,
        stop_token_ids=tuple(sorted(stops)),
        text_vocab_size=checkpoint.text_vocab_size(token_texts(prompt_files.tokenizer)),
        sampling=read_sampling(checkpoint.path),
    )
    return replace(plan, groups={**plan.groups, "text": replace(plan.groups["text"], runtime=record)})


def _tower_records(plan: Plan) -> tuple[VisionRecord | None, AudioRecord | None]:
    records = {name: plan.groups[name].runtime for name in TOWER_FILES if name in plan.groups}
    vision, audio = records.get("vision"), records.get("audio")
    assert vision is None or isinstance(vision, VisionRecord)
    assert audio is None or isinstance(audio, AudioRecord)
    return vision, audio


def _text_record(plan: Plan) -> TextRecord:
    record = plan.groups["text"].runtime
    assert isinstance(record, TextRecord)
    return record
