"""Finds out what a conversion will write, and refuses what can be refused before any weight is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converters.assistant import OpenedAssistant
from converters.behaviour import PromptReport, require_same_prompts
from converters.calibration.budget import MixPlan
from converters.calibration.calibrate import measured_tokens, sequences_of
from converters.calibration.media import CalibrationMedia
from converters.calibration.rounding import decoder_pieces
from converters.calibration.text import CalibrationText
from converters.calibration.towers import calibrated_groups
from converters.family import Checkpoint
from converters.huggingface.prompt_files import PromptFiles, read_prompt_files
from converters.huggingface.sampling import read_sampling
from converters.lock import require_merged
from converters.plan import Plan, PlannedDrafter, PlanRequest
from converters.request import ConvertRequest, plan_request
from converters.verify import SHORT_TOKENS, built_in_text
from converters.verify import sequences_of as judged_sequences
from toolkit.base.errors import errors_about
from toolkit.base.files import require_room
from toolkit.bundle.manifest import TOKENIZER, TOWER_FILES, AudioRecord, TextRecord, VisionRecord
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.tokenizer_file import token_texts

_log = logging.getLogger(__name__)

_MANIFEST_BYTES = 1 << 20  # that of E4B in float32 takes 0.2 MB; the rest is for what a file system adds to files


@dataclass(frozen=True, slots=True)
class Prepared:
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


def prepare(request: ConvertRequest, checkpoint: Checkpoint) -> Prepared:
    """Find out, and refuse, what can be before any weight is read."""
    if request.described_as is not None:
        with errors_about(file=checkpoint.path):
            require_merged([adapter.record for adapter in checkpoint.adapters], request.described_as)
    found = plan_bundle(request, checkpoint)
    if request.mix is not None:
        MixPlan.of(found.plan).require_reachable(request.mix)
    elif request.calibration is not None:
        decoder_pieces(found.plan)
    if isinstance(request.calibration, CalibrationText):
        found = replace(found, sequences=calibration_sequences(request.calibration, found, checkpoint))
    bytes_ = found.plan.size_bytes + found.prompt_files.bytes + _MANIFEST_BYTES
    if isinstance(request.drafter, OpenedAssistant):
        recipe = found.request.recipes["text"].name
        drafter = request.drafter.plan(text_record(found.plan), recipe, checkpoint.architecture)
        found = replace(found, drafter=drafter)
        bytes_ += drafter.files.size_bytes
    require_room(request.output, bytes_)
    if request.calibration_media is not None:
        groups = calibrated_groups(found.plan, request.calibration_media)
        found = replace(found, media=request.calibration_media.of(groups))
    return found


def plan_bundle(request: ConvertRequest, checkpoint: Checkpoint) -> Prepared:
    """The same without regard to the output."""
    chosen = plan_request(request, checkpoint)
    plan = checkpoint.plan(chosen)
    prompt_files = read_prompt_files(
        checkpoint.path,
        checkpoint.vocab_size,
        text_record(plan).bos_token_id,
        adapters=[adapter.path for adapter in checkpoint.adapters],
    )
    plan = with_prompts(plan, prompt_files, checkpoint)
    prompts = require_same_prompts(prompt_files, text_record(plan), *_tower_records(plan), checkpoint.architecture)
    return Prepared(chosen, plan, prompt_files, prompts)


def with_prompts(plan: Plan, prompt_files: PromptFiles, checkpoint: Checkpoint) -> Plan:
    """The plan with what tokenizer, chat template and generation_config.json say about generated text."""
    record, end = text_record(plan), prompt_files.turn_end
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


def calibration_sequences(text: CalibrationText, prepared: Prepared, checkpoint: Checkpoint) -> list[NDArray[np.int32]]:
    """The sequences of a text that inputs are measured on; UsageError for a text that is too short."""
    tokens = measured_tokens(decoder_pieces(prepared.plan))
    bos = text_record(prepared.plan).bos_token_id
    return sequences_of(text, _tokenizer(prepared, checkpoint), bos, tokens=tokens)


def short_gate_sequences(prepared: Prepared, checkpoint: Checkpoint) -> list[NDArray[np.int32]]:
    """The sequences that the short gate judges."""
    ids, record = _tokenizer(prepared, checkpoint).encode_limited(built_in_text()), text_record(prepared.plan)
    found = judged_sequences(ids, record.bos_token_id, context=record.context, tokens=SHORT_TOKENS)
    return [np.array(sequence, np.int32) for sequence in found]


def _tokenizer(prepared: Prepared, checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint.path / TOKENIZER, prepared.prompt_files.tokenizer)


def text_record(plan: Plan) -> TextRecord:
    """The record of a plan's group `text`."""
    record = plan.groups["text"].runtime
    assert isinstance(record, TextRecord)
    return record


def _tower_records(plan: Plan) -> tuple[VisionRecord | None, AudioRecord | None]:
    records = {name: plan.groups[name].runtime for name in TOWER_FILES if name in plan.groups}
    vision, audio = records.get("vision"), records.get("audio")
    assert vision is None or isinstance(vision, VisionRecord)
    assert audio is None or isinstance(audio, AudioRecord)
    return vision, audio
