"""Google's LiteRT-LM engine in its own process, on the CPU or the GPU.

python engine_process.py REQUEST.json      # as `answers` starts it
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu_process import driver, run_alone

Message = Sequence[str | Path]
"""Texts, and paths of images (.png) and sounds (.wav)."""


def answers(file: Path, backend: str, messages: Sequence[Message], *, tokens: int) -> list[str]:
    """What the engine answers to each, greedily, each in a conversation of its own. `backend`: cpu or gpu."""
    parts = [[{"text" if isinstance(part, str) else "file": str(part)} for part in message] for message in messages]
    found: list[str] = _ask({"file": str(file), "backend": backend, "messages": parts, "tokens": tokens})
    return found


def scores(file: Path, backend: str, texts: Sequence[tuple[str, str]]) -> list[float]:
    """For each prompt and text, the logarithm of the probability that the engine gives to the text after the prompt."""
    found: list[float] = _ask({"file": str(file), "backend": backend, "texts": texts})
    return found


def _ask(request: dict[str, Any]) -> Any:
    environment = driver().environment if request["backend"] == "gpu" else {}
    with TemporaryDirectory(prefix="gemma-edge-engine-") as scratch:
        path, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        path.write_text(json.dumps(request))
        log = run_alone([str(Path(__file__)), str(path)], environment)
        assert answer.exists(), log[-4000:]
        return json.loads(answer.read_text())


def _main(request: Path) -> None:
    """The process: open the file, answer, leave the answers beside the request."""
    import litert_lm

    values = json.loads(request.read_text())
    on_gpu = values["backend"] == "gpu"
    backend = litert_lm.Backend.GPU() if on_gpu else litert_lm.Backend.CPU(thread_count=1)
    towers = {} if "texts" in values else {"vision_backend": backend, "audio_backend": backend}
    with litert_lm.Engine(values["file"], backend=backend, cache_dir=":nocache", **towers) as engine:
        found: object = (
            [_score(engine, *pair) for pair in values["texts"]]
            if "texts" in values
            else _answers(litert_lm, engine, values)
        )
        (request.parent / "answer.json").write_text(json.dumps(found))
    # The delegate's threads may fall over each other at exit.
    sys.stdout.flush()
    os._exit(0)


def _answers(module: Any, engine: Any, values: dict[str, Any]) -> list[str]:
    found = []
    sampler = module.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
    for message in values["messages"]:
        conversation = engine.create_conversation(sampler_config=sampler, max_output_tokens=values["tokens"])
        answer = conversation.send_message(module.Contents([_part(module, part) for part in message]))
        found.append("".join(part["text"] for part in answer["content"]))
    return found


def _score(engine: Any, prompt: str, text: str) -> float:
    with engine.create_session() as session:
        session.run_prefill([prompt])
        return float(session.run_text_scoring([text]).scores[0])


def _part(module: Any, part: dict[str, str]) -> Any:
    if "text" in part:
        return module.Content.Text(part["text"])
    file = Path(part["file"])
    kinds = {".png": module.Content.ImageBytes, ".wav": module.Content.AudioBytes}
    return kinds[file.suffix](file.read_bytes())


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
