"""Checks that a bundle's prompts have the token ids that transformers would give the checkpoint's conversations.

The quality gate compares predictions for given token ids; it misses a wrong template, tokenizer or stop token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from converters.huggingface.chat_template import find_template, special_tokens
from converters.huggingface.prompt_files import PromptFiles
from toolkit.base.errors import BundleError, CheckpointError, ToolkitError, errors_about
from toolkit.base.limited import limited
from toolkit.bundle.chat import ChatTemplate
from toolkit.bundle.conversations import TEXTS, WITH_TOOLS, Conversation, with_media
from toolkit.bundle.manifest import CHAT_TEMPLATE, TOKENIZER, AudioRecord, TextRecord, VisionRecord
from toolkit.bundle.prompting import Prompting, first_difference, turn_end_token, undrawable
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.litertlm.chat_template import EnginePrompts, engine_template
from toolkit.litertlm.engine_tools import knows_tools, tools_fault
from toolkit.litertlm.gemma4 import text_model_type
from toolkit.litertlm.schema import ModelType
from toolkit.runtime.bundle import Bundle

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptReport:
    """What was found about a chat template whose prompts are the same as those of transformers.

    `compared`: the number of conversations with the same token ids. `refused`: the number that the template refuses,
    also in transformers. `engine`: why LiteRT-LM cannot use this template; None if it can. `tools`: why apps cannot
    offer tools with it in LiteRT-LM; None if they can, or if the template does not support tools.
    """

    compared: int
    refused: int
    engine: str | None
    tools: str | None


def require_same_prompts(
    files: PromptFiles,
    text: TextRecord,
    vision: VisionRecord | None,
    audio: AudioRecord | None,
    architecture: str,
) -> PromptReport | None:
    """Raise CheckpointError if our session would make other prompts from conversations than transformers does.

    Logs warnings for what the LiteRT-LM engine does differently, and for images and sounds that the template does not
    place. Returns None for a checkpoint without a chat template.
    """
    if files.template is None:
        return None
    checkpoint = files.source
    tokenizer = Tokenizer(checkpoint / TOKENIZER, files.tokenizer)
    prompting = Prompting.with_towers(tokenizer, text.bos_token_id, vision, audio)
    own = ChatTemplate(files.template, file=checkpoint, bos_token=prompting.bos_token)
    found = _compared(own, checkpoint, prompting, text)
    for error in found.errors:
        raise error
    _warn_of_media(own, prompting, checkpoint)
    return PromptReport(found.compared, found.refused, *_engine_faults(files.template, prompting, architecture))


def bundle_errors(path: Path, checkpoint: Path) -> list[CheckpointError]:
    """The differences between a finished bundle's prompts and those of transformers.

    `checkpoint`: the directory with the template, which is an adapter's if it has one (`template_directory`).
    """
    bundle = Bundle(path)
    if CHAT_TEMPLATE not in bundle.manifest.files:
        return []
    tokenizer, text = bundle.tokenizer(), bundle.manifest.text
    template = bundle.chat_template(tokenizer)
    errors = list(_compared(template, checkpoint, Prompting.of(tokenizer, bundle.manifest), text).errors)
    end = turn_end_token(template, (path / TOKENIZER).read_bytes())
    if end is not None and end not in text.stop_token_ids:
        found, wanted = f"token {end}", f"a stop token, one of {list(text.stop_token_ids)}"
        errors.append(CheckpointError("the end of a turn", file=path / CHAT_TEMPLATE, found=found, wanted=wanted))
    return errors


@dataclass(frozen=True, slots=True)
class _Compared:
    """The comparison of two templates: how many conversations are equal, how many are refused, and what is wrong."""

    compared: int
    refused: int
    errors: Sequence[CheckpointError]


def _compared(own: ChatTemplate, checkpoint: Path, prompting: Prompting, text: TextRecord) -> _Compared:
    """Compare prompts, up to the first conversation whose tokens differ or that has a token which sessions refuse."""
    source = find_template(checkpoint)
    if source is None:
        return _Compared(0, 0, ())
    tools = WITH_TOOLS if knows_tools(source) else ()
    conversations = [*TEXTS, *tools, *with_media(prompting.groups)]
    compare = partial(_compare, own, source, conversations, checkpoint, prompting, text)
    with errors_about(file=checkpoint):
        return limited("chat template", compare)


def _compare(
    own: ChatTemplate,
    source: str,
    conversations: Sequence[Conversation],
    checkpoint: Path,
    prompting: Prompting,
    text: TextRecord,
) -> _Compared:
    tokens = special_tokens(checkpoint)
    bos = tokens.pop("bos_token", prompting.bos_token)
    model = ChatTemplate(source, file=checkpoint, bos_token=bos, variables=tokens)
    compared = 0
    for conversation in conversations:
        try:
            wanted = _ids_of(conversation, model, prompting)
        except ToolkitError:
            continue  # we may refuse what transformers refuses
        found = _ids_of(conversation, own, prompting)
        if found != wanted:
            texts = first_difference(found, wanted, prompting)
            remedy = "please report it with this template"
            return _Compared(compared, 0, [_error(checkpoint, conversation, *texts, remedy)])
        compared += 1
    errors = []
    refused = undrawable(own, prompting, text.text_ids)
    if refused is not None:
        conversation, token = refused
        spelled = f"{prompting.decode([token])} ({token}), an id of images and sounds"
        wanted_ids = f"ids below {text.text_ids}, which stand for text"
        errors.append(_error(checkpoint, conversation, spelled, wanted_ids, "write another token in the chat template"))
    return _Compared(compared, len(conversations) - compared, errors)


def _error(checkpoint: Path, conversation: Conversation, found: str, wanted: str, remedy: str) -> CheckpointError:
    place = f"chat template with {conversation.name}"
    return CheckpointError(place, file=checkpoint, found=found, wanted=wanted, remedy=remedy)


def _warn_of_media(own: ChatTemplate, prompting: Prompting, checkpoint: Path) -> None:
    for group in prompting.groups:
        conversation = with_media([group], side_by_side=False)[0]
        try:
            limited("chat template", partial(_ids_of, conversation, own, prompting))
        except ToolkitError as error:
            _log.warning("%s: the chat template does not place %s (%s)", checkpoint, conversation.name, error.found)


def _ids_of(conversation: Conversation, template: ChatTemplate, prompting: Prompting) -> list[int]:
    return prompting.ids(template.render_turns(conversation.turns, conversation.tools), conversation)


def _engine_faults(template: str, prompting: Prompting, architecture: str) -> tuple[str | None, str | None]:
    """Why an export of all groups would be refused, and why it would not offer tools; logs a warning for each."""
    model_type: ModelType = "generic_model" if prompting.groups else text_model_type(architecture)
    try:
        exported = engine_template(template, prompting, model_type)
    except BundleError as error:
        _log.warning("export will refuse this bundle: %s", error)
        return str(error), None
    if not knows_tools(template):
        return None, None
    tools = tools_fault(template, exported.source, EnginePrompts(prompting, model_type, exported.start_token))
    if tools is not None:
        _log.warning("an export will not offer function calling, although the chat template knows tools: %s", tools)
    return None, tools
