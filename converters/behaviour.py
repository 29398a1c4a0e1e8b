"""The behaviour gate: a bundle's prompts have the token ids that transformers gives a checkpoint's conversations.

The quality gate compares weights with weights; a wrong template, tokenizer or stop token escapes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from converters.huggingface.chat_template import find_template, special_tokens
from converters.huggingface.prompt_files import PromptFiles
from toolkit.base.errors import BundleError, CheckpointError, ToolkitError, errors_about
from toolkit.base.limited import limited
from toolkit.bundle.chat import ChatTemplate
from toolkit.bundle.conversations import TEXTS, Conversation, with_media
from toolkit.bundle.manifest import CHAT_TEMPLATE, TOKENIZER, AudioRecord, TextRecord, VisionRecord
from toolkit.bundle.prompting import Prompting, first_difference, turn_end_token, undrawable
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.litertlm.chat_template import engine_template
from toolkit.runtime.bundle import Bundle

_log = logging.getLogger(__name__)


def require_same_prompts(
    files: PromptFiles, text: TextRecord, vision: VisionRecord | None, audio: AudioRecord | None
) -> None:
    """CheckpointError if our session would make other prompts of conversations than transformers makes.

    Warns of what the LiteRT-LM engine does otherwise, and of images and sounds that the template does not place.
    """
    if files.template is None:
        return
    checkpoint = files.source
    tokenizer = Tokenizer(checkpoint / TOKENIZER, files.tokenizer)
    prompting = Prompting.with_towers(tokenizer, text.bos_token_id, vision, audio)
    own = ChatTemplate(files.template, file=checkpoint, bos_token=prompting.bos_token)
    for error in prompt_errors(own, checkpoint, prompting, text):
        raise error
    _warn_of_media(own, prompting, checkpoint)
    _warn_of_engine(files.template, prompting)


def bundle_errors(path: Path, checkpoint: Path) -> list[CheckpointError]:
    """What a finished bundle's prompts have otherwise than those of transformers.

    checkpoint: the directory with the template, an adapter's if that has one (`template_directory`).
    """
    bundle = Bundle(path)
    if CHAT_TEMPLATE not in bundle.manifest.files:
        return []
    tokenizer, text = bundle.tokenizer(), bundle.manifest.text
    template = bundle.chat_template(tokenizer)
    errors = prompt_errors(template, checkpoint, Prompting.of(tokenizer, bundle.manifest), text)
    end = turn_end_token(template, (path / TOKENIZER).read_bytes())
    if end is not None and end not in text.stop_token_ids:
        found, wanted = f"token {end}", f"a stop token, one of {list(text.stop_token_ids)}"
        errors.append(CheckpointError("the end of a turn", file=path / CHAT_TEMPLATE, found=found, wanted=wanted))
    return errors


def prompt_errors(own: ChatTemplate, checkpoint: Path, prompting: Prompting, text: TextRecord) -> list[CheckpointError]:
    """The first conversation whose tokens differ, and the first token that the session refuses in a prompt."""
    with errors_about(file=checkpoint):
        return limited("chat template", lambda: list(_prompt_errors(own, checkpoint, prompting, text)))


def _prompt_errors(
    own: ChatTemplate, checkpoint: Path, prompting: Prompting, text: TextRecord
) -> Iterator[CheckpointError]:
    source = find_template(checkpoint)
    if source is None:
        return
    tokens = special_tokens(checkpoint)
    bos = tokens.pop("bos_token", prompting.bos_token)
    model = ChatTemplate(source, file=checkpoint, bos_token=bos, variables=tokens)
    for conversation in [*TEXTS, *with_media(prompting.groups)]:
        try:
            wanted = prompting.ids(model.render_turns(conversation.turns), conversation)
        except ToolkitError:
            continue  # what transformers refuses, we may refuse
        found = prompting.ids(own.render_turns(conversation.turns), conversation)
        if found != wanted:
            texts = first_difference(found, wanted, prompting)
            yield _error(checkpoint, conversation, *texts, "please report it with this template")
            return
    refused = undrawable(own, prompting, text.text_ids)
    if refused is not None:
        conversation, token = refused
        spelled = f"{prompting.decode([token])} ({token}), an id of images and sounds"
        wanted_ids = f"ids below {text.text_ids}, which stand for text"
        yield _error(checkpoint, conversation, spelled, wanted_ids, "write another token in the chat template")


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
    return prompting.ids(template.render_turns(conversation.turns), conversation)


def _warn_of_engine(template: str, prompting: Prompting) -> None:
    """What an export of all groups would refuse, and that it cannot call tools if the engine renders them otherwise."""
    try:
        engine_template(template, prompting, "generic_model" if prompting.groups else "gemma3n")
    except BundleError as error:
        _log.warning("export will refuse this bundle: %s", error)
