"""`gemma-edge run`: answers one prompt."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from gemma_edge.api.model import Model
from gemma_edge.options.media import add_media_arguments
from gemma_edge.options.session import LIMITS as LIMITS
from gemma_edge.options.session import add_device_argument, add_sampling_arguments, add_session_arguments, open_model
from gemma_edge.standard_input import read_all
from gemma_edge.terminal import Terminal
from gemma_edge.words.answers import cut_text, memory_text, ple_text, show_answer, speed_text
from toolkit.base.errors import UsageError
from toolkit.bundle.chat import MAX_PROMPT_CHARACTERS, read_bounded_text
from toolkit.bundle.tokenizer import require_unicode
from toolkit.runtime.answer import Answer
from toolkit.runtime.memory import Memory, StagePeaks

EXAMPLES = (
    'gemma-edge run BUNDLE "Write a haiku about rain."',
    'gemma-edge run BUNDLE -p "Once upon a time" --raw -n 64',
    "gemma-edge run BUNDLE --file question.txt --size E2B --json",
    'git diff | gemma-edge run BUNDLE -p - --system "Summarise this change."',
    'gemma-edge run BUNDLE -p "Name a colour." --temperature 1 --seed 7',
    'gemma-edge run BUNDLE -p "How many days until 1 May?" --thinking -n 1024',
    "gemma-edge run BUNDLE -p - --speculative < article_to_correct.txt",
    'gemma-edge run BUNDLE -p "Name a colour." --backend gpu',
    'gemma-edge run BUNDLE -p "Name a colour." --device 192.168.1.20:5555',
    'gemma-edge run BUNDLE -p "What is this?" --image photo.jpg',
    'gemma-edge run BUNDLE -p "Is <audio_soft_token> about <image_soft_token>?" --image a.png --audio b.wav',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_session_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the prompt; - reads it from standard input")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the same as TEXT")
    parser.add_argument("-f", "--file", metavar="FILE", type=Path, help="read the prompt from a text file")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt, instructions that precede the prompt")
    parser.add_argument("--raw", action="store_true", help="continue the prompt itself, without the chat template")
    parser.add_argument("--ignore-eos", action="store_true", help="do not stop at a stop token")
    add_media_arguments(parser)
    add_sampling_arguments(parser, temperature=0.0, max_tokens=128)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0, or 130 after an interrupt, once the text generated so far has been printed."""
    prompt = _prompt(arguments)
    peaks = StagePeaks()
    with open_model(arguments, terminal, peaks.end) as model:
        stream = model.stream(
            prompt,
            system=arguments.system,
            media=arguments.media,
            raw=arguments.raw,
            ignore_eos=arguments.ignore_eos,
            speculative=arguments.speculative,
            thinking=arguments.thinking,
            on_thought=terminal.aside,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            repeat_penalty=arguments.repeat_penalty,
            seed=arguments.seed,
            stop=arguments.stop,
        )
        answer = show_answer(stream, terminal, pieces=arguments.stream)
        peaks.end("decode")
        memory = model.memory()
        here = arguments.device is None
        peak = peaks.peak_rss_bytes if here else memory.process.peak_rss_bytes
        if terminal.as_json:
            terminal.result(_as_json(answer, model, memory, peak, peaks.stages if here else {}), "")
        terminal.note(speed_text(answer))
        if answer.ending == "length":
            terminal.note(cut_text(len(answer.token_ids)))
        terminal.note(memory_text(memory, peak, backend=arguments.backend))
        terminal.note(ple_text(model.ple_statistics))
    return 130 if answer.ending == "interrupted" else 0


def _prompt(arguments: argparse.Namespace) -> str:
    """The prompt, which is given in exactly one way."""
    texts = [text for text in (arguments.text, arguments.prompt) if text is not None]
    count = len(texts) + (arguments.file is not None)
    if count != 1:
        found = "two prompts" if count else "no prompt"
        raise UsageError("prompt", found=found, wanted="one, as TEXT, with -p or with -f")
    if arguments.file is not None:
        return read_bounded_text(arguments.file, UsageError, MAX_PROMPT_CHARACTERS)
    if texts[0] == "-":
        return require_unicode(read_all(), "standard input").removesuffix("\n")
    return require_unicode(texts[0], "prompt")


def _as_json(
    answer: Answer, model: Model, memory: Memory, peak_rss_bytes: int | None, peaks: Mapping[str, int]
) -> dict[str, object]:
    return {
        "text": answer.text,
        "thought": answer.thought,
        "token_ids": list(answer.token_ids),
        "prompt_tokens": answer.prompt_tokens,
        "size": answer.size,
        "ending": answer.ending,
        "prefill_tokens_per_s": answer.prefill_tokens_per_s,
        "decode_tokens_per_s": answer.decode_tokens_per_s,
        "time_to_first_token_s": answer.time_to_first_token_s,
        "media_s": answer.media_s,
        "drafts": None if answer.drafts is None else answer.drafts.to_json(),
        "peak_rss_bytes": peak_rss_bytes,
        "memory": {**memory.to_json(), "peaks": dict(peaks)},
        "ple": model.ple_statistics.to_json(),
        "groups_loaded": list(model.groups_loaded),
    }
