"""``gemma-edge chat``: a conversation."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field

from gemma_edge.commands.run import describe_speed, stream_answer
from gemma_edge.options.media import (
    MediaFile,
    allowed_groups,
    image_file,
    read_media,
    sound_file,
    user_message,
)
from gemma_edge.options.session import (
    add_sampling_arguments,
    add_session_arguments,
    make_sampler,
    make_sampling,
    open_session,
    require_text,
)
from gemma_edge.terminal import Terminal, write_line
from toolkit.base.errors import ToolkitError, UsageError
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.chat import ChatTemplate, Message
from toolkit.runtime.generate import Generation
from toolkit.runtime.media_prompt import Medium, build_prompt
from toolkit.runtime.sampling import Sampler
from toolkit.runtime.session import Session
from toolkit.runtime.tokenizer import Tokenizer

EXAMPLES = (
    "gemma-edge chat BUNDLE",
    'gemma-edge chat BUNDLE --size E2B --system "Answer in one sentence."',
    "printf 'Hello\\nAnd now in French.\\n' | gemma-edge chat BUNDLE --temperature 0",
)
_FILES = {"/image": image_file, "/audio": sound_file}
_HELP = """/reset      forget the conversation
/image FILE show an image with the next message
/audio FILE play a sound with the next message
/size NAME  go on with another size of the bundle
/size       which size this is, and which there are
/quit       end (also: Ctrl-D)
/help       this
Ctrl-C ends an answer, and the conversation when nothing is being said."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_session_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="what holds for the whole conversation")
    # Gemma's own generation_config: temperature 1, top-k 64, top-p 0.95.
    add_sampling_arguments(parser, temperature=1.0)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """0 at the end of the input or after /quit; 130 after an interrupt."""
    make_sampling(arguments)
    bundle = Bundle(arguments.bundle)
    allowed = allowed_groups(bundle, arguments.groups)
    with open_session(arguments, terminal, bundle) as session:
        tokenizer = bundle.tokenizer()
        talk = _Talk(
            session,
            tokenizer,
            bundle.chat_template(tokenizer),
            make_sampler(arguments, bundle, tokenizer),
            terminal,
            limit=arguments.max_tokens or session.context,
            system=arguments.system,
            allowed=allowed,
        )
        if sys.stdin.isatty():
            terminal.note("Type /help for what can be said besides.")
        while (line := _read_line(terminal)) is not None:
            if not talk.take(line):
                break
    return 0


@dataclass(slots=True)
class _Talk:
    """A conversation: messages for people, tokens in the session."""

    session: Session
    tokenizer: Tokenizer
    template: ChatTemplate
    sampler: Sampler
    terminal: Terminal
    limit: int
    system: str | None
    allowed: tuple[str, ...] | None = None
    """The groups that may be loaded; None is all of the bundle."""
    messages: list[Message] = field(default_factory=list)
    media: list[Medium] = field(default_factory=list)
    """Of all messages, in order."""
    waiting: list[Medium] = field(default_factory=list)
    """Those that go with the next message."""

    def __post_init__(self) -> None:
        self._reset()

    def take(self, line: str) -> bool:
        """Do what a line says; False when it says to stop."""
        words = line.split(maxsplit=1)
        if not words:
            return True
        try:
            if not words[0].startswith("/"):
                self._answer(line)
            elif words[0] == "/reset" and len(words) == 1:
                self._reset()
            elif words[0] in _FILES and len(words) == 2:
                self._attach(_FILES[words[0]](words[1].strip()))
            elif words[0] == "/size":
                self._change_size(words[1:])
            elif words[0] == "/quit" and len(words) == 1:
                return False
            else:
                self.terminal.note(_HELP)
        except ToolkitError as error:
            # One bad line does not end a conversation.
            write_line("error", str(error))
        return True

    def _answer(self, line: str) -> None:
        line = require_text(line, "message")
        bundle, media = self.session.bundle, [*self.media, *self.waiting]
        messages = [*self.messages, user_message(bundle, self.tokenizer, line, self.waiting)]
        prompt = build_prompt(bundle, self.tokenizer, self.template.render(messages), media)
        if len(prompt.ids) > self.session.context:
            found, wanted = f"{len(prompt.ids)} tokens", f"at most {self.session.context}, the bundle's context"
            raise UsageError("conversation", found=found, wanted=wanted, remedy="say less, or begin anew with /reset")
        stops = bundle.manifest.text.stop_token_ids
        generation = Generation(
            self.session, prompt.ids, self.sampler, limit=self.limit, stops=stops, spans=prompt.spans
        )
        text = stream_answer(generation, self.tokenizer, self.terminal)
        report = generation.report()
        self.terminal.stream("\n")
        if self.terminal.as_json:
            value = {"text": text, "token_ids": list(report.token_ids), "prompt_tokens": report.prompt_tokens}
            self.terminal.result({**value, "reused_tokens": report.reused_tokens, "size": self.session.size}, "")
        self.terminal.note(describe_speed(report))
        self.messages = [*messages, Message("assistant", text)]
        self.media, self.waiting = media, []

    def _attach(self, file: MediaFile) -> None:
        self.waiting += read_media(self.session.bundle, [file], self.allowed, self.terminal)
        self.terminal.note(f"[{file.path} goes with the next message]")

    def _change_size(self, name: list[str]) -> None:
        if name:
            self.session.use(name[0].strip())
        others = [size for size in self.session.bundle.manifest.sizes if size != self.session.size]
        self.terminal.note(f"[size {self.session.size}; besides: {', '.join(others) or 'none'}]")

    def _reset(self) -> None:
        self.messages = [Message("system", self.system)] if self.system else []
        self.media, self.waiting = [], []
        self.session.truncate(0)


def _read_line(terminal: Terminal) -> str | None:
    """The next line of standard input, None at its end."""
    try:
        if sys.stdin.isatty() and not terminal.as_json:
            return input("> ")
        line = sys.stdin.readline()
    except EOFError:
        return None
    return line.rstrip("\n") if line else None
