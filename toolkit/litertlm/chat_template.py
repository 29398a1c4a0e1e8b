"""The chat template of an export: one with which LiteRT-LM's engine gets the token ids that transformers would get."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from toolkit.base.errors import BundleError, ToolkitError
from toolkit.base.limited import limited
from toolkit.bundle.chat import ChatTemplate
from toolkit.bundle.conversations import TEXTS, THINKING, Conversation, with_media
from toolkit.bundle.prompting import Prompting, first_difference
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.litertlm.engine_template import EngineTemplate
from toolkit.litertlm.media import AROUND, joined_template, separate_template
from toolkit.litertlm.python_methods import without_methods
from toolkit.litertlm.schema import MODEL_TYPES, ImageMetadata, LlmMetadata, ModelType, SoundMetadata, Token
from toolkit.media.prompt import IMAGE, SOUND, SoftTokens

# Joins the parts of messages that are only text, because transformers passes such messages to templates as one text.
_JOIN_PARTS = (
    "{% set plain = namespace(messages=[], content='', text=true) %}"
    "{% for message in messages %}"
    "{% set plain.content = '' %}"
    "{% set plain.text = message.content is defined and message.content is not none"
    " and message.content is not string %}"
    "{% if plain.text %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{% set plain.content = plain.content + part.text %}"
    "{% else %}{% set plain.text = false %}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if plain.text %}{% set plain.messages = plain.messages + [dict(message, content=plain.content)] %}"
    "{% else %}{% set plain.messages = plain.messages + [message] %}{% endif %}"
    "{% endfor %}"
    "{% set messages = plain.messages %}"
)


@dataclass(frozen=True, slots=True)
class EnginePrompts:
    """How the engine turns a rendered conversation into token ids.

    `start_token`: whether it puts the start token before the first message, which it does even if the template has one.
    """

    prompting: Prompting
    model_type: ModelType
    start_token: bool = True

    def ids(self, text: str) -> list[int]:
        """The token ids of a prompt: the pieces of text between images and sounds are tokenised one by one."""
        encode, found = self.prompting.encode, []
        if self.start_token and self.prompting.bos_token_id is not None:
            found.append(self.prompting.bos_token_id)
        soft = {tokens.placeholder: tokens for tokens in self.prompting.soft_tokens}
        pieces = re.split(f"({'|'.join(map(re.escape, soft))})", text) if soft else [text]
        for before, placeholder in zip(pieces[::2], pieces[1::2], strict=False):
            tokens = soft[placeholder]
            found += encode(before + AROUND + tokens.begin)
            found += encode(placeholder) * tokens.count + encode(tokens.end)
            found += encode(AROUND) if self.model_type == "gemma3n" else []
        return found + encode(pieces[-1])

    @property
    def conversations(self) -> Sequence[Conversation]:
        """The conversations that are compared. With model type gemma3n, those with adjacent images are left out, which
        the engine tokenises in its own way."""
        thinking = THINKING if self.model_type == "gemma4" else ()
        side_by_side = self.model_type != "gemma3n"
        return [*TEXTS, *thinking, *with_media(self.prompting.groups, side_by_side=side_by_side)]


def engine_prompts(metadata: LlmMetadata, tokenizer: Tokenizer | None) -> EnginePrompts:
    """The prompts of a finished file; if its tokenizer cannot be read, texts are compared instead of tokens."""
    known = metadata.model_type in MODEL_TYPES
    image = _soft_tokens(metadata.image, IMAGE, tokenizer) if known else None
    sound = _soft_tokens(metadata.sound, SOUND, tokenizer) if known else None
    start = metadata.start_token
    bos_id = start[0] if isinstance(start, tuple) and len(start) == 1 else None
    if tokenizer is None:
        prompting = Prompting(lambda text: list(text.encode()), lambda ids: bytes(ids).decode(), "", None, image, sound)
    else:
        bos = start if isinstance(start, str) else "" if bos_id is None else tokenizer.token_of(bos_id) or ""
        prompting = Prompting(
            lambda text: tokenizer.encode(text, special=False),
            lambda ids: tokenizer.decode(ids, skip_special=False),
            bos, bos_id, image, sound,
        )  # fmt: skip
    own = next((name for name in MODEL_TYPES if name == metadata.model_type), None)
    model_type: ModelType = own or "generic_model"
    return EnginePrompts(prompting, model_type, start is not None)


def _soft_tokens(
    media: ImageMetadata | SoundMetadata | None, usual: SoftTokens, tokenizer: Tokenizer | None
) -> SoftTokens | None:
    """How a file's images (or sounds) are spelled, with one soft token; None if not as in transformers."""
    if media is None or (media.placeholder and (media.prefix, media.suffix) != (AROUND, "")):
        return None
    begin, end = (_spelling(token, tokenizer) for token in (media.begin, media.end))
    return SoftTokens(usual.kind, media.placeholder or usual.placeholder, begin, end, 1) if begin and end else None


def _spelling(token: Token | None, tokenizer: Tokenizer | None) -> str:
    if isinstance(token, tuple):
        return tokenizer.decode(list(token), skip_special=False) if tokenizer is not None else ""
    return token or ""


@dataclass(frozen=True, slots=True)
class ExportedTemplate:
    """A template for the engine, and whether the engine is to put the start token before the rendered text."""

    source: str
    start_token: bool


def engine_template(source: str, prompting: Prompting, model_type: ModelType) -> ExportedTemplate:
    """The template with which the engine gets the tokens that transformers gets with `source`.

    It is `source` itself if that gives the same tokens. BundleError if no such template is found.
    """
    return limited("chat template", partial(_engine_template, source, prompting, model_type))


def _engine_template(source: str, prompting: Prompting, model_type: ModelType) -> ExportedTemplate:
    model = ChatTemplate(source, bos_token=prompting.bos_token)
    start_token = _begins_with_bos(model, prompting.bos_token)
    engine = EnginePrompts(prompting, model_type, start_token)
    wanted = dict(_wanted_ids(model, engine))
    faults = []
    for candidate in _candidates(source, prompting, model_type, start_token=start_token):
        fault = _ids_fault(candidate, wanted, engine)
        if fault is None:
            return ExportedTemplate(candidate, start_token)
        faults.append(fault)
    # The last candidate has all changes, so its fault is the one that no change mends.
    raise faults[-1]


def template_fault(
    source: str, exported: str, engine: EnginePrompts, conversations: Sequence[Conversation] | None = None
) -> BundleError | None:
    """A fault for the first conversation whose tokens differ between the engine with `exported` and transformers with
    `source`; None if none differs."""
    return limited("chat template", partial(_template_fault, source, exported, engine, conversations))


def _template_fault(
    source: str, exported: str, engine: EnginePrompts, conversations: Sequence[Conversation] | None = None
) -> BundleError | None:
    wanted = dict(_wanted_ids(ChatTemplate(source, bos_token=engine.prompting.bos_token), engine, conversations))
    return _ids_fault(exported, wanted, engine, conversations)


def rendering_fault(template: str, engine: EnginePrompts, further: Sequence[Conversation] = ()) -> BundleError | None:
    """The fault of a finished file's template: it is invalid, or the engine gets other tokens than Jinja. None if fine.

    `further`: conversations to compare in addition to the engine's own, such as ones with tools.
    """
    try:
        return limited("chat template", partial(_rendering_fault, template, engine, further))
    except BundleError as error:
        return error


def _rendering_fault(template: str, engine: EnginePrompts, further: Sequence[Conversation]) -> BundleError | None:
    bos = engine.prompting.bos_token
    without_bos = replace(engine, prompting=replace(engine.prompting, bos_token=""), start_token=False)
    placeholders = engine.prompting.soft_tokens if engine.model_type == "generic_model" else ()
    own = separate_template(template, [tokens.placeholder for tokens in placeholders])
    fault = _template_fault(own, template, without_bos, [*engine.conversations, *further])
    if fault is None and engine.start_token and bos and _begins_with_bos(ChatTemplate(template, bos_token=""), bos):
        fault = _fault(f"{bos} twice: the template spells it, and the engine puts its start token before it")
    return fault


def _begins_with_bos(model: ChatTemplate, bos_token: str) -> bool:
    """Whether transformers' prompts begin with the start token; only then may the engine write it."""
    for conversation in TEXTS:
        try:
            return bool(bos_token) and model.render_turns(conversation.turns).startswith(bos_token)
        except ToolkitError:
            continue
    return True


def _candidates(source: str, prompting: Prompting, model_type: ModelType, *, start_token: bool) -> Iterator[str]:
    """The template without methods that the engine lacks, with more and more changes that are known to fix something.

    A method that no conversation reaches may be reached by others.
    """
    # Jinja drops one newline at a template's end, and the engine none.
    source = without_methods(source)
    plain = source.removesuffix("\n")
    tags = _without_generation_tags(plain)
    placeholders = [tokens.placeholder for tokens in prompting.soft_tokens] if model_type == "generic_model" else []
    for candidate in dict.fromkeys((source, plain, tags, _joined(tags))):
        yield joined_template(candidate, placeholders)
        if start_token:
            yield joined_template(_without_start(candidate, prompting.bos_token), placeholders)


def _without_generation_tags(source: str) -> str:
    """The template with `{% if true %}` for `{%- generation -%}`, of which the engine knows only one spelling."""
    tags = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
    return tags.sub(lambda match: f"{match[1]}{'endif' if match[2] else 'if true'}{match[3]}", source)


def _without_start(source: str, bos_token: str) -> str:
    """The template without the start token that it writes itself, because the engine writes one too."""
    token = json.dumps(bos_token, ensure_ascii=False)
    return (
        "{% set whole %}" + source.removesuffix("\n") + "{% endset %}"
        f"{{{{ whole[{len(bos_token)}:] if whole.startswith({token}) else whole }}}}"
    )


def _joined(source: str) -> str:
    """The template, preceded by statements that join the parts of each message."""
    # After a newline, which the tag before it swallows, the template still begins a line.
    return f"{_JOIN_PARTS}\n{source}" if source[:1].isspace() else _JOIN_PARTS + source


Ids = list[int]


def _wanted_ids(
    model: ChatTemplate, engine: EnginePrompts, conversations: Sequence[Conversation] | None = None
) -> Iterator[tuple[str, Ids]]:
    """The name of each conversation and its tokens in transformers; conversations that it refuses are left out."""
    for conversation in engine.conversations if conversations is None else conversations:
        try:
            text = model.render_turns(conversation.turns, conversation.tools, thinking=conversation.thinking)
            yield conversation.name, engine.prompting.ids(text, conversation)
        except ToolkitError:
            continue


def _ids_fault(
    exported: str, wanted: dict[str, Ids], engine: EnginePrompts, conversations: Sequence[Conversation] | None = None
) -> BundleError | None:
    try:
        template = EngineTemplate(exported)
    except BundleError as error:
        return _fault(error.found)
    for conversation in engine.conversations if conversations is None else conversations:
        if conversation.name not in wanted:
            continue  # the engine may refuse what transformers refuses
        try:
            text = template.render(conversation)
        except ToolkitError as error:
            return _fault(error.found, place=conversation.name)
        found = engine.ids(text)
        if found != wanted[conversation.name]:
            return _fault(*first_difference(found, wanted[conversation.name], engine.prompting), conversation.name)
    return None


def _fault(found: str, wanted: str | None = None, place: str | None = None) -> BundleError:
    return BundleError(
        "chat template in LiteRT-LM" if place is None else f"chat template in LiteRT-LM with {place}",
        found=found,
        wanted=wanted,
        remedy="change chat_template.jinja in the checkpoint to what the engine understands (docs/export.md)",
    )
