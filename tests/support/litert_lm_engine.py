"""Google's LiteRT-LM engine for tests: greedy answers to raw text and to conversations, with images and sounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, slots=True)
class Picture:
    """The bytes of an image's file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Recording:
    """The bytes of a sound's file."""

    data: bytes


Content = str | Picture | Recording


@dataclass(frozen=True, slots=True)
class LmEngine:
    """A loaded .litertlm."""

    engine: Any
    module: Any

    def greedy(self, prompt: str, count: int) -> list[str]:
        """The text of each token that follows `prompt`, which gets no template; up to a stop token or `count`."""
        with self.engine.create_session(
            apply_prompt_template=False, sampler_config=self.greedy_sampler(), max_output_tokens=count
        ) as session:
            session.run_prefill([prompt])
            return [text for part in session.run_decode_async() for text in part.texts]

    def chat(self, message: str, count: int) -> str:
        """The answer to the first message of a conversation, in the model's own template."""
        return self.converse([[message]], count)[0]

    def converse(self, turns: Sequence[Sequence[Content]], count: int) -> tuple[str, int]:
        """The answer to the last of several messages, and the positions that the conversation takes then."""
        with self.engine.create_conversation(
            sampler_config=self.greedy_sampler(), max_output_tokens=count
        ) as conversation:
            for contents in turns:
                message = conversation.send_message(self.module.Contents([self._part(part) for part in contents]))
            return "".join(part["text"] for part in message["content"]), conversation.token_count

    def pieces(self, ids: list[int]) -> list[str]:
        """How the engine spells these tokens one after the other."""
        texts = [self.engine.detokenize(ids[:n]) for n in range(1, len(ids) + 1)]
        return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]

    def _part(self, content: Content) -> Any:
        if isinstance(content, Picture):
            return self.module.Content.ImageBytes(content.data)
        if isinstance(content, Recording):
            return self.module.Content.AudioBytes(content.data)
        return self.module.Content.Text(content)

    def greedy_sampler(self) -> Any:
        """The engine's settings for the most likely token each time."""
        return self.module.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)


@contextmanager
def open_engine(path: Path, *, threads: int = 2, towers: bool = False, drafts: bool = False) -> Iterator[LmEngine]:
    """Load a .litertlm on the CPU, its towers and its drafter if wanted; the test is skipped without the engine."""
    module = pytest.importorskip("litert_lm", reason="needs litert-lm-api: pip install -e .[lm]")
    module.set_min_log_severity(module.LogSeverity.ERROR)
    cache = path.parent / "engine-cache"
    cache.mkdir(exist_ok=True)
    backend = module.Backend.CPU(thread_count=threads)
    backends = {"vision_backend": backend, "audio_backend": backend} if towers else {}
    drafting = {"enable_speculative_decoding": True} if drafts else {}
    with module.Engine(str(path), backend=backend, cache_dir=str(cache), **backends, **drafting) as engine:
        yield LmEngine(engine, module)
